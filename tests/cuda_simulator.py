"""Runs the GPU probe's kernels as Python, thread by thread, the instructions of `ptx` and `hopper` played by NumPy.

All blocks of a grid are resident, and every thread is a greenlet that runs until it waits for others.  The order of
the threads is random, and copies that a kernel only begins are made when it waits for them, so that a missing barrier
shows.
What it cannot tell is whether a device reads layouts and instructions as `Hopper` below does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import greenlet
import numpy as np

WARP, WARPGROUP = 32, 128
PATIENCE = 200  # rounds in which threads only looked at memory, before the grid is called stuck
ARENA_ALIGNMENT = 1024
DYNAMIC_BEGIN = 1024 + 96  # the system's, and static arrays: a linker need not align what an alignment was asked for


class Thread(greenlet.greenlet):
    """A thread and what it waits for: None, "look" (it spins), "grid", or a group of threads."""

    def __init__(self, function: Callable[[], None], block: Block, number: int) -> None:
        super().__init__(function)
        self.block, self.number, self.waits = block, number, None
        self.shared_calls = 0
        self.copies: list[Any] = []
        self.groups: list[list[Any]] = []


class Block:
    """Shared memory, and what threads of a block exchange.  Arrays lie behind the dynamic memory."""

    def __init__(self, place: tuple[int, int, int], dynamic: int) -> None:
        size = 256 * 1024
        self._room = np.full(size + ARENA_ALIGNMENT, 0xFF, np.uint8)  # not a number, until someone writes
        begin = -self._room.ctypes.data % ARENA_ALIGNMENT
        self.memory = self._room[begin : begin + size]
        self.place, self.used, self.arrays = place, DYNAMIC_BEGIN + dynamic, []
        self.barriers: dict[int, dict[str, int]] = {}
        self.exchanged: dict[Any, Any] = {}
        self.threads: list[Thread] = []

    def array(self, call: int, size: int, dtype: Any, alignment: int) -> np.ndarray:
        if call == len(self.arrays):
            if size == 0:
                self.arrays.append(self.memory[DYNAMIC_BEGIN:].view(dtype))
            else:
                begin = -(-self.used // alignment) * alignment
                self.used = begin + size * np.dtype(dtype).itemsize
                self.arrays.append(self.memory[begin : self.used].view(dtype))
        return self.arrays[call]

    def address(self, array: np.ndarray, index: int) -> int:
        return array.ctypes.data + int(index) * array.itemsize - self.memory.ctypes.data


def me() -> Thread:
    return greenlet.getcurrent()


def wait(what: Any) -> None:
    thread = me()
    thread.waits = what
    thread.parent.switch()


def together(size: int, value: Any, function: Callable[[list[Any]], Any]) -> Any:
    """What a function makes of the values that all threads of this one's warp or warpgroup give, once all have."""
    thread = me()
    group = (size, thread.number // size)
    given = thread.block.exchanged.setdefault(group, [])
    given.append((thread.number, value))
    wait(group)
    if len(given) == size:  # this is the first to go on
        given.append(function([e for _, e in sorted(given, key=lambda pair: pair[0])]))
        thread.block.exchanged[group] = []
    return given[-1]


class Grid:
    """Stands for `numba.cuda` in the module of a kernel."""

    def __init__(self) -> None:
        self.gridDim = SimpleNamespace(x=1, y=1, z=1)
        self.shared = SimpleNamespace(array=self._shared_array)
        self.local = SimpleNamespace(array=lambda size, dtype: np.full(size, 0xFFFFFFFF, np.uint32).view(dtype))
        self.cg = SimpleNamespace(this_grid=lambda: SimpleNamespace(sync=lambda: wait("grid")))

    @property
    def threadIdx(self) -> Any:
        return SimpleNamespace(x=me().number, y=0, z=0)

    @property
    def blockIdx(self) -> Any:
        return SimpleNamespace(**dict(zip("xyz", me().block.place, strict=True)))

    @staticmethod
    def syncthreads() -> None:
        wait("block")

    @staticmethod
    def _shared_array(size: int, dtype: Any, alignment: int = 8) -> np.ndarray:
        thread = me()
        thread.shared_calls += 1
        return thread.block.array(thread.shared_calls - 1, size, dtype, alignment)

    def run(
        self,
        kernel: Callable[..., None],
        grid: tuple[int, int, int],
        threads: int,
        arguments: tuple[Any, ...],
        dynamic: int = 0,
        seed: int = 0,
    ) -> None:
        """Run a kernel to its end; raises RuntimeError if its threads wait for ever."""
        self.gridDim = SimpleNamespace(**dict(zip("xyz", grid, strict=True)))
        places = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
        blocks = [Block(place, dynamic) for place in places]
        for block in blocks:
            block.threads = [Thread(lambda: kernel(*arguments), block, i) for i in range(threads)]
        rng, live, idle = random.Random(seed), [t for b in blocks for t in b.threads], 0
        while live:
            rng.shuffle(live)
            moved = False
            for thread in live:
                if thread.waits in (None, "look"):
                    moved |= thread.waits is None
                    thread.waits = None
                    thread.switch()
                    moved |= thread.dead or thread.waits != "look"
            live = [t for t in live if not t.dead]
            moved |= _release(blocks, live)
            idle = 0 if moved else idle + 1
            if idle > PATIENCE:
                raise RuntimeError(f"{len(live)} threads wait for ever, for {sorted({str(t.waits) for t in live})}")


def _release(blocks: list[Block], live: list[Thread]) -> bool:
    """Let go on who waited for threads that have all come."""
    released = False
    groups: dict[Any, list[Thread]] = {}
    for thread in live:
        if isinstance(thread.waits, tuple):
            groups.setdefault((id(thread.block), thread.waits), []).append(thread)
    for (_, (size, _)), threads in groups.items():
        if len(threads) == size:
            released = True
            for thread in threads:
                thread.waits = None
    for block in blocks:
        there = [t for t in block.threads if not t.dead]
        if there and all(t.waits == "block" for t in there):
            released = True
            for thread in there:
                thread.waits = None
    if live and all(t.waits == "grid" for t in live):
        released = True
        for thread in live:
            thread.waits = None
    return released


# --- ptx --------------------------------------------------------------------------------------------------------------


def bits(x: Any) -> int:
    return int(np.float32(x).view(np.uint32))


def floats(words: Any) -> np.ndarray:
    return np.array(words, np.uint32).view(np.float32)


class Ptx:
    """Stands for `benchmarks.gpu.ptx`."""

    def pointer(self, array: np.ndarray) -> np.ndarray:
        return array

    def load4(self, memory: np.ndarray, index: int) -> tuple[Any, ...]:
        assert index % 4 == 0, f"load of four at {index}"
        assert 0 <= index <= len(memory) - 4, f"load of four at {index} of {len(memory)}"
        return tuple(memory[index : index + 4])

    def store4(self, memory: np.ndarray, index: int, values: tuple[Any, ...]) -> None:
        assert index % 4 == 0, f"store of four at {index}"
        assert 0 <= index <= len(memory) - 4, f"store of four at {index} of {len(memory)}"
        memory[index : index + 4] = values

    def load_past_l1(self, memory: np.ndarray, index: int) -> Any:
        return memory[index]

    def copy_async16(self, array: np.ndarray, index: int, pointer: np.ndarray, source: int) -> None:
        to, of = array.view(np.uint8), pointer.view(np.uint8)
        at, begin = int(index) * array.itemsize, int(source) * pointer.itemsize
        assert at % 16 == begin % 16 == 0, f"copy of 16 bytes from {begin} to {at}"
        assert 0 <= begin <= len(of) - 16, f"copy from {begin} of {len(of)} bytes"
        me().copies.append((to[at : at + 16], of[begin : begin + 16]))

    def commit_copies(self) -> None:
        thread = me()
        thread.groups.append(thread.copies)
        thread.copies = []

    def _finish(self, but: int) -> None:
        groups = me().groups
        while len(groups) > but:
            for to, of in groups.pop(0):
                to[:] = of

    def wait_all_copies(self) -> None:
        self._finish(0)

    def wait_all_but_one(self) -> None:
        self._finish(1)

    def floats_of_bytes(self, word: Any) -> tuple[Any, ...]:
        return tuple(np.float32(int(word) >> 8 * i & 255) for i in range(4))

    def add_release(self, memory: np.ndarray, index: int, value: int) -> None:
        memory[index] += value

    add_float = add_release

    def load_acquire(self, memory: np.ndarray, index: int) -> int:
        wait("look")
        return int(memory[index])

    def zero_tile(self) -> np.ndarray:
        return np.zeros((8, 8), np.float32)

    def tile_product(self, depth: int, a_stride: int, b_stride: int, a_gap: int, b_gap: int) -> Callable[..., Any]:
        def product(tile: np.ndarray, a: np.ndarray, i: int, b: np.ndarray, j: int) -> np.ndarray:
            four, k = np.arange(4), np.arange(depth)[:, np.newaxis]
            rows = a[i + k * a_stride + np.concatenate([four, four + a_gap])]
            columns = b[j + k * b_stride + np.concatenate([four, four + b_gap])]
            return tile + rows.T @ columns

        return product

    def store_tile(self, row_gap: int, column_gap: int) -> Callable[..., None]:
        def store(memory: np.ndarray, index: int, stride: int, tile: np.ndarray) -> None:
            for row in range(8):
                for half in range(2):
                    at = index + (row % 4 + row // 4 * row_gap) * stride + half * column_gap
                    self.store4(memory, at, tuple(tile[row, 4 * half : 4 * half + 4]))

        return store

    def round_tf32(self, x: Any) -> int:
        return (bits(x) + 0x1000) & 0xFFFFE000

    def float_bits(self, x: Any) -> int:
        return bits(x)

    def bits_float(self, word: Any) -> Any:
        return floats([word])[0]

    def mma_tf32(self, *operands: Any) -> tuple[Any, ...]:
        sums = together(WARP, operands, self._warp_product)
        group, column = me().number % WARP // 4, me().number % 4 * 2
        return sums[group, column], sums[group, column + 1], sums[group + 8, column], sums[group + 8, column + 1]

    def _warp_product(self, given: list[tuple[Any, ...]]) -> np.ndarray:
        values, lane = np.array(given, np.float64), np.arange(WARP)  # float64 holds words and floats exactly
        group, place = lane // 4, lane % 4
        words = (values[:, 4:].astype(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        a, b, c = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32), np.zeros((16, 8), np.float32)
        for e in range(4):
            a[group + e % 2 * 8, place + e // 2 * 4] = words[:, e]
            c[group + e // 2 * 8, 2 * place + e % 2] = values[:, e]
        for e in range(2):
            b[place + 4 * e, group] = words[:, 4 + e]
        return c + a @ b


# --- hopper -----------------------------------------------------------------------------------------------------------


def swizzled(address: np.ndarray) -> np.ndarray:
    """Bits 4 to 6 of an address, exclusive or bits 7 to 9."""
    return address ^ (address >> 7 & 7) << 4


class TensorMap:
    """A matrix of 16-bit elements and the size of its boxes."""

    def __init__(self, matrix: np.ndarray, box_rows: int, box_columns: int) -> None:
        assert 2 * box_columns == 128, "a row of a swizzled box is 128 bytes"
        self.matrix, self.rows, self.columns = matrix, box_rows, box_columns


class Hopper:
    """Stands for `benchmarks.gpu.hopper`."""

    def address(self, array: np.ndarray, index: int) -> Any:
        return np.uint32(me().block.address(array, index))

    def barrier_init(self, barrier: int, arrivals: int) -> None:
        me().block.barriers[int(barrier)] = {"arrivals": arrivals, "missing": arrivals, "bytes": 0, "phase": 0}

    def _ended(self, state: dict[str, int]) -> None:
        if state["missing"] == state["bytes"] == 0:
            state["phase"] += 1
            state["missing"] = state["arrivals"]

    def barrier_expect(self, barrier: int, size: int) -> None:
        state = me().block.barriers[int(barrier)]
        state["missing"] -= 1
        state["bytes"] += size
        self._ended(state)

    def barrier_arrive(self, barrier: int) -> None:
        self.barrier_expect(barrier, 0)

    def barrier_passed(self, barrier: int, parity: int) -> int:
        wait("look")
        return int(me().block.barriers[int(barrier)]["phase"] % 2 != parity)

    def publish_barriers(self) -> None:
        pass

    def acquire_map(self, tensor_map: TensorMap) -> None:
        pass

    def copy_box(self, to: int, tensor_map: TensorMap, x: int, y: int, barrier: int) -> None:
        assert to % 1024 == 0, f"a swizzled box at {to}"
        block = me().block
        box = tensor_map.matrix[y : y + tensor_map.rows, x : x + tensor_map.columns]
        assert box.shape == (tensor_map.rows, tensor_map.columns), f"box at {y}, {x} leaves the matrix"
        row, column = np.indices(box.shape)
        block.memory.view(np.uint16)[swizzled(int(to) + 128 * row + 2 * column) // 2] = box
        state = block.barriers[int(barrier)]
        state["bytes"] -= box.nbytes
        self._ended(state)

    def _nothing(self) -> None:
        pass

    begin_products = commit_products = wait_all_products = wait_all_but_one = _nothing

    def descriptor(self, leading: int, stride: int) -> Callable[..., Any]:
        return lambda address: np.uint64(1 << 62 | stride >> 4 << 32 | leading >> 4 << 16 | int(address) >> 4)

    def bf16_product(self, columns: int, transposed: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def add(sums: np.ndarray, a: Any, b: Any) -> np.ndarray:
            block, number = me().block, me().number % WARPGROUP

            def product(given: list[tuple[int, int]]) -> np.ndarray:
                assert len(set(given)) == 1, f"a warpgroup's descriptors differ: {set(given)}"
                return self._product(block, *given[0], columns, transposed)

            found = together(WARPGROUP, (int(a), int(b)), product)
            i = np.arange(columns // 2)
            row, column = number // 32 * 16 + number % 32 // 4, number % 4 * 2
            return sums + found[row + 8 * (i // 2 % 2), i // 4 * 8 + column + i % 2]

        return add, lambda: np.zeros(columns // 2, np.float32)

    def _product(self, block: Block, a: int, b: int, columns: int, transposed: bool) -> np.ndarray:
        memory = block.memory.view(np.uint16)

        def matrix(descriptor: int, along: np.ndarray, across: np.ndarray, swap: bool) -> np.ndarray:
            assert descriptor >> 62 == 1, "not swizzled by 128 bytes"
            start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
            if swap:  # 64 elements across lie beside each other, 8 of the depth below each other
                address = across // 64 * leading + along // 8 * stride + along % 8 * 128 + across % 64 * 2
            else:
                address = across // 8 * stride + across % 8 * 128 + along * 2
            return (memory[swizzled(start + address) // 2].astype(np.uint32) << 16).view(np.float32)

        along, across = np.arange(16), np.arange(64)[:, np.newaxis]
        left = matrix(a, along, across, False)
        right = matrix(b, along[:, np.newaxis], np.arange(columns), transposed)
        return left @ right

    def store_bf16(self, columns: int) -> Callable[..., None]:
        def store(memory: np.ndarray, index: int, stride: int, sums: np.ndarray) -> None:
            word = sums.view(np.uint32)
            rounded = (word + 0x7FFF + (word >> 16 & 1)) >> 16
            for i in range(0, columns // 2, 2):
                memory[index + (8 * stride if i % 4 else 0) + i // 4 * 4] = rounded[i] | rounded[i + 1] << 16

        return store
