"""The examples, run as a user runs them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastnn.cpu import loader

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, folder, env=None):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_admission_reaches_the_published_losses_both_ways(tmp_path):
    done = run("admission.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.rsplit(maxsplit=2)[1:] for line in done.stdout.splitlines()[1:]]
    assert rows == [["0.7827895343", "0.5558602473"]] * 2


def test_xor_is_solved_from_20_seeds(tmp_path):
    done = run("xor.py", "--seeds", 20, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "20 of 20 solved"
    outputs = [[float(p) for p in line.split()[1:]] for line in done.stdout.splitlines()[1:-1]]
    assert len(outputs) == 20
    assert max(abs(p - t) for row in outputs for p, t in zip(row, (0, 1, 1, 0), strict=True)) < 0.05


def test_xor_says_when_it_is_not_solved(tmp_path):
    done = run("xor.py", "--epochs", 1, folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 of 1 solved"


def accuracy(output):
    return float(re.search(r"test accuracy ([\d.]+)%, [\d,]+ samples/s", output).group(1))


def test_digits_are_learnt_and_plotted(tmp_path):
    done = run("train_mnist.py", "--dataset", "digits", "--hidden", 64, "--epochs", 20, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert accuracy(done.stdout) > 94
    assert (tmp_path / "train_mnist.png").read_bytes().startswith(b"\x89PNG")


def test_auto_falls_back_to_digits_and_says_so(tmp_path):
    env = {
        "FASTNN_DATA": str(tmp_path),
        "FASTNN_CACHE_DIR": str(tmp_path / "cache"),
        # A proxy that refuses connections is a machine without network.
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    kernels = loader.cache_folder()
    if kernels is not None:  # a cache without MNIST, but with the kernels: to compile them takes seconds
        shutil.copytree(kernels, tmp_path / "cache" / "kernels" / kernels.name)
    done = run("train_mnist.py", "--epochs", 1, "--plot", "figure.png", folder=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "Falling back to scikit-learn's digits. MNIST is not on this machine" in done.stdout
    assert "1437 images to train on" in done.stdout
    assert (tmp_path / "figure.png").exists()

    done = run("train_mnist.py", "--dataset", "mnist", folder=tmp_path, env=env)
    assert done.returncode == 1
    assert "MNIST is not on this machine" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_mnist_reaches_97_8_percent(tmp_path, seed):
    own = os.environ.get("FASTNN_DATA")
    if not own:
        pytest.skip("FASTNN_DATA is not set")
    done = run("train_mnist.py", "--dataset", "mnist", "--seed", seed, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert accuracy(done.stdout) >= 97.8
