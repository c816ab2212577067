"""Rivals that train: one class for each library, all with the same weights, batches and Adam.

``network()`` trains one shuffled epoch of ``network.steps`` steps; ``network.epoch(shuffle=False)`` takes the samples
in order, for the check; ``network.weights()`` returns kernel and bias of each layer; ``network.predict(row)`` takes and
returns NumPy arrays.  Class numbers mean cross-entropy, of a sigmoid where there is one output, else of a softmax;
targets that are floats mean the squared error of a linear output.
"""

from benchmarks.networks.base import Network
from benchmarks.networks.fastnn_fit import FastnnNetwork
from benchmarks.networks.jax_scan import JaxNetwork
from benchmarks.networks.numpy_by_hand import NumpyNetwork, numpy_adam
from benchmarks.networks.python_loops import BATCHES as PYTHON_BATCHES
from benchmarks.networks.python_loops import PythonNetwork, adam_loop
from benchmarks.networks.sklearn_mlp import SklearnNetwork
from benchmarks.networks.torch_compiled import TorchCompiledNetwork
from benchmarks.networks.torch_eager import TorchNetwork

__all__ = ["NETWORKS", "PYTHON_BATCHES", "FastnnNetwork", "Network", "adam_loop", "numpy_adam"]

NETWORKS: dict[str, type[Network]] = {
    "python": PythonNetwork,
    "numpy": NumpyNetwork,
    "sklearn": SklearnNetwork,
    "torch": TorchNetwork,
    "torch_compiled": TorchCompiledNetwork,
    "jax": JaxNetwork,
    "fastnn": FastnnNetwork,
}
