"""Instructions that Numba has no name for, as functions that kernels call: wide loads, copies, barriers, tensor cores.

`memory` is an array of Numba's in shared memory, or a ``CPointer`` argument that leads to global memory; an index
counts elements.  Only this file and `hopper` write PTX: another compiler needs new versions of these two, and of no
kernel.

A tuple is a set of registers.  Loops over one must be unrolled here: Numba turns a variable index into a switch, and
NVVM unrolls no loop whose body is as long as a tile's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

F32, I8, I32, I64, VOID = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.VoidType()
GLOBAL, SHARED = 1, 3  # address spaces
CLOBBER = "~{memory}"  # keeps loads and stores on their side of a statement
FLOATS4 = types.UniTuple(types.float32, 4)
FLOATS16 = types.UniTuple(types.float32, 16)
TILE = types.UniTuple(types.float32, 64)  # 8 x 8, row by row

# --- how they are made ------------------------------------------------------------------------------------------------


def place(context: Any, builder: Any, kind: Any, value: Any, index: Any) -> Any:
    """Pointer to an element of an array or of what a pointer leads to."""
    base = value if isinstance(kind, types.CPointer) else context.make_array(kind)(context, builder, value).data
    return builder.gep(base, [index])


def shared_address(builder: Any, pointer: Any) -> Any:
    """What instructions want of shared memory: 32 bits."""
    return builder.ptrtoint(builder.addrspacecast(pointer, ir.PointerType(I8, SHARED)), I32)


def global_address(builder: Any, pointer: Any) -> Any:
    """What instructions want of global memory: 64 bits."""
    return builder.ptrtoint(builder.addrspacecast(pointer, ir.PointerType(I8, GLOBAL)), I64)


def assemble(builder: Any, result: Any, text: str, constraints: Sequence[str], operands: Sequence[Any]) -> Any:
    """One statement that is neither moved past another, nor dropped."""
    kind = ir.FunctionType(result, [e.type for e in operands])
    statement = ir.InlineAsm(kind, text, ",".join([*constraints, CLOBBER]), side_effect=True)
    return builder.call(statement, list(operands))


def compute(builder: Any, result: Any, text: str, constraints: Sequence[str], operands: Sequence[Any]) -> Any:
    """One instruction of registers only, which may be moved."""
    kind = ir.FunctionType(result, [e.type for e in operands])
    return builder.call(ir.InlineAsm(kind, text, ",".join(constraints)), list(operands))


def unpacked(builder: Any, value: Any, n: int) -> list[Any]:
    """The elements of a tuple."""
    return [builder.extract_value(value, i) for i in range(n)]


def statement(text: str) -> Callable[[], None]:
    """A function without arguments or result that is one statement."""

    @intrinsic
    def execute(context):
        def codegen(context, builder, sig, args):
            assemble(builder, VOID, text, [], [])
            return context.get_dummy_value()

        return signature(types.none), codegen

    return execute


@intrinsic
def pointer(context, array):
    """The same memory as a pointer, whose index is not looked at: an array's is, lest it be negative."""

    def codegen(context, builder, sig, args):
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return signature(types.CPointer(array.dtype), array), codegen


# --- loads and stores -------------------------------------------------------------------------------------------------


def _element(memory: Any) -> Any:
    return memory.dtype  # of arrays and pointers alike


def _vector(context: Any, memory: Any) -> Any:
    return ir.PointerType(ir.VectorType(context.get_value_type(_element(memory)), 4))


@intrinsic
def load4(context, memory, index):
    """Four neighbours in one instruction; `index` is a multiple of 4."""

    def codegen(context, builder, sig, args):
        pointer = builder.bitcast(place(context, builder, sig.args[0], *args), _vector(context, sig.args[0]))
        value = builder.load(pointer, align=16)
        return cgutils.pack_array(builder, [builder.extract_element(value, I32(i)) for i in range(4)])

    return signature(types.UniTuple(_element(memory), 4), memory, types.int64), codegen


