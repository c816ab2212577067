"""Data sets: what is returned, where it is looked for, and what happens when a file is damaged or cannot be had."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastnn import datasets
from fastnn.datasets import DatasetError, load_digits, mnist

SHAPES = {
    "train-images-idx3-ubyte": (60, 28, 28),
    "train-labels-idx1-ubyte": (60,),
    "t10k-images-idx3-ubyte": (10, 28, 28),
    "t10k-labels-idx1-ubyte": (10,),
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small MNIST whose hashes are the expected ones, no FASTNN_DATA, an empty cache and no network."""
    files, arrays = {}, {}
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        arrays[name] = random.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        files[name] = header + arrays[name].tobytes()
        monkeypatch.setitem(datasets.MNIST_FILES, name, hashlib.sha256(files[name]).hexdigest())
    monkeypatch.delenv("FASTNN_DATA", raising=False)
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "_fetch", no_network)
    return Small(files, arrays, tmp_path / "cache" / "datasets" / "mnist")


class Small:
    def __init__(self, files, arrays, cache):
        self.files, self.arrays, self.cache = files, arrays, cache

    def write(self, folder: Path, *, packed: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(data) if packed else data)

    def check(self) -> None:
        (x_train, y_train), (x_test, y_test) = mnist.load_data()
        for got, expected in zip((x_train, y_train, x_test, y_test), self.arrays.values(), strict=True):
            np.testing.assert_array_equal(got, expected, strict=True)
            assert got.flags.writeable


def no_network(url):
    raise OSError("no route to host")


class Mirrors:
    """Serves files; counts the requests."""

    def __init__(self, files, broken=()):
        self.files, self.broken, self.asked = files, broken, []

    def __call__(self, url):
        self.asked.append(url)
        if any(url.startswith(mirror) for mirror in self.broken):
            raise OSError("404 Client Error")
        return gzip.compress(self.files[url.rsplit("/", 1)[1].removesuffix(".gz")])


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_all_there_once():
    from sklearn.datasets import load_digits as load

    (x_train, y_train), (x_test, y_test) = load_digits()
    assert x_train.shape == (1437, 8, 8)
    assert x_test.shape == (360, 8, 8)
    assert x_train.dtype == x_test.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    rows = np.column_stack([np.concatenate([x_train, x_test]).reshape(-1, 64), np.concatenate([y_train, y_test])])
    expected = load()
    expected = np.column_stack([expected.data.astype(int), expected.target])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_digits_split_is_stratified_and_decided_by_the_seed():
    (x, y), (_, y_test) = load_digits(test_fraction=0.5, seed=3)
    assert np.abs(np.bincount(y) - np.bincount(y_test)).max() <= 1
    np.testing.assert_array_equal(x, load_digits(test_fraction=0.5, seed=3)[0][0])
    assert not np.array_equal(x, load_digits(test_fraction=0.5, seed=4)[0][0])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_digits_refuse_a_fraction_outside_0_to_1(fraction):
    with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1"):
        load_digits(test_fraction=fraction)


# --- MNIST ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "mnist"])
def test_mnist_from_fastnn_data(small, tmp_path, monkeypatch, packed, below):
    small.write(tmp_path / "data" / below, packed=packed)
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path / "data"))
    small.check()
    assert small.cache.exists() == packed


def test_what_was_decompressed_is_read_again(small, tmp_path, monkeypatch):
    small.write(tmp_path, packed=True)
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path))
    small.check()
    assert {p.name: p.read_bytes() for p in (small.cache / "decompressed").iterdir()} == small.files
    monkeypatch.setattr(gzip, "GzipFile", None)
    small.check()


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_a_damaged_copy_is_replaced(small, damage):
    small.write(small.cache, packed=True)
    small.check()
    copy = small.cache / "decompressed" / "train-images-idx3-ubyte"
    whole = copy.read_bytes()
    if damage == "flipped":
        copy.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
    elif damage == "shorter":
        copy.write_bytes(whole[:-1])
    else:
        copy.unlink()
    small.check()
    assert copy.read_bytes() == whole


def test_a_copy_does_not_stand_for_other_data(small, tmp_path, monkeypatch):
    """FASTNN_DATA names a file that is not MNIST's: that is an error, whatever the cache holds."""
    small.write(small.cache, packed=True)
    small.check()
    small.write(tmp_path, packed=True)
    other = tmp_path / "t10k-labels-idx1-ubyte.gz"
    other.write_bytes(gzip.compress(b"fashion"))
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="t10k-labels"):
        mnist.load_data()


def test_a_copy_that_cannot_be_kept(small, tmp_path, monkeypatch):
    small.write(tmp_path, packed=True)
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path))
    small.cache.parent.mkdir(parents=True)
    small.cache.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="it will be decompressed again .* FASTNN_CACHE_DIR"):
        small.check()


