"""What a launch costs the host, alone, in a graph and cooperatively."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from benchmarks.gpu import compile, driver
from benchmarks.gpu.compile import POINTER, Kernel
from benchmarks.gpu.measure import Report, device_seconds, host_seconds

int32, float32 = types.int32, types.float32
ARRAYS = (0, 1, 4, 16)
NODES = (10, 100)
THREADS = 32
SIZE = 32


def with_arguments(count: int) -> Callable[..., None]:
    """A kernel that adds 1 to what its first argument leads to, whatever the others are."""
    names = [f"a{i}" for i in range(count)]
    body = "i = cuda.grid(1)\n    if i < a0_size:\n        a0[i] += float32(1)" if count else "pass"
    size = "SIZE"
    text = f"def kernel({', '.join(names)}):\n    {body.replace('a0_size', size)}\n"
    namespace: dict[str, Any] = {"cuda": cuda, "float32": float32, "SIZE": SIZE}
    exec(text, namespace)
    return namespace["kernel"]


def increment(a, steps):
    # One block; `steps` makes it as long as a test wants.
    i = cuda.threadIdx.x
    for _ in range(steps):
        a[i] += float32(1)


def increment_in_turn(a, steps):
    # The same with the whole grid's barrier between steps: block 0 works, the others wait.
    i = cuda.threadIdx.x
    grid = cuda.cg.this_grid()
    for _ in range(steps):
        if cuda.blockIdx.x == 0:
            a[i] += float32(1)
        grid.sync()


KERNELS = [
    Kernel("add one", increment, (POINTER, int32), threads=THREADS, expected=("add",)),
    Kernel(
        "add one, cooperative",
        increment_in_turn,
        (POINTER, int32),
        threads=THREADS,
        grid_group=True,
        expected=("cudaCGSynchronize",),
    ),
    *[Kernel(f"{n} pointers", with_arguments(n), (POINTER,) * n, threads=THREADS) for n in ARRAYS],
]


def measure(report: Report) -> None:
    """Report all of it."""
    for count in ARRAYS:
        report.attempt(f"Numba, {count} arrays", _numba, report, count, False)
    for count in ARRAYS[1:]:
        report.attempt(f"Numba, {count} pointers", _numba, report, count, True)
    for count in ARRAYS:
        report.attempt(f"driver through ctypes, {count} pointers", _driver, report, count)
    for nodes in NODES:
        report.attempt(f"graph of {nodes} kernels", _graph, report, nodes)
    for blocks in (1, driver.attribute(driver.MULTIPROCESSORS)):
        report.attempt(f"cooperative launch, {blocks} blocks", _cooperative, report, blocks)
    report.attempt("Numba, graph of 100 kernels", _numba_graph, report, 100)


def _count_wrong(values: np.ndarray, launches: int) -> int:
    return int(np.count_nonzero(values != launches))


def _numba(report: Report, count: int, pointers: bool) -> None:
    function = with_arguments(count)
    arrays = [cuda.to_device(np.zeros(SIZE, np.float32)) for _ in range(max(count, 1))]
    if pointers:
        kernel = cuda.jit(types.void(*[POINTER] * count))(function)
        arguments = [e.device_ctypes_pointer.value for e in arrays]
    else:
        kernel, arguments = cuda.jit(function), arrays
    configured, launches = kernel[1, THREADS], 0

    def launch() -> None:
        nonlocal launches
        launches += 1
        configured(*arguments[:count])

    seconds = host_seconds(launch, cuda.synchronize)
    wrong = _count_wrong(arrays[0].copy_to_host(), launches) if count else None
    what = f"Numba, {count} {'pointers' if pointers else 'arrays'}"
    report.add(what, seconds * 1e6, "us", wrong, "elements wrong" if count else "")


def _load(name: str) -> driver.Function:
    (kernel,) = [e for e in KERNELS if e.name == name]
    code = compile.build(kernel, driver.capability())
    return driver.Function(code.binary, code.entry)


def _driver(report: Report, count: int) -> None:
    stream = driver.Stream()
    memory = [driver.Memory.zeros(4 * SIZE) for _ in range(max(count, 1))]
    queue, launches = _load(f"{count} pointers").prepare((1, 1, 1), THREADS, memory[:count], stream), 0

    def launch() -> None:
        nonlocal launches
        launches += 1
        queue()

    seconds = host_seconds(launch, stream.synchronize)
    wrong = _count_wrong(memory[0].read((SIZE,), np.float32), launches) if count else None
    report.add(
        f"driver through ctypes, {count} pointers", seconds * 1e6, "us", wrong, "elements wrong" if count else ""
    )


def _graph(report: Report, nodes: int) -> None:
    stream, memory = driver.Stream(), driver.Memory.zeros(4 * SIZE)
    queue = _load("add one").prepare((1, 1, 1), THREADS, [memory, ctypes.c_int32(1)], stream)
    queue()
    stream.synchronize()
    memory.clear()
    graph, graphs = stream.capture(lambda: [queue() for _ in range(nodes)] and None), 0

    def launch() -> None:
        nonlocal graphs
        graphs += 1
        graph()

    on_host = host_seconds(launch, stream.synchronize, calls=20)
    on_device = device_seconds(stream, launch, least=20)
    wrong = _count_wrong(memory.read((SIZE,), np.float32), nodes * graphs)
    report.add(f"graph of {nodes} kernels, device, per kernel", on_device / nodes * 1e6, "us", wrong, "elements wrong")
    report.add(f"graph of {nodes} kernels, host, per launch of the graph", on_host * 1e6, "us")
    in_line = device_seconds(stream, lambda: [queue() for _ in range(nodes)] and None)
    report.add(f"{nodes} kernels one by one, device, per kernel", in_line / nodes * 1e6, "us")


def _cooperative(report: Report, blocks: int) -> None:
    stream, memory = driver.Stream(), driver.Memory.zeros(4 * SIZE)
    function = _load("add one, cooperative")
    arguments = [memory, ctypes.c_int32(1)]
    queue, launches = function.prepare((blocks, 1, 1), THREADS, arguments, stream, cooperative=True), 0

    def launch() -> None:
        nonlocal launches
        launches += 1
        queue()

    on_host = host_seconds(launch, stream.synchronize)
    on_device = device_seconds(stream, launch, least=20)
    wrong = _count_wrong(memory.read((SIZE,), np.float32), launches)
    what = f"cooperative launch, {blocks} blocks, one barrier"
    report.add(f"{what}, host", on_host * 1e6, "us", wrong, "elements wrong")
    report.add(f"{what}, device", on_device * 1e6, "us")


def _numba_graph(report: Report, nodes: int) -> None:
    from cuda.core import Device

    core = Device()
    core.set_current()
    stream, array = core.create_stream(), cuda.to_device(np.zeros(SIZE, np.float32))
    kernel = cuda.jit(types.void(POINTER))(with_arguments(1))
    address = array.device_ctypes_pointer.value
    kernel[1, THREADS](address)
    cuda.synchronize()
    builder = stream.create_graph_builder()
    builder.begin_building()
    for _ in range(nodes):
        kernel[1, THREADS, builder](address)
    graph, graphs = builder.end_building().complete(), 0

    def launch() -> None:
        nonlocal graphs
        graphs += 1
        graph.launch(stream)

    seconds = host_seconds(launch, stream.sync, calls=20)
    wrong = _count_wrong(array.copy_to_host(), 1 + nodes * graphs)
    report.add(f"Numba, graph of {nodes} kernels, host, per launch", seconds * 1e6, "us", wrong, "elements wrong")
