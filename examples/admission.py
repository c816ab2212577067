"""A 5-3-1 network that says who is admitted, trained twice: with `Sequential`, and by hand with fastnn's functions.

Both start from the same weights, make the same 11 full-batch updates in float64 and reach the same loss, which is that
of the hand-written NumPy network they replace: 0.7827895343 before, 0.5558602473 after.
"""

import argparse

import numpy as np

import fastnn
from fastnn.layers import Dense, Input
from fastnn.optimizers import SGD

APPLICANTS = {
    "absences": [0, 3, 1, 1, 0, 0, 1, 12, 2, 3],
    "night_study": [0, 1, 1, 0, 1, 1, 0, 0, 1, 1],
    "club_activity": [0, 1, 1, 0, 1, 0, 0, 1, 1, 1],
    "essay_length": [532, 427, 735, 635, 142, 395, 439, 519, 498, 425],
    "exam_score": [98.5, 89.0, 72.6, 87.3, 85.0, 96.2, 92.8, 97.2, 71.0, 86.2],
}
ADMISSION = np.array([[1, 1, 0, 1, 0, 1, 1, 0, 1, 0]], dtype=np.float64).T

# The published network follows the gradient of the summed loss.
LEARNING_RATE = 0.01


def features() -> np.ndarray:
    """The five columns, standardised."""
    x = np.column_stack([np.asarray(column, dtype=np.float64) for column in APPLICANTS.values()])
    return (x - x.mean(axis=0)) / x.std(axis=0)


def initial_weights() -> list[np.ndarray]:
    """W1 (5, 3), b1 (1, 3), W2 (3, 1), b2 (1, 1), drawn in this order."""
    random = np.random.RandomState(42)  # the stream that np.random.seed(42) starts
    return [random.randn(5, 3), random.randn(1, 3), random.randn(3, 1), random.randn(1, 1)]


def with_sequential(updates: int) -> tuple[float, float]:
    """Loss before and after, by `fit`: Keras' gradient is that of the mean, so the rate is multiplied by the rows."""
    x, y = features(), ADMISSION
    w1, b1, w2, b2 = initial_weights()
    model = fastnn.Sequential(
        [Input((5,)), Dense(3, activation="relu"), Dense(1, activation="sigmoid")], dtype="float64", seed=0
    )
    model.compile(optimizer=SGD(learning_rate=LEARNING_RATE * len(x)), loss="binary_crossentropy")
    model.set_weights([w1, b1[0], w2, b2[0]])
    before = model.evaluate(x, y, batch_size=len(x), verbose=0)
    model.fit(x, y, batch_size=len(x), epochs=updates, shuffle=False, verbose=0)
    after = model.evaluate(x, y, batch_size=len(x), verbose=0)
    return before, after


def with_functions(updates: int) -> tuple[float, float]:
    """Loss before and after, by a hand-written backward pass over `dense`, `matmul` and friends."""
    x, y = features(), ADMISSION
    w1, b1, w2, b2 = initial_weights()

    def forward() -> tuple[np.ndarray, float, np.ndarray]:
        hidden = fastnn.dense(x, w1, b1[0], activation="relu")
        loss, d_logits = fastnn.bce_with_logits(fastnn.dense(hidden, w2, b2[0]), y)
        return hidden, loss, d_logits * len(x)  # of the sum over the rows, not of the mean

    hidden, before, d_logits = forward()
    after = before
    for _ in range(updates):
        d_hidden = fastnn.matmul(d_logits, w2.T) * fastnn.relu_derivative(hidden)
        gradients = [
            fastnn.matmul(x.T, d_hidden),
            d_hidden.sum(axis=0, keepdims=True),
            fastnn.matmul(hidden.T, d_logits),
            d_logits.sum(axis=0, keepdims=True),
        ]
        for parameter, gradient in zip((w1, b1, w2, b2), gradients, strict=True):
            fastnn.sgd_update(parameter, gradient, learning_rate=LEARNING_RATE)
        hidden, after, d_logits = forward()
    return before, after


def main() -> int:
    """Print the loss before and after, both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=11, help="full-batch updates (default: %(default)s)")
    arguments = parser.parse_args()

    print(f"{'BCE':<22}{'before':<14}after {arguments.updates} updates")
    for name, way in (("fastnn.Sequential", with_sequential), ("fastnn's functions", with_functions)):
        before, after = way(arguments.updates)
        print(f"{name:<22}{before:<14.10f}{after:.10f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
