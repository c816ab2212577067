"""Optimizers, with Keras' names, defaults and formulas.

An optimizer holds hyperparameters and counts steps; the model owns its state, in buffers laid out like the parameters.
Changing `learning_rate` between epochs (from a callback, say) takes effect at once.
"""

import math

import numpy as np

from fastnn import _names
from fastnn.stages import Update


class Optimizer:
    """The base of all optimizers.

    Attributes
    ----------
    learning_rate : float
        May be changed between epochs.
    iterations : int
        Steps done.
    """

    name = "optimizer"

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.iterations = 0

    @property
    def learning_rate(self) -> float:
        """The factor of each update."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = _names.number(value, "learning_rate", low=0)

    def rates(self, steps: int) -> np.ndarray:
        """Step sizes of the next `steps` updates, float64; one or a row of them for each."""
        return np.full(steps, self.learning_rate)

    def update(self) -> Update:
        """What the optimizer is in a plan."""
        raise NotImplementedError

    def get_config(self) -> dict:
        """Arguments that build the same optimizer again."""
        return {"learning_rate": self.learning_rate}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.get_config().items())})"


class SGD(Optimizer):
    """Stochastic gradient descent.

    Without momentum ``p -= learning_rate g``; with it ``v = momentum v - learning_rate g`` and ``p += v``, or with
    Nesterov's form ``p += momentum v - learning_rate g``.  (torch keeps ``v`` without the learning rate.)

    Parameters
    ----------
    learning_rate : float
        At least 0.
    momentum : float
        From 0 to 1.
    nesterov : bool
        Whether to use Nesterov's form.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.optimizers.SGD(0.1, momentum=0.9)
    SGD(learning_rate=0.1, momentum=0.9, nesterov=False)
    """

    name = "sgd"

    def __init__(self, learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(learning_rate)
        self.momentum = _names.number(momentum, "momentum", low=0, high=1)
        self.nesterov = bool(nesterov)

    def update(self) -> Update:
        """What the optimizer is in a plan."""
        if self.momentum == 0:
            return Update("sgd", 0, ())
        return Update("nesterov" if self.nesterov else "momentum", 1, (("momentum", self.momentum),))

    def get_config(self) -> dict:
        """Arguments that build the same optimizer again."""
        return {"learning_rate": self.learning_rate, "momentum": self.momentum, "nesterov": self.nesterov}


ONE = -40.0  # 1 - e^x is 1 in float64 for any x below this


def _missing(beta: float, t: np.ndarray) -> np.ndarray | float:
    """``1 - beta^t``, without the digits that the difference would lose: what a moment lacks after t (ascending) steps.

    A power takes up to 80 ns where it underflows (0.9^10000), this takes 5 to 10, and nothing once all are 1.
    """
    if beta == 0 or t[0] * math.log(beta) < ONE:
        return 1.0
    return -np.expm1(t * math.log(beta))


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), in Keras' form.

    ``m += (1 - beta_1)(g - m)``, ``v += (1 - beta_2)(g^2 - v)`` and
    ``p -= learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)``.

    Parameters
    ----------
    learning_rate : float
        At least 0.
    beta_1, beta_2 : float
        Decay of the two moments, from 0 to less than 1.
    epsilon : float
        Added to the root; above 0.  (torch and scikit-learn use 1e-8, torch after the bias correction.)

    Examples
    --------
    >>> import fastnn
    >>> fastnn.optimizers.Adam().learning_rate
    0.001
    """

    name = "adam"

    def __init__(
        self, learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7
    ) -> None:
        super().__init__(learning_rate)
        self.beta_1 = _names.number(beta_1, "beta_1", low=0, high=1, open_high=True)
        self.beta_2 = _names.number(beta_2, "beta_2", low=0, high=1, open_high=True)
        self.epsilon = _names.number(epsilon, "epsilon", low=0, open_low=True)

    def rates(self, steps: int) -> np.ndarray:
        """Step sizes with the bias corrections, float64."""
        t = np.arange(self.iterations + 1, self.iterations + steps + 1, dtype=np.float64)
        rates = self.learning_rate * np.sqrt(_missing(self.beta_2, t)) / _missing(self.beta_1, t)
        return rates if isinstance(rates, np.ndarray) else np.full(steps, rates)

    def update(self) -> Update:
        """What the optimizer is in a plan."""
        constants = (("decay_1", 1 - self.beta_1), ("decay_2", 1 - self.beta_2), ("epsilon", self.epsilon))
        return Update("adam", 2, constants)

    def get_config(self) -> dict:
        """Arguments that build the same optimizer again."""
        return {
            "learning_rate": self.learning_rate,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in Keras' form.

    ``p -= learning_rate weight_decay p``, then as `Adam`.  Biases decay, too, as in Keras.

    Parameters
    ----------
    learning_rate : float
        At least 0.
    weight_decay : float
        At least 0.  (torch has 0.01.)
    beta_1, beta_2, epsilon : float
        As for `Adam`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.optimizers.AdamW(weight_decay=0.01).weight_decay
    0.01
    """

    name = "adamw"

    def __init__(
        self,
        learning_rate: float = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon)
        self.weight_decay = _names.number(weight_decay, "weight_decay", low=0)

    def rates(self, steps: int) -> np.ndarray:
        """Adam's step sizes, and what a parameter keeps of itself: float64, (steps, 2)."""
        keep = np.full(steps, 1 - self.learning_rate * self.weight_decay)
        return np.stack([super().rates(steps), keep], axis=1)

    def update(self) -> Update:
        """What the optimizer is in a plan."""
        return Update("adamw", 2, super().update().constants)

    def get_config(self) -> dict:
        """Arguments that build the same optimizer again."""
        return super().get_config() | {"weight_decay": self.weight_decay}


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton, 2012), in Keras' form.

    ``v = rho v + (1 - rho) g^2`` and ``p -= learning_rate g / sqrt(v + epsilon)``, or with momentum
    ``m = momentum m + learning_rate g / sqrt(v + epsilon)`` and ``p -= m``.

    Parameters
    ----------
    learning_rate : float
        At least 0.
    rho : float
        Decay of the mean of squares, from 0 to less than 1.
    momentum : float
        From 0 to 1.
    epsilon : float
        Added below the root; above 0.  (torch adds 1e-8 to the root, has rho 0.99 and a learning rate of 0.01.)

    Notes
    -----
    Keras' ``centered=True``, which subtracts the squared mean of the gradients, is not offered: rounding can make what
    is left below the root negative.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.optimizers.RMSprop(momentum=0.9)
    RMSprop(learning_rate=0.001, rho=0.9, momentum=0.9, epsilon=1e-07)
    """

    name = "rmsprop"

    def __init__(
        self,
        learning_rate: float = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
    ) -> None:
        super().__init__(learning_rate)
        self.rho = _names.number(rho, "rho", low=0, high=1, open_high=True)
        self.momentum = _names.number(momentum, "momentum", low=0, high=1)
        self.epsilon = _names.number(epsilon, "epsilon", low=0, open_low=True)
        if centered:
            raise ValueError(f"centered must be False, the only form that RMSprop has here; got {centered!r}")

    def update(self) -> Update:
        """What the optimizer is in a plan."""
        constants = (("decay_2", 1 - self.rho), ("epsilon", self.epsilon))
        if self.momentum == 0:
            return Update("rmsprop", 1, constants)
        return Update("rmsprop_momentum", 2, (*constants, ("momentum", self.momentum)))

    def get_config(self) -> dict:
        """Arguments that build the same optimizer again."""
        return {
            "learning_rate": self.learning_rate,
            "rho": self.rho,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


CLASSES: dict[str, type[SGD] | type[Adam] | type[RMSprop]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
}


def get(identifier: object) -> Optimizer:
    """Return the optimizer that `identifier` (a name or an `Optimizer`) stands for.

    Raises
    ------
    ValueError
        If there is no optimizer of that name; the nearest is suggested.
    TypeError
        If `identifier` is neither.
    """
    if isinstance(identifier, Optimizer):
        return identifier
    if isinstance(identifier, str):
        return _names.find(identifier.lower(), CLASSES, "optimizer")()
    raise TypeError(f"optimizer must be a name or a fastnn.optimizers object, got {identifier!r}")