def test_fastnn_data_comes_before_the_cache(small, tmp_path, monkeypatch):
    small.write(tmp_path / "data", packed=True)
    small.write(small.cache, packed=True)
    (small.cache / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path / "data"))
    small.check()


def test_mnist_from_the_cache(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path / "holds nothing"))
    small.write(small.cache, packed=True)
    small.check()


def test_mnist_is_downloaded_once_into_the_cache(small, monkeypatch):
    mirrors = Mirrors(small.files)
    monkeypatch.setattr(datasets, "_fetch", mirrors)
    small.check()
    small.check()
    assert mirrors.asked == [f"{datasets.MNIST_MIRRORS[0]}{name}.gz" for name in SHAPES]
    assert sorted(p.name for p in small.cache.glob("*.gz")) == sorted(f"{name}.gz" for name in SHAPES)
    assert {p.name: p.read_bytes() for p in (small.cache / "decompressed").iterdir()} == small.files


def test_mnist_from_the_second_mirror(small, monkeypatch):
    monkeypatch.setattr(datasets, "_fetch", Mirrors(small.files, broken=datasets.MNIST_MIRRORS[:1]))
    small.check()


def test_a_download_with_other_content_is_not_kept(small, monkeypatch):
    monkeypatch.setattr(datasets, "_fetch", Mirrors(dict.fromkeys(SHAPES, b"<html>sign in</html>")))
    with pytest.raises(DatasetError, match="could not be downloaded") as caught:
        mnist.load_data()
    assert hashlib.sha256(b"<html>sign in</html>").hexdigest() in str(caught.value)
    assert not small.cache.exists()


def test_a_download_is_used_even_if_it_cannot_be_kept(small, monkeypatch):
    small.cache.parent.parent.mkdir()
    small.cache.parent.write_text("a file where the folder should be")
    monkeypatch.setattr(datasets, "_fetch", Mirrors(small.files))
    with pytest.warns(RuntimeWarning, match="cannot keep .* FASTNN_CACHE_DIR"):
        small.check()


def test_a_failed_write_leaves_nothing_behind(small, monkeypatch):
    def full(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "_fetch", Mirrors(small.files))
    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        small.check()
    assert [path for path in small.cache.rglob("*") if path.is_file()] == []


def test_without_network_the_error_says_what_to_do(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DatasetError) as caught:
        mnist.load_data()
    message = str(caught.value)
    assert message.startswith("MNIST is not on this machine and could not be downloaded")
    for part in ("FASTNN_DATA", "load_digits", "no route to host", str(tmp_path / "elsewhere"), str(small.cache)):
        assert part in message
    for mirror in datasets.MNIST_MIRRORS:
        assert mirror in message


def test_a_wrong_file_is_named_with_both_hashes(small, tmp_path, monkeypatch):
    small.write(tmp_path, packed=False)
    wrong = tmp_path / "t10k-labels-idx1-ubyte"
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"\x0b")
    monkeypatch.setenv("FASTNN_DATA", str(tmp_path))
    with pytest.raises(DatasetError) as caught:
        mnist.load_data()
    for part in (str(wrong), datasets.MNIST_FILES[wrong.name], hashlib.sha256(wrong.read_bytes()).hexdigest(), "unset"):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not gzip", "empty"])
def test_a_damaged_file_in_the_cache_is_named(small, damage):
    small.write(small.cache, packed=True)
    path = small.cache / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
    elif damage == "not gzip":
        data[:2] = b"PK"
    else:
        data.clear()
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="delete it") as caught:
        mnist.load_data()
    assert str(path) in str(caught.value)


def test_a_refused_connection_is_an_os_error():
    # Port 9 of this machine: nothing listens there.  `_content` counts on every failure being an OSError.
    with pytest.raises(OSError, match="127.0.0.1"):
        datasets._fetch("http://127.0.0.1:9/train-images-idx3-ubyte.gz")


def test_the_real_mnist():
    own = os.environ.get("FASTNN_DATA")
    if not own or not any((Path(own) / p / "train-labels-idx1-ubyte.gz").exists() for p in ("", "mnist")):
        pytest.skip("FASTNN_DATA holds no MNIST")
    (x_train, y_train), (x_test, y_test) = mnist.load_data()
    assert x_train.shape == (60000, 28, 28)
    assert x_test.shape == (10000, 28, 28)
    assert {a.dtype for a in (x_train, y_train, x_test, y_test)} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(y_train[:10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    np.testing.assert_array_equal(np.bincount(y_test), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


def test_import_brings_neither_scikit_learn_nor_pooch():
    code = "import sys, fastnn.datasets; print(sorted({'sklearn', 'pooch', 'requests'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
