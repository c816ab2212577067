"""Intel's matrix unit (AMX): eight registers, each a tile of 16 x 64 bytes, and products of tiles of bfloat16.

A product of 16 x 32 and 32 x 16 numbers takes 16 cycles, as long as the vector unit takes for a sixteenth of it.  Its
factors have 8 significant bits, those of float32 have 24: `store_split` makes three of one.  What lies behind this,
and which products of parts are added, says `fastnn.cpu.amx`.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastnn.cpu.blocking import SIDE
from fastnn.cpu.simd.vectors import I8, I32, I64, call_intrinsic, llvm_type, splat_scalar, vec, vector_pointer

LINES, PAIRS = SIDE // 2, 16  # of a tile: rows of A or columns of B; pairs of steps of k, which share 32 bits
TILE = LINES * PAIRS  # 32-bit words of a tile
PARTS = 3  # of a float32
# 32-bit words of `SIDE` lines, as many as the block of C has that four registers hold, and 2 `PAIRS` steps of k, in all
# parts.
BLOCK = PARTS * SIDE * PAIRS
# Registers 0 to 3 hold the sums, row after row; then come two tiles of A and two of B.
SUMS, A, B = (0, 1, 2, 3), (4, 5), (6, 7)
# The parts of A and B that are multiplied, the largest product last, so that others are not lost in its sum.  Each
# differs from the one before in one factor, so that only that is loaded.
PRODUCTS = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0))
PALETTE = 1


def _call(builder, name, arguments):
    call_intrinsic(builder, f"llvm.x86.{name}", ir.VoidType(), arguments)


def _bytes(builder, pointer):
    return builder.bitcast(pointer, I8.as_pointer())


@intrinsic
def configure_tiles(typingctx):
    """All registers are whole tiles from now on, until `release_tiles`."""

    def codegen(context, builder, sig, args):
        # A byte for the palette, from byte 16 on the bytes of each register's rows, from 48 on how many rows it has.
        memory = cgutils.alloca_once(builder, I64, size=8)
        rows = int.from_bytes(bytes([LINES] * 8), "little")
        columns = int.from_bytes(b"".join((4 * PAIRS).to_bytes(2, "little") for _ in range(4)), "little")
        for i, word in enumerate((PALETTE, 0, columns, columns, 0, 0, rows, 0)):
            builder.store(I64(word), builder.gep(memory, [I64(i)]))
        _call(builder, "ldtilecfg", [_bytes(builder, memory)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def release_tiles(typingctx):
    """The registers are not used any more, so that the system need not save them."""

    def codegen(context, builder, sig, args):
        _call(builder, "tilerelease", [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def zero_sums(typingctx):
    """The block of C is 0."""

    def codegen(context, builder, sig, args):
        for register in SUMS:
            _call(builder, "tilezero", [I8(register)])
        return context.get_dummy_value()

    return types.void(), codegen


def _move_sums(name):
    def typed(typingctx, memory, row):
        def codegen(context, builder, sig, args):
            memory, row = args
            for register in SUMS:
                down, right = divmod(register, 2)
                start = builder.add(builder.mul(row, I64(down * LINES)), I64(right * LINES))
                at = _bytes(builder, builder.gep(memory, [start]))
                _call(builder, name, [I8(register), at, builder.mul(row, I64(4))])
            return context.get_dummy_value()

        return types.void(memory, types.intp), codegen

    return intrinsic(typed)


load_sums = _move_sums("tileloadd64")  # the block of C is what lies at `memory`, rows `row` elements apart
store_sums = _move_sums("tilestored64")  # write it there


@intrinsic
def add_products(typingctx, a, b):
    """Add the product of two blocks to that of C: `SIDE` rows of A, `SIDE` columns of B, two times `PAIRS` steps of k.

    In memory a block is its parts, one after the other, and each of these two tiles.
    """

    def codegen(context, builder, sig, args):
        loaded = {}
        for product in PRODUCTS:
            for registers, pointer, part in zip((A, B), args, product, strict=True):
                if loaded.get(registers) != part:
                    for i, register in enumerate(registers):
                        at = builder.gep(pointer, [I64((part * 2 + i) * TILE)])
                        _call(builder, "tileloadd64", [I8(register), _bytes(builder, at), I64(4 * PAIRS)])
                    loaded[registers] = part
            for register in SUMS:
                down, right = divmod(register, 2)
                _call(builder, "tdpbf16ps", [I8(register), I8(A[down]), I8(B[right])])
        return context.get_dummy_value()

    return types.void(a, b), codegen


def _parts(builder, x):
    """Three vectors of 32-bit integers, whose upper halves are bfloat16 that add up to the float32 in `x`."""
    integers = ir.VectorType(I32, x.type.count)
    half, upper = (integers([number] * integers.count) for number in (0x8000, 0xFFFF0000))
    parts = []
    for _ in range(PARTS - 1):  # the nearest one, the larger of two that are as near; then what is left
        parts.append(builder.and_(builder.add(builder.bitcast(x, integers), half), upper))
        x = builder.fsub(x, builder.bitcast(parts[-1], x.type))
    return [*parts, builder.and_(builder.bitcast(x, integers), upper)]


@intrinsic
def store_split(typingctx, first, second, memory, apart):
    """Write two vectors in three parts, `apart` elements from one to the next: in each lane a pair of bfloat16."""

    def codegen(context, builder, sig, args):
        first, second, memory, apart = args
        for i, (lower, upper) in enumerate(zip(_parts(builder, first), _parts(builder, second), strict=True)):
            pairs = builder.or_(builder.lshr(lower, lower.type([16] * lower.type.count)), upper)
            at = vector_pointer(builder, memory, builder.mul(apart, I64(i)), pairs.type)
            builder.store(pairs, at, align=4)
        return context.get_dummy_value()

    return types.void(first, second, memory, types.intp), codegen


def _pairs(splat):
    """The numbers of pairs at ``pointer[i]``, as two vectors: those of a vector's lanes, or one pair in all lanes."""

    def typed(typingctx, pointer, i):
        ty = vec(pointer.dtype)

        def codegen(context, builder, sig, args):
            words = ir.VectorType(I32, ty.lanes)
            if splat:
                word = builder.load(vector_pointer(builder, *args, I32), align=4)
                pairs = splat_scalar(builder, word, ty.lanes)
            else:
                pairs = builder.load(vector_pointer(builder, *args, words), align=4)
            first = builder.shl(pairs, words([16] * ty.lanes))
            second = builder.and_(pairs, words([0xFFFF0000] * ty.lanes))
            numbers = [builder.bitcast(x, llvm_type(ty)) for x in (first, second)]
            return context.make_tuple(builder, sig.return_type, numbers)

        return types.UniTuple(ty, 2)(pointer, types.intp), codegen

    return intrinsic(typed)


load_pairs, splat_pair = _pairs(False), _pairs(True)
