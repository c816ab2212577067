"""Instructions of Hopper (sm_90a) as functions that kernels call: barriers in memory, tensor copies, wgmma.

Addresses of shared memory are uint32, as `address` gives them; addresses of global memory are uint64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

from benchmarks.gpu.ptx import F32, I32, VOID, assemble, compute, place, shared_address, statement, unpacked

SWIZZLE_128 = 1 << 62  # field 62-63 of a matrix descriptor


@intrinsic
def address(context, array, index):
    """Address of an element of an array in shared memory."""

    def codegen(context, builder, sig, args):
        return shared_address(builder, place(context, builder, sig.args[0], *args))

    return signature(types.uint32, array, types.int64), codegen


# --- barriers in shared memory ----------------------------------------------------------------------------------------


@intrinsic
def barrier_init(context, barrier, arrivals):
    """Make a barrier whose phase ends with so many arrivals."""

    def codegen(context, builder, sig, args):
        assemble(builder, VOID, "mbarrier.init.shared.b64 [$0], $1;", ["r", "r"], args)
        return context.get_dummy_value()

    return signature(types.none, types.uint32, types.int32), codegen


@intrinsic
def barrier_expect(context, barrier, size):
    """Arrive, and let the phase end only once so many bytes have come."""

    def codegen(context, builder, sig, args):
        assemble(builder, VOID, "mbarrier.arrive.expect_tx.shared.b64 _, [$0], $1;", ["r", "r"], args)
        return context.get_dummy_value()

    return signature(types.none, types.uint32, types.int32), codegen


@intrinsic
def barrier_arrive(context, barrier):
    """Arrive."""

    def codegen(context, builder, sig, args):
        assemble(builder, VOID, "mbarrier.arrive.shared.b64 _, [$0];", ["r"], args)
        return context.get_dummy_value()

    return signature(types.none, types.uint32), codegen


@intrinsic
def barrier_passed(context, barrier, parity):
    """Whether the phase of this parity has ended; may wait a while before it says no."""

    def codegen(context, builder, sig, args):
        text = "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [$1], $2; selp.b32 $0, 1, 0, p; }"
        return assemble(builder, I32, text, ["=r", "r", "r"], args)

    return signature(types.int32, types.uint32, types.int32), codegen


publish_barriers = statement("fence.mbarrier_init.release.cluster;")  # new barriers to the units that copy

# --- tensor copies ----------------------------------------------------------------------------------------------------


@intrinsic
def acquire_map(context, tensor_map):
    """See the tensor map that the host wrote last at this address: maps have a cache of their own."""

    def codegen(context, builder, sig, args):
        assemble(builder, VOID, "fence.proxy.tensormap::generic.acquire.gpu [$0], 128;", ["l"], args)
        return context.get_dummy_value()

    return signature(types.none, types.uint64), codegen


@intrinsic
def copy_box(context, to, tensor_map, x, y, barrier):
    """Begin to copy the box at column `x`, row `y` to shared memory; its bytes count for the barrier's phase."""

    def codegen(context, builder, sig, args):
        text = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        assemble(builder, VOID, text + "[$0], [$1, {$2, $3}], [$4];", ["r", "l", "r", "r", "r"], args)
        return context.get_dummy_value()

    return signature(types.none, types.uint32, types.uint64, types.int32, types.int32, types.uint32), codegen


# --- wgmma ------------------------------------------------------------------------------------------------------------

begin_products = statement("wgmma.fence.sync.aligned;")
commit_products = statement("wgmma.commit_group.sync.aligned;")
wait_all_products = statement("wgmma.wait_group.sync.aligned 0;")
wait_all_but_one = statement("wgmma.wait_group.sync.aligned 1;")


def descriptor(leading: int, stride: int) -> Callable[..., Any]:
    """``f(address)``: describes a matrix in shared memory whose rows of 128 bytes are swizzled.

    Eight rows are an atom of 1 KiB.  With the depth along the rows, `stride` bytes lie between atoms and `leading`
    means nothing; with the depth across them, `stride` lies between atoms along the depth, `leading` across it.
    """
    fixed = SWIZZLE_128 | stride >> 4 << 32 | leading >> 4 << 16

    @intrinsic
    def describe(context, address):
        def codegen(context, builder, sig, args):
            wide = builder.zext(builder.lshr(builder.and_(args[0], I32(0x3FFFF)), I32(4)), ir.IntType(64))
            return builder.or_(wide, ir.Constant(ir.IntType(64), fixed))

        return signature(types.uint64, types.uint32), codegen

    return describe


def bf16_product(columns: int, transposed: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``f(sums, a, b)``, which adds a (64, 16) times b (16, `columns`), and what makes sums of zeros.

    Both operands are descriptors; the depth of `b` lies along its rows, or across them if it is `transposed`.
    """
    n = columns // 2  # sums of each of 128 threads
    kind = types.UniTuple(types.float32, n)
    registers = ", ".join(f"${i}" for i in range(n))
    text = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{registers}}}, ${2 * n}, ${2 * n + 1}, "
    text += f"1, 1, 1, 0, {int(transposed)};"
    constraints = ["=f"] * n + [str(i) for i in range(n)] + ["l", "l"]

    @intrinsic
    def add_product(context, sums, a, b):
        def codegen(context, builder, sig, args):
            operands = [*unpacked(builder, args[0], n), args[1], args[2]]
            result = assemble(builder, ir.LiteralStructType([F32] * n), text, constraints, operands)
            return cgutils.pack_array(builder, unpacked(builder, result, n))

        return signature(kind, kind, types.uint64, types.uint64), codegen

    @intrinsic
    def zeros(context):
        def codegen(context, builder, sig, args):
            return cgutils.pack_array(builder, [F32(0.0)] * n)

        return signature(kind), codegen

    return add_product, zeros


def store_bf16(columns: int) -> Callable[..., Any]:
    """``f(pointer, i, stride, sums)``: a thread's sums, rounded, two to a word; rows of `stride` words."""
    n = columns // 2
    kind = types.UniTuple(types.float32, n)

    @intrinsic
    def store(context, pointer, index, stride, sums):
        def codegen(context, builder, sig, args):
            pointer, index, stride, sums = args
            numbers = unpacked(builder, sums, n)
            below = builder.add(index, builder.mul(stride, ir.Constant(ir.IntType(64), 8)))
            for i in range(0, n, 2):  # pairs take turns between a row and the eighth below it
                at = builder.add(below if i % 4 else index, ir.Constant(ir.IntType(64), i // 4 * 4))
                pair = [numbers[i + 1], numbers[i]]  # the first goes to the upper half
                word = compute(builder, I32, "cvt.rn.bf16x2.f32 $0, $1, $2;", ["=r", "f", "f"], pair)
                builder.store(word, place(context, builder, sig.args[0], pointer, at))
            return context.get_dummy_value()

        return signature(types.none, pointer, types.int64, types.int64, kind), codegen

    return store