@intrinsic
def store4(context, memory, index, values):
    """Four neighbours in one instruction; `index` is a multiple of 4."""

    def codegen(context, builder, sig, args):
        kind = _vector(context, sig.args[0])
        value = ir.Constant(kind.pointee, ir.Undefined)
        for i, e in enumerate(unpacked(builder, args[2], 4)):
            value = builder.insert_element(value, e, I32(i))
        builder.store(value, builder.bitcast(place(context, builder, sig.args[0], *args[:2]), kind), align=16)
        return context.get_dummy_value()

    return signature(types.none, memory, types.int64, types.UniTuple(_element(memory), 4)), codegen


@intrinsic
def load_past_l1(context, pointer, index):
    """A float that another block may have written since this one last read it: from L2, which all share."""

    def codegen(context, builder, sig, args):
        address = global_address(builder, place(context, builder, sig.args[0], *args))
        return assemble(builder, F32, "ld.global.cg.f32 $0, [$1];", ["=f", "l"], [address])

    return signature(types.float32, pointer, types.int64), codegen


@intrinsic
def copy_async16(context, array, index, pointer, source):
    """Begin to copy 16 bytes from global to shared memory; both places are multiples of 16 bytes."""

    def codegen(context, builder, sig, args):
        to = shared_address(builder, place(context, builder, sig.args[0], *args[:2]))
        of = global_address(builder, place(context, builder, sig.args[2], *args[2:]))
        assemble(builder, VOID, "cp.async.cg.shared.global [$0], [$1], 16;", ["r", "l"], [to, of])
        return context.get_dummy_value()

    return signature(types.none, array, types.int64, pointer, types.int64), codegen


commit_copies = statement("cp.async.commit_group;")  # those begun since the last call are one group
wait_all_copies = statement("cp.async.wait_group 0;")
wait_all_but_one = statement("cp.async.wait_group 1;")  # until one group at most is under way


@intrinsic
def floats_of_bytes(context, word):
    """The four bytes of a word as floats.

    A byte below the exponent of 2^23 is the float 2^23 + byte: a permutation and an addition for each, where the
    conversion instruction would run at a quarter of their rate.
    """

    def codegen(context, builder, sig, args):
        magic, floats = I32(0x4B000000), []
        for i in range(4):
            bits = compute(builder, I32, f"prmt.b32 $0, $1, $2, {0x7650 + i:#x};", ["=r", "r", "r"], [args[0], magic])
            floats.append(builder.fsub(builder.bitcast(bits, F32), F32(2.0**23)))
        return cgutils.pack_array(builder, floats)

    return signature(FLOATS4, types.uint32), codegen


# --- between blocks ---------------------------------------------------------------------------------------------------


@intrinsic
def add_release(context, pointer, index, value):
    """Add to an int32 after everything this thread has written, or has seen written, is visible to all blocks."""

    def codegen(context, builder, sig, args):
        address = global_address(builder, place(context, builder, sig.args[0], *args[:2]))
        assemble(builder, VOID, "red.release.gpu.global.add.s32 [$0], $1;", ["l", "r"], [address, args[2]])
        return context.get_dummy_value()

    return signature(types.none, pointer, types.int64, types.int32), codegen


@intrinsic
def load_acquire(context, pointer, index):
    """An int32, read before everything this thread reads from here on."""

    def codegen(context, builder, sig, args):
        address = global_address(builder, place(context, builder, sig.args[0], *args))
        return assemble(builder, I32, "ld.acquire.gpu.global.s32 $0, [$1];", ["=r", "l"], [address])

    return signature(types.int32, pointer, types.int64), codegen


@intrinsic
def add_float(context, pointer, index, value):
    """Add to a float in global memory.  Numba's atomic asks for the old value too, and waits for it."""

    def codegen(context, builder, sig, args):
        address = global_address(builder, place(context, builder, sig.args[0], *args[:2]))
        assemble(builder, VOID, "red.relaxed.gpu.global.add.f32 [$0], $1;", ["l", "f"], [address, args[2]])
        return context.get_dummy_value()

    return signature(types.none, pointer, types.int64, types.float32), codegen


# --- an 8 x 8 tile in registers ---------------------------------------------------------------------------------------


