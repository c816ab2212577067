"""The first `fit` of a process: ``python -m benchmarks.training.first_fit``."""

import json
import time

began = time.perf_counter()
import numpy as np  # noqa: E402 - what comes before is timed

import fastnn  # noqa: E402
from fastnn.layers import Dense, Input  # noqa: E402

SIZES, SAMPLES = (784, 256, 10), 256


def main() -> None:
    """Print the seconds of the imports and of the first fit, a compiled model's and its kernels' making included."""
    imported = time.perf_counter()
    rng = np.random.default_rng(0)
    x, y = rng.random((SAMPLES, SIZES[0]), dtype=np.float32), rng.integers(0, SIZES[-1], SAMPLES)
    ready = time.perf_counter()
    model = fastnn.Sequential([Input((SIZES[0],)), Dense(SIZES[1], "relu"), Dense(SIZES[2], "softmax")], seed=1)
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x, y, verbose=0)
    print(json.dumps({"import": imported - began, "fit": time.perf_counter() - ready}))


if __name__ == "__main__":
    main()
