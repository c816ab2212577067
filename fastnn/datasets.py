"""Data sets to try a network on: digits (offline) and MNIST.

Examples
--------
>>> from fastnn import datasets
>>> (x_train, y_train), (x_test, y_test) = datasets.load_digits()
>>> x_train.shape, x_train.dtype, y_test.shape
((1437, 8, 8), dtype('uint8'), (360,))
"""

import contextlib
import gzip
import hashlib
import io
import os
import struct
import sys
import tempfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

__all__ = ["DatasetError", "load_digits", "mnist"]

Images = NDArray[np.uint8]

PIECE = 1 << 20  # bytes that are decompressed at once
# SHA-256 of the uncompressed files: gzip headers differ between mirrors.
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)


class DatasetError(RuntimeError):
    """A data set that cannot be had, or whose file is damaged."""


def load_digits(
    test_fraction: float = 0.2, seed: int = 0
) -> tuple[tuple[Images, NDArray[np.int64]], tuple[Images, NDArray[np.int64]]]:
    """Load scikit-learn's 1,797 handwritten digits, which need no network.

    Parameters
    ----------
    test_fraction : float
        Share of the digits that goes into the test set, between 0 and 1.
    seed : int
        Decides which digits those are; every class keeps its share.

    Returns
    -------
    tuple
        ``(x_train, y_train), (x_test, y_test)``: images of shape (n, 8, 8), uint8 with values from 0 to 16 (scale them
        with ``Rescaling(1 / 16)``), and int64 labels from 0 to 9.

    Examples
    --------
    >>> (x_train, y_train), (x_test, y_test) = load_digits(test_fraction=0.5)
    >>> int(x_train.min()), int(x_train.max()), x_test.shape
    (0, 16, (899, 8, 8))
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}")
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    x, y = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=test_fraction, stratify=y, shuffle=True, random_state=seed
    )
    return (x_train, y_train), (x_test, y_test)


class mnist:
    """The MNIST database of handwritten digits, as ``keras.datasets.mnist``."""

    @staticmethod
    def load_data() -> tuple[tuple[Images, Images], tuple[Images, Images]]:
        """Load the 60,000 training and 10,000 test images of MNIST.

        Each file is looked for in the directory that the environment variable ``FASTNN_DATA`` names (in it or in its
        ``mnist`` folder, compressed or not), then in the user's cache directory (``FASTNN_CACHE_DIR`` moves it), then
        downloaded into that cache.  Wherever it comes from, its content must have the known hash.  What had to be
        decompressed is kept in the cache as it is then (55 MB), which is read in a quarter of the time.

        Returns
        -------
        tuple
            ``(x_train, y_train), (x_test, y_test)``, all uint8: images of shape (n, 28, 28) with values from 0 to 255,
            labels from 0 to 9.

        Raises
        ------
        DatasetError
            If a file is damaged, or is not on this machine and cannot be downloaded.

        Examples
        --------
        >>> (x_train, y_train), (x_test, y_test) = mnist.load_data()  # doctest: +SKIP
        >>> x_train.shape, y_test.shape  # doctest: +SKIP
        ((60000, 28, 28), (10000,))
        """
        x_train, y_train, x_test, y_test = (_array(_content(name)) for name in MNIST_FILES)
        return (x_train, y_train), (x_test, y_test)


def _array(data: Images) -> Images:
    """The array in an IDX file of bytes: two zeros, type 8, number of dimensions, big-endian sizes, elements."""
    dims = int(data[3])
    return data[4 + 4 * dims :].reshape(struct.unpack_from(f">{dims}I", data, 4))


def _content(name: str) -> Images:
    """The checked, uncompressed content of one file of MNIST."""
    cache = _cache_folder()
    own = os.environ.get("FASTNN_DATA")
    places = [(Path(own) / "mnist", True), (Path(own), True)] if own else []
    for folder, users in (*places, (cache, False)):
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                advice = "replace it, or unset FASTNN_DATA" if users else "delete it, and it is downloaded again"
                return _read(name, path, advice)
    failures = []
    for mirror in MNIST_MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            packed = _fetch(url)
            data = _check(name, packed, url, "try again later")
        except (OSError, DatasetError) as error:
            failures.append(f"  {url}: {error}")
            continue
        _store(cache / f"{name}.gz", packed, "downloaded")
        _store(_copy(name), data.data, "decompressed")
        return data
    looked = ", ".join(str(folder) for folder, _ in (*places, (cache, False)))
    raise DatasetError(
        f"MNIST is not on this machine and could not be downloaded: {name} is not in {looked}. Set FASTNN_DATA to a "
        "directory that holds the four files of MNIST (.gz or not, there or in a folder mnist), or use "
        "fastnn.datasets.load_digits(), which needs no network.\nTried:\n" + "\n".join(failures)
    )


def _read(name: str, path: Path, advice: str) -> Images:
    """The checked content of the file at `path`; if it is compressed, and was read before, from the copy in the cache.

    A copy is trusted, without its hash, if it has the length and the CRC-32 that end the compressed file (RFC 1952).
    """
    if path.suffix != ".gz":
        return _check(name, path.read_bytes(), str(path), advice)
    copy = _copy(name)
    try:
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            crc, size = struct.unpack("<2I", file.read())
        if copy.stat().st_size == size:
            content = np.fromfile(copy, np.uint8)
            if zlib.crc32(content) == crc:
                return content
    except OSError:  # there is no copy, or `path` is too short: that is told below
        pass
    content = _check(name, path.read_bytes(), str(path), advice)
    _store(copy, content.data, "decompressed")
    return content


def _check(name: str, data: bytes, source: str, advice: str) -> Images:
    """Decompress `data` where it is compressed, and see that it is the file `name` of MNIST."""
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data)
    content, digest = bytearray(), hashlib.sha256()
    # Another thread computes the hash meanwhile: the training images take 0.2 s instead of 0.35.
    with stream, ThreadPoolExecutor(1) as hasher:
        try:
            while piece := stream.read(PIECE):
                content += piece
                hasher.submit(digest.update, piece)
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(f"{source} is damaged and cannot be decompressed ({error}): {advice}.") from error
    actual = digest.hexdigest()
    if actual != MNIST_FILES[name]:
        raise DatasetError(
            f"{source} is not MNIST's {name}: the SHA-256 of its content is {actual}, expected {MNIST_FILES[name]}; "
            f"{advice}."
        )
    return np.frombuffer(content, np.uint8)


def _copy(name: str) -> Path:
    """Where the decompressed content of a file is kept."""
    return _cache_folder() / "decompressed" / name


def _cache_folder() -> Path:
    base = os.environ.get("FASTNN_CACHE_DIR") or platformdirs.user_cache_dir("fastnn", appauthor=False)
    return Path(base) / "datasets" / "mnist"


def _fetch(url: str) -> bytes:
    """Download a file; every failure is an OSError."""
    import pooch

    packed = io.BytesIO()
    pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=(5, 30))(url, packed, None)
    return packed.getvalue()


def _store(path: Path, data: bytes | memoryview, how: str) -> None:
    """Keep what took time to get; a concurrent reader sees the whole file or none."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            part = file.name
            file.write(data)
        os.replace(part, path)
    except OSError as error:
        warnings.warn(
            f"fastnn cannot keep {path.name} in {path.parent} ({error.strerror or error}): it will be {how} again "
            "next time. Set FASTNN_CACHE_DIR to a writable directory.",
            RuntimeWarning,
            stacklevel=2,
        )
        if part is not None:
            with contextlib.suppress(OSError):
                os.unlink(part)
