"""Register tiles: a block of C held in registers, its update, and blocks that are transposed in registers."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnn.cpu.simd.vectors import (
    I32,
    I64,
    call_intrinsic,
    first_lanes_mask,
    llvm_type,
    splat_scalar,
    suffix,
    vec,
    vector_pointer,
)


@intrinsic(prefer_literal=True)
def zeros_tile(typingctx, like, rows, vectors):
    """A tile of `rows` x `vectors` (constants) zero vectors, to be held in registers."""
    ty = types.UniTuple(vec(like.dtype), rows.literal_value * vectors.literal_value)

    def codegen(context, builder, sig, args):
        return ir.Constant(context.get_value_type(ty), None)

    return ty(like, rows, vectors), codegen


@intrinsic(prefer_literal=True)
def load_tile(typingctx, memory, rows, vectors):
    """The tile of `rows` x `vectors` vectors that `store_tile` put at `memory`."""
    ty = types.UniTuple(vec(memory.dtype), rows.literal_value * vectors.literal_value)

    def codegen(context, builder, sig, args):
        vector, lanes = llvm_type(ty.dtype), ty.dtype.lanes
        tile = ir.Constant(context.get_value_type(ty), ir.Undefined)
        for q in range(ty.count):
            at = vector_pointer(builder, args[0], I64(q * lanes), vector)
            tile = builder.insert_value(tile, builder.load(at, align=ty.dtype.scalar.bitwidth // 8), q)
        return tile

    return ty(memory, rows, vectors), codegen


@intrinsic(prefer_literal=True)
def rank1(typingctx, tile, vectors, a, a_row, b):
    """``tile[i, j] += a[i * a_row] * b[j]``: a column of A times a row of B, fully unrolled.

    The unrolling happens here and not in a Numba loop because LLVM promotes the tile to registers before it unrolls
    loops (a tile in memory runs at a twentieth of the speed).
    """
    ty, columns = tile.dtype, vectors.literal_value

    def codegen(context, builder, sig, args):
        tile, _, a, a_row, b = args
        vector = llvm_type(ty)
        size = ty.scalar.bitwidth // 8
        row = [builder.load(vector_pointer(builder, b, I64(j * ty.lanes), vector), align=size) for j in range(columns)]
        name = f"llvm.fmuladd.{suffix(vector)}"
        for i in range(sig.args[0].count // columns):
            at = builder.gep(a, [builder.mul(a_row, I64(i))])
            x = splat_scalar(builder, builder.load(at, align=size), ty.lanes)
            for j in range(columns):
                q = i * columns + j
                total = call_intrinsic(builder, name, vector, [x, row[j], builder.extract_value(tile, q)])
                tile = builder.insert_value(tile, total, q)
        return tile

    return tile(tile, vectors, a, types.intp, b), codegen


@intrinsic
def rank1_row(typingctx, tile, a, a_row, row):
    """As `rank1` for a tile of one vector a row, and a row of B that is in a register."""

    def codegen(context, builder, sig, args):
        tile, a, a_row, row = args
        ty = sig.args[3]
        name = f"llvm.fmuladd.{suffix(row.type)}"
        for i in range(sig.args[0].count):
            at = builder.gep(a, [builder.mul(a_row, I64(i))])
            x = splat_scalar(builder, builder.load(at, align=ty.scalar.bitwidth // 8), ty.lanes)
            total = call_intrinsic(builder, name, row.type, [x, row, builder.extract_value(tile, i)])
            tile = builder.insert_value(tile, total, i)
        return tile

    return tile(tile, a, types.intp, row), codegen


@intrinsic
def store_rows(typingctx, tile, c, c_row, count):
    """Write the first `count` lanes of each vector of a tile to a row of C."""

    def codegen(context, builder, sig, args):
        tile, c, c_row, count = args
        ty = sig.args[0].dtype
        mask, size = first_lanes_mask(builder, count, ty.lanes), I32(ty.scalar.bitwidth // 8)
        for i in range(sig.args[0].count):
            value = builder.extract_value(tile, i)
            at = vector_pointer(builder, c, builder.mul(c_row, I64(i)), value.type)
            name = f"llvm.masked.store.{suffix(value.type)}.p0"
            call_intrinsic(builder, name, ir.VoidType(), [value, at, size, mask])
        return context.get_dummy_value()

    return types.void(tile, c, types.intp, types.intp), codegen


@intrinsic
def store_tile(typingctx, tile, memory):
    """Write a tile to `memory`, row after row without gaps."""

    def codegen(context, builder, sig, args):
        ty = sig.args[0].dtype
        for q in range(sig.args[0].count):
            at = vector_pointer(builder, args[1], I64(q * ty.lanes), llvm_type(ty))
            builder.store(builder.extract_value(args[0], q), at, align=ty.scalar.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(tile, memory), codegen


def _butterfly(builder, rows):
    """Transpose lanes x lanes registers: stage s swaps the off-diagonal quadrants of every 2s x 2s block."""
    n = len(rows)
    v = list(rows)
    s = n // 2
    while s:
        low = [j if not j & s else n + (j ^ s) for j in range(n)]
        high = [(j | s) if not j & s else n + j for j in range(n)]
        for i in range(n):
            if not i & s:
                a, b = v[i], v[i | s]
                v[i] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, n), low))
                v[i | s] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, n), high))
        s //= 2
    return v


@intrinsic
def transpose_block(typingctx, source, row, out, out_row):
    """``out[j * out_row + i] = source[i * row + j]`` for a block of lanes x lanes elements, in registers."""
    ty = vec(source.dtype)

    def codegen(context, builder, sig, args):
        source, row, out, out_row = args
        vector, size = llvm_type(ty), ty.scalar.bitwidth // 8
        rows = [
            builder.load(vector_pointer(builder, source, builder.mul(row, I64(i)), vector), align=size)
            for i in range(ty.lanes)
        ]
        for j, column in enumerate(_butterfly(builder, rows)):
            builder.store(column, vector_pointer(builder, out, builder.mul(out_row, I64(j)), vector), align=size)
        return context.get_dummy_value()

    return types.void(source, types.intp, out, types.intp), codegen


@intrinsic
def transpose_corner(typingctx, source, row, rows, cols, out, out_row):
    """As `transpose_block` for `rows` x `cols` elements; writes `cols` whole vectors, with zeros beyond `rows`."""
    ty = vec(source.dtype)

    def codegen(context, builder, sig, args):
        source, row, count, cols, out, out_row = args
        vector, size = llvm_type(ty), ty.scalar.bitwidth // 8
        zero = ir.Constant(vector, None)
        name = f"llvm.masked.load.{suffix(vector)}.p0"
        rows = []
        for i in range(ty.lanes):
            read = builder.select(builder.icmp_signed("<", I64(i), count), cols, I64(0))
            at = vector_pointer(builder, source, builder.mul(row, I64(i)), vector)
            mask = first_lanes_mask(builder, read, ty.lanes)
            rows.append(call_intrinsic(builder, name, vector, [at, I32(size), mask, zero]))
        for j, column in enumerate(_butterfly(builder, rows)):
            with builder.if_then(builder.icmp_signed("<", I64(j), cols)):
                builder.store(column, vector_pointer(builder, out, builder.mul(out_row, I64(j)), vector), align=size)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(source, integer, integer, integer, out, integer), codegen
