"""Kernels that are as fast as memory: how they walk along contiguous arrays.

What they do, and what it gave (float32, one thread, AVX-512; relu and sigmoid, from NumPy's unaligned arrays):

- Stores go to whole cache lines: the first, partial vector ends where a line of the output starts.  NumPy's arrays
  start anywhere, and a store across two lines counts as two.
- Blocks of four whole vectors a turn, without masks, whose instructions lie side by side: the CPU's scheduler holds
  about three times the 30 dependent instructions of a sigmoid, so one after the other vectors wait for each other.
- Lines are fetched 2 KiB before they are needed, the output's, too, for writing: hardware does not fetch across pages,
  nor for stores.  With all this 64 KiB take 0.6 to 0.8 times as long, 1 MiB, which the second-level cache holds only
  in part, half as long.
- Outputs that no cache holds (`FAR`) are streamed past the caches: each line is written without having been read.
  256 MiB take 0.6 times as long.
"""

from fastnn.cpu import target
from fastnn.cpu.jit import device
from fastnn.cpu.share import share
from fastnn.cpu.simd import integer, lanes, load_block, offset

LINE = 64  # bytes of a cache line
VECTOR = target.host().simd_bits // 8  # bytes of a vector
AHEAD = 2048 // VECTOR  # vectors from the ones that are used to the ones that are fetched
BLOCK_VECTORS = 4  # eight need more registers than there are
BLOCK = 64  # elements: whole vectors and whole cache lines, so that no two threads write the same line


@device
def load_vectors(x, i):
    """The block of `BLOCK_VECTORS` vectors at ``x[i]``."""
    return load_block(offset(x, i), 0, 1, BLOCK_VECTORS)


@device
def span(y, n, thread, threads):
    """The part [first, last) of ``y[:n]`` that is one thread's: whole cache lines but for the ends of y."""
    lead = integer(y) % LINE // (VECTOR // lanes(y))
    first, last = share((n + lead + BLOCK - 1) // BLOCK, thread, threads)
    return max(first * BLOCK - lead, 0), min(last * BLOCK - lead, n)


@device
def unaligned(y, i, end):
    """How many elements of ``y[i:end]`` lie before the first aligned vector."""
    return min(-(integer(y) // (VECTOR // lanes(y)) + i) % lanes(y), end - i)
