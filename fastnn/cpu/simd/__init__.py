"""SIMD vectors, register tiles and raw memory as Numba types.

This package teaches Numba the few things that a BLAS-class kernel needs and plain Numba lacks, so that the kernels
themselves stay short loops:

- `Vec`: a vector of float32 or float64 as wide as the CPU's registers, with arithmetic, comparison and `muladd`;
- `load`, `store`, `splat`, masked forms for the first lanes of a ragged end, and `stream`, a store past the caches;
- `zeros_tile`, `rank1`, `store_tile`: a tile of C held in registers, and its update by one column of A times one row of
B;
- `RecordRef`: typed access to the fields of a plan's record (`fastnn.records`);
- exponents, fractions and tables in registers, where the CPU has instructions for them;
- atomics, for the barrier, and calls through an address, for the engine and for what Python calls.

Each is an intrinsic that emits a few LLVM instructions.  No fast-math flag is ever set: NaN and infinity behave as
IEEE says, and the order of operations is the order written.  Memory needs no alignment beyond the element's own.
"""

from fastnn.cpu.simd.arithmetic import (
    absolute,
    as_floats,
    as_integers,
    constant,
    copysign,
    estimate_reciprocal,
    estimate_root,
    estimates,
    first_lane,
    first_lanes,
    keep_first,
    max_lanes,
    muladd,
    polynomial,
    scalar_like,
    select,
    splat,
    sqrt,
    sum_lanes,
)
from fastnn.cpu.simd.engine import (
    call,
    call_epilogue,
    call_function,
    call_kernel,
    call_with_number,
    fetch_add,
    flush_subnormals,
    load_acquire,
    pause,
    record_at,
    restore_mode,
    store_release,
)
from fastnn.cpu.simd.exponents import (
    exponent,
    fraction,
    has_exponents,
    has_pieces,
    is_fused,
    pieces,
    scale,
    table,
)
from fastnn.cpu.simd.memory import (
    cast,
    integer,
    is_null,
    lanes,
    load,
    load_bytes,
    load_first,
    local_words,
    offset,
    pointer_at,
    prefetch,
    prefetch_write,
    settle,
    store,
    store_first,
    stream,
)
from fastnn.cpu.simd.references import (
    ANY_REF,
    RUN_REF,
    RecordRef,
    reference,
)
from fastnn.cpu.simd.stack import stack
from fastnn.cpu.simd.tiles import (
    load_tile,
    rank1,
    row_offsets,
    row_offsets_within,
    store_rows,
    store_tile,
    transpose_block,
    transpose_corner,
    zeros_tile,
)
from fastnn.cpu.simd.vectors import (
    Vec,
    vec,
)

__all__ = [
    "ANY_REF",
    "RUN_REF",
    "RecordRef",
    "Vec",
    "absolute",
    "as_floats",
    "as_integers",
    "call",
    "call_epilogue",
    "call_function",
    "call_kernel",
    "call_with_number",
    "cast",
    "constant",
    "copysign",
    "estimate_reciprocal",
    "estimate_root",
    "estimates",
    "exponent",
    "fetch_add",
    "first_lane",
    "first_lanes",
    "flush_subnormals",
    "fraction",
    "has_exponents",
    "has_pieces",
    "integer",
    "is_fused",
    "is_null",
    "keep_first",
    "lanes",
    "load",
    "load_acquire",
    "load_bytes",
    "load_first",
    "load_tile",
    "local_words",
    "max_lanes",
    "muladd",
    "offset",
    "pause",
    "pieces",
    "pointer_at",
    "polynomial",
    "prefetch",
    "prefetch_write",
    "rank1",
    "record_at",
    "reference",
    "restore_mode",
    "row_offsets",
    "row_offsets_within",
    "scalar_like",
    "scale",
    "select",
    "settle",
    "splat",
    "sqrt",
    "stack",
    "store",
    "store_first",
    "store_release",
    "store_rows",
    "store_tile",
    "stream",
    "sum_lanes",
    "table",
    "transpose_block",
    "transpose_corner",
    "vec",
    "zeros_tile",
]
