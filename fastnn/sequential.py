"""`Sequential`: a stack of layers that trains and predicts, with Keras' methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastnn import _names, backend, batches, data, fitting, losses, metrics, optimizers, profiling, saving, training
from fastnn.callbacks import Callback, History
from fastnn.layers import Activation, Dense, Dropout, Input, Layer, Rescaling, Shape
from fastnn.network import Network
from fastnn.stages import Objective
from fastnn.summary import summary_table
from fastnn.threads import check_threads


class Sequential:
    """A stack of layers.

    Parameters
    ----------
    layers : list of Layer, optional
        An `Input` first fixes the shape of a sample; without one it is taken from the first data.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic.
    device : {"cpu"}
        Where the model runs.
    seed : int, optional
        Decides initial weights, shuffling and dropout.  The same seed gives the same bits, whatever the number of
        threads.
    n_threads : int, optional
        Threads to use at most; the default is `fastnn.get_num_threads`.  Small steps take one, and those of middling
        size one or all, whichever is faster while they run; never more than there are CPUs, since others would wait
        for these.  The results are the same.
    name : str, optional
        Shown by `summary`.

    Attributes
    ----------
    layers : list of Layer
        The layers, without `Input`.
    optimizer, loss
        Set by `compile`.
    history : History or None
        What the last `fit` recorded.
    stop_training : bool
        A callback sets it to end `fit` after the epoch.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> y = np.array([0, 1, 1, 0])
    >>> model = fastnn.Sequential(
    ...     [fastnn.layers.Dense(8, activation="tanh"), fastnn.layers.Dense(1, activation="sigmoid")], seed=1
    ... )
    >>> model.compile(fastnn.optimizers.Adam(0.1), "binary_crossentropy", ["accuracy"])
    >>> history = model.fit(x, y, epochs=200, verbose=0)
    >>> model.predict(x).round().ravel()
    array([0., 1., 1., 0.], dtype=float32)
    """

    def __init__(
        self,
        layers: Iterable[Layer] | None = None,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        seed: int | None = None,
        n_threads: int | None = None,
        name: str | None = None,
    ) -> None:
        self.dtype = _check_dtype(dtype)
        self.device = device
        self.backend = backend.get(device)
        self.seed = None if seed is None else _names.integer(seed, "seed", low=0)
        self.n_threads = n_threads
        self.name = name or "sequential"
        self.layers: list[Layer] = []
        self.optimizer: optimizers.Optimizer | None = None
        self.loss: losses.Loss | None = None
        self.metrics: list[str] = []
        self.stop_training = False
        self.history: History | None = None
        self.network: Network | None = None
        self._input: Input | None = None
        self._programs = training.Programs()
        streams = np.random.SeedSequence(self.seed).spawn(3)
        self._init_rng, self.shuffle_rng = (np.random.default_rng(s) for s in streams[:2])
        self.dropout_seed = int(streams[2].generate_state(1, np.uint64)[0] >> 1)
        for layer in layers or ():
            self.add(layer)

    @property
    def n_threads(self) -> int | None:
        """Threads that steps use at most; None for the default."""
        return self._n_threads

    @n_threads.setter
    def n_threads(self, n_threads: int | None) -> None:
        check_threads(n_threads)
        self._n_threads = n_threads

    # --- building -----------------------------------------------------------------------------------------------

    def add(self, layer: Layer) -> None:
        """Append a layer.

        Raises
        ------
        TypeError
            If `layer` is not a layer.
        ValueError
            If it does not fit at this place or its name is taken; the model is then as before.
        """
        if not isinstance(layer, Layer):
            raise TypeError(f"add needs a fastnn layer, got {layer!r}")
        if isinstance(layer, Input):
            if self.layers or self._input:
                raise ValueError("Input must be the first layer")
            self._input = layer
            return
        if isinstance(layer, Rescaling) and any(isinstance(e, Dense | Activation | Dropout) for e in self.layers):
            raise ValueError("Rescaling must come before every Dense, Activation and Dropout layer")
        if layer.name is not None and layer.name in (e.name for e in self.layers):
            raise ValueError(f"the model already has a layer named {layer.name!r}")
        candidate = [*self.layers, layer]
        network = None
        shape = self.input_shape
        if layer.name is None:
            layer.name = _free_name(layer, {e.name for e in self.layers})
        if shape is not None:
            network = self._build(candidate, shape, self.network)
        self.layers = candidate
        self._adopt(network)

    def pop(self) -> Layer:
        """Remove the last layer and return it."""
        if not self.layers:
            raise ValueError("pop from a model without layers")
        last, rest = self.layers[-1], self.layers[:-1]
        shape = self.input_shape
        network = self._build(rest, shape, self.network) if shape is not None and rest else None
        self.layers = rest
        self._adopt(network)
        return last

    @property
    def input_shape(self) -> Shape | None:
        """Shape of one sample, or None before it is known."""
        if self.network is not None:
            return self.network.input_shape
        return self._input.shape if self._input else None

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one output, or None before the model is built."""
        return self.network.shapes[-1] if self.network else None

    def build(self, input_shape: Shape) -> None:
        """Create the parameters for samples of this shape (without the batch dimension)."""
        shape = Input(input_shape).shape
        if self.network is not None and shape == self.network.input_shape:
            return
        if self.network is not None:
            raise ValueError(f"the model is built for samples of shape {self.network.input_shape}, not {shape}")
        self._adopt(self._build(self.layers, shape, None))

    def _build(self, layers: list[Layer], shape: Shape, old: Network | None) -> Network:
        """A network that the model may adopt; the model's own generator moves on only then."""
        return Network(layers, shape, self.dtype, self.backend, copy.deepcopy(self._init_rng), old)

    def _adopt(self, network: Network | None) -> None:
        self.network = network
        if network is not None:
            self._init_rng = network.rng
        self._programs.clear()
        if self.optimizer is not None:
            self.optimizer.iterations = 0

    def _built(self) -> Network:
        if self.network is None:
            raise RuntimeError(
                "the model has no parameters yet: start it with an Input layer, call build(input_shape) or fit it first"
            )
        return self.network

    # --- compiling ----------------------------------------------------------------------------------------------

    def compile(self, optimizer: object = "adam", loss: object = None, metrics: object = None) -> None:
        """Choose how the model is trained; no code is compiled per model, its kernels exist already.

        Parameters
        ----------
        optimizer : str or Optimizer
            For example ``"adam"`` or ``fastnn.optimizers.SGD(0.1, momentum=0.9)``.
        loss : str or Loss
            For example ``"sparse_categorical_crossentropy"``.
        metrics : list of str, optional
            For example ``["accuracy"]``.

        Raises
        ------
        ValueError
            If a name is unknown (the nearest is suggested), or loss, last activation and metrics do not fit.
        """
        chosen = optimizers.get(optimizer)
        objective = None if loss is None else losses.get(loss)
        names = _check_metrics(metrics)
        if objective is not None and self.network is not None:
            self._objective(objective, names, self.network)
        self.optimizer, self.loss, self.metrics = chosen, objective, names
        if self.network is not None:
            self.network.reset_state()
        self._programs.clear()

    def _objective(self, loss: losses.Loss, names: list[str], network: Network) -> Objective:
        return loss.objective(network.last_activation, metrics.resolve(names, loss, network.units))

    def _compiled(self) -> tuple[losses.Loss, optimizers.Optimizer]:
        if self.loss is None or self.optimizer is None:
            raise RuntimeError("the model is not compiled: call compile(optimizer, loss) first")
        return self.loss, self.optimizer

    def _network_for(self, x: np.ndarray) -> Network:
        """The model's network, or one built for these samples, which is the model's only once it is adopted."""
        if self.network is not None:
            return self.network
        if not self.layers:
            raise RuntimeError("the model has no layers")
        network = self._build(self.layers, x.shape[1:], None)
        if self.loss is not None:
            self._objective(self.loss, self.metrics, network)
        return network

    # --- training and using -------------------------------------------------------------------------------------

    def fit(
        self,
        x: object,
        y: object = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: list[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: object = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> History:
        """Train the model.

        Parameters
        ----------
        x : array of shape (n, ...), or a batch source
            Samples.  float32, float64 and uint8 are read in place, batch by batch; other numbers are converted once,
            and batch by batch where the array is a file mapped to memory (`numpy.memmap`).  Where most are 0 (images
            of digits, one-hot columns), a wide first layer takes a third of the time, with the same results.

            Or what yields batches ``(x, y)`` or ``(x, y, sample_weight)`` of any sizes: a generator, an object with
            ``__len__`` and ``__getitem__`` whose items are batches (Keras' `PyDataset`), or any other iterable, such
            as torch's `DataLoader`.  Then `y`, `batch_size`, `sample_weight` and `validation_split` are not given.
        y : array
            Targets: class numbers (n,) or values (n, units), as the loss needs.
        batch_size : int, optional
            Samples per step; 32 by default.  The last step takes what remains.
        epochs : int
            The epoch to train up to (counted from `initial_epoch`).
        verbose : {"auto", 0, 1, 2}
            0 is silent, 1 draws a progress bar on standard error ("auto": only on a terminal), 2 prints a line per
            epoch.
        callbacks : list of Callback, optional
            Called around epochs and batches.
        validation_split : float
            Share of the samples, taken from the end, that is not trained on but evaluated after each epoch.
        validation_data : tuple or batch source, optional
            ``(x, y)`` or ``(x, y, sample_weight)`` to evaluate instead.
        shuffle : bool
            Whether each epoch takes the samples (of a batch source with ``__getitem__`` the batches; other sources
            have their own order) in a new random order.
        class_weight : dict, optional
            From class to the weight of its samples.
        sample_weight : array of shape (n,), optional
            Weights of the samples.
        initial_epoch : int
            Where counting starts.
        steps_per_epoch : int, optional
            Batches that make an epoch; the next one goes on behind them.  By default an epoch is all batches.
        validation_steps : int, optional
            Batches to evaluate; by default all.
        validation_batch_size : int, optional
            Samples evaluated at once, which affects speed only; with `validation_steps` they are a step (by default
            `batch_size` samples are).
        validation_freq : int or list of int
            Evaluate after every so many epochs, or after these (counted from 1).

        Returns
        -------
        History
            With the loss and metrics of every epoch in ``history``.

        Raises
        ------
        RuntimeError
            If the model is not compiled.
        TypeError, ValueError
            If an argument does not fit; the model is then unchanged.

        Notes
        -----
        Ctrl-C raises KeyboardInterrupt after the current batch: the model is usable as of that batch.  So does an error
        that a batch source raises: it is passed on as it is.
        """
        return fitting.fit(
            self,
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
            validation_freq=validation_freq,
        )

    def evaluate(
        self,
        x: object,
        y: object = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: object = None,
        steps: int | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Return the loss and the metrics over samples.

        Parameters
        ----------
        x, y, sample_weight : arrays, or x a batch source
            As in `fit`.
        batch_size : int, optional
            Samples computed at once; it affects speed only.
        verbose : {"auto", 0, 1, 2}
            1 and 2 print the figures; "auto" does not.
        steps : int, optional
            Batches to evaluate (of `batch_size` samples where x is an array, 32 by default); by default all.
        return_dict : bool
            Whether to return a dict instead of a list.

        Returns
        -------
        float, list of float, or dict
            The loss alone without metrics, else ``[loss, metric, ...]``.
        """
        logs = fitting.evaluate(self, x, y, batch_size=batch_size, sample_weight=sample_weight, steps=steps)
        if verbose in (1, 2):
            print(", ".join(f"{name}={value:.4f}" for name, value in logs.items()))
        if return_dict:
            return logs
        values = list(logs.values())
        return values if len(values) > 1 else values[0]

    def predict(
        self, x: object, batch_size: int | None = None, verbose: str | int = "auto", steps: int | None = None
    ) -> np.ndarray:
        """Return the outputs for samples, (n, units) in the model's dtype.

        Several threads may call this, `predict_on_batch` or `evaluate` at once; they take turns.

        Parameters
        ----------
        x : array of shape (n, ...), or a batch source
            Samples, as in `fit`; a batch is x or a tuple that begins with it.
        batch_size : int, optional
            Samples computed at once; it affects speed and memory only.
        verbose
            Accepted for compatibility; prediction shows no progress.
        steps : int, optional
            Batches to predict (of `batch_size` samples where x is an array, 32 by default); by default all.

        Examples
        --------
        >>> import fastnn, numpy as np
        >>> model = fastnn.Sequential([fastnn.layers.Dense(2, kernel_initializer="ones")])
        >>> model.predict(np.eye(3))
        array([[1., 1.],
               [1., 1.],
               [1., 1.]], dtype=float32)
        """
        if steps is None and batch_size is None:
            outputs = self._programs.direct(x)
            if outputs is not None:
                return outputs
        if steps is None and type(x) is np.ndarray and not data.is_whole(x):  # the usual case
            return training.predict(self, x, batch_size)
        return fitting.predict(self, x, batch_size, steps)

    def predict_on_batch(self, x: object) -> np.ndarray:
        """Return the outputs for samples computed as one batch."""
        outputs = self._programs.direct(x)
        return training.predict(self, x, None, whole=True) if outputs is None else outputs

    def train_on_batch(
        self,
        x: object,
        y: object = None,
        sample_weight: object = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Do one optimizer step on a batch and return its loss and metrics (as before the step)."""
        logs = batches.train_on_batch(self, x, y, sample_weight, class_weight)
        if return_dict:
            return logs
        values = list(logs.values())
        return values if len(values) > 1 else values[0]

    def profile(
        self,
        x: object,
        y: object = None,
        batch_size: int | None = None,
        sample_weight: object = None,
        seconds: float = 0.5,
    ) -> profiling.Profile:
        """Return where the time of a step goes, operation by operation.

        Steps are run on copies of the parameters and of the optimizer's state: the model does not change.

        Parameters
        ----------
        x, y, sample_weight : arrays
            As in `fit`, whose steps are profiled; without `y` those of `predict` are.  A few batches are enough.
        batch_size : int, optional
            Samples per step; by default that of `fit` or `predict`.
        seconds : float
            How long steps are timed; the figures are medians over them.

        Returns
        -------
        Profile
            Prints as a table; ``rows`` holds its lines, ``plot`` draws it.

        Raises
        ------
        RuntimeError
            If `y` is given and the model is not compiled.
        TypeError, ValueError
            If an argument does not fit.

        Examples
        --------
        >>> import fastnn, numpy as np
        >>> x, y = np.zeros((64, 20)), np.zeros(64)
        >>> model = fastnn.Sequential([fastnn.layers.Dense(8, activation="relu"), fastnn.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> profile = model.profile(x, y, seconds=0.01)
        >>> profile.rows[0].name, profile.rows[1].name
        ('input gather x', 'dense forward')
        """
        return profiling.profile(self, x, y, batch_size=batch_size, sample_weight=sample_weight, seconds=seconds)

    # --- parameters ---------------------------------------------------------------------------------------------

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of all parameters: for each `Dense` its kernel (inputs, units), then its bias (units,)."""
        return [view.copy() for _, view in self._built().views()]

    def set_weights(self, weights: list) -> None:
        """Set all parameters, in the order of `get_weights`.

        Raises
        ------
        ValueError
            If the number of arrays, a shape or a value does not fit; the model is then unchanged.
        """
        network = self._built()
        network.assign([name for name, _ in network.views()], weights)

    def count_params(self) -> int:
        """Return the number of parameters."""
        return sum(view.size for _, view in self._built().views())

    def summary(self, print_fn: Callable[[str], None] | None = None) -> None:
        """Print a table of the layers, their output shapes and numbers of parameters.

        Parameters
        ----------
        print_fn : callable, optional
            Called with the text instead of printing it.
        """
        (print_fn or print)(summary_table(self))

    def save_weights(self, filepath: str | Path) -> None:
        """Write the parameters to a safetensors file, atomically."""
        saving.save(self, filepath, whole=False)

    def load_weights(self, filepath: str | Path) -> None:
        """Read parameters from a file that `save_weights` or `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged, not from fastnn, or of a model with other layers; the model is then unchanged.
        """
        saving.load_weights(self, filepath)

    def save(self, filepath: str | Path) -> None:
        """Write the model (layers, parameters, optimizer and its state) to one safetensors file, atomically.

        `fastnn.load_model` reads it.  The file holds arrays and JSON; nothing in it is ever executed.
        """
        saving.save(self, filepath, whole=True)

    def __repr__(self) -> str:
        return f"<Sequential {self.name!r}: {len(self.layers)} layers, {self.dtype}, on {self.device}>"


def _free_name(layer: Layer, taken: set[str | None]) -> str:
    """dense, dense_1, ..."""
    base = type(layer).__name__.lower()
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def _check_metrics(names: object) -> list[str]:
    return metrics.check(names)


def _check_dtype(dtype: object) -> str:
    try:
        name = np.dtype(dtype).name  # type: ignore[call-overload]
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "float64") or dtype is None:
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return name