@intrinsic
def zero_tile(context):
    """A tile of zeros."""

    def codegen(context, builder, sig, args):
        return cgutils.pack_array(builder, [F32(0.0)] * 64)

    return signature(TILE), codegen


def tile_product(depth: int, a_stride: int, b_stride: int, a_gap: int, b_gap: int) -> Callable[..., Any]:
    """``f(tile, a, i, b, j)``: the tile plus the product of 8 rows of `a` and 8 columns of `b`, both in shared memory.

    At step k the 8 rows are ``a[i + k * a_stride]``, the 3 after it, and 4 more from `a_gap` on; likewise the columns.
    """

    @intrinsic
    def product(context, tile, a, i, b, j):
        def codegen(context, builder, sig, args):
            tile, *sides = args
            sums = unpacked(builder, tile, 64)
            vector = ir.VectorType(F32, 4)

            def eight(side: int, offset: int, gap: int) -> list[Any]:
                found = []
                for at in (offset, offset + gap):
                    index = builder.add(sides[2 * side + 1], I64(at))
                    pointer = place(context, builder, sig.args[1 + 2 * side], sides[2 * side], index)
                    four = builder.load(builder.bitcast(pointer, ir.PointerType(vector)), align=16)
                    found += [builder.extract_element(four, I32(e)) for e in range(4)]
                return found

            for k in range(depth):
                rows, columns = eight(0, k * a_stride, a_gap), eight(1, k * b_stride, b_gap)
                sums = [builder.fma(rows[e // 8], columns[e % 8], sums[e]) for e in range(64)]
            return cgutils.pack_array(builder, sums)

        return signature(TILE, TILE, a, types.int64, b, types.int64), codegen

    return product


def store_tile(row_gap: int, column_gap: int) -> Callable[..., Any]:
    """``f(pointer, i, stride, tile)``: store rows `stride` apart; the last 4 rows and columns begin at the gaps."""

    @intrinsic
    def store(context, pointer, index, stride, tile):
        def codegen(context, builder, sig, args):
            pointer, index, stride, tile = args
            sums, vector = unpacked(builder, tile, 64), ir.VectorType(F32, 4)
            for row in range(8):
                below = builder.mul(stride, I64(row % 4 + row // 4 * row_gap))
                for half in range(2):
                    four = ir.Constant(vector, ir.Undefined)
                    for e in range(4):
                        four = builder.insert_element(four, sums[8 * row + 4 * half + e], I32(e))
                    at = builder.add(builder.add(index, below), I64(half * column_gap))
                    to = place(context, builder, sig.args[0], pointer, at)
                    builder.store(four, builder.bitcast(to, ir.PointerType(vector)), align=16)
            return context.get_dummy_value()

        return signature(types.none, pointer, types.int64, types.int64, TILE), codegen

    return store


# --- tensor cores of all GPUs since Ampere ----------------------------------------------------------------------------


@intrinsic
def round_tf32(context, x):
    """The nearest number of 10 bits of fraction, as bits."""

    def codegen(context, builder, sig, args):
        return compute(builder, I32, "cvt.rna.tf32.f32 $0, $1;", ["=r", "f"], args)

    return signature(types.uint32, types.float32), codegen


@intrinsic
def float_bits(context, x):
    """A float as bits; tensor cores ignore the last 13."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], I32)

    return signature(types.uint32, types.float32), codegen


@intrinsic
def bits_float(context, bits):
    """Bits as a float."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], F32)

    return signature(types.float32, types.uint32), codegen


@intrinsic
def mma_tf32(context, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1):
    """A warp's c (16, 8) plus a (16, 8) times b (8, 8), each lane with its share of each."""

    def codegen(context, builder, sig, args):
        text = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, "
        text += "{$10,$11,$12,$13};"
        kinds = ["=f"] * 4 + ["r"] * 6 + ["f"] * 4
        four = compute(builder, ir.LiteralStructType([F32] * 4), text, kinds, [*args[4:], *args[:4]])
        return cgutils.pack_array(builder, unpacked(builder, four, 4))

    return signature(FLOATS4, *[types.float32] * 4, *[types.uint32] * 6), codegen
