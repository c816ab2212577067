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
    store_lanes,
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


def _hidden(builder, value):
    """`value`, of which LLVM does not know how it came about."""
    return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], False)


@intrinsic
def hidden(typingctx, number):
    """An integer, of which LLVM does not know how it came about."""

    def codegen(context, builder, sig, args):
        return _hidden(builder, args[0])

    return types.intp(types.intp), codegen


@intrinsic(prefer_literal=True)
def row_offsets(typingctx, stride, rows):
    """Where each of `rows` (a constant) rows of A starts, for `rank1`.

    LLVM is not told that they are evenly spaced.  If it knew, it would get each address by adding the stride to the one
    before; the chain of additions takes as long as the multiply-adds, so loads could not run ahead and hide the latency
    of the second-level cache.  Odd multiples are kept in registers; 2, 4 and 8 times these are part of an address.
    """
    ty = types.UniTuple(types.intp, rows.literal_value)

    def codegen(context, builder, sig, args):
        offsets = ir.Constant(context.get_value_type(ty), ir.Undefined)
        odd = {}
        for i in range(ty.count):
            power = i & -i or 1
            if i // power not in odd:
                odd[i // power] = _hidden(builder, builder.mul(args[0], I64(i // power))) if i else I64(0)
            offsets = builder.insert_value(offsets, builder.mul(odd[i // power], I64(power)), i)
        return offsets

    return ty(stride, rows), codegen


@intrinsic(prefer_literal=True)
def row_offsets_within(typingctx, stride, rows, count):
    """As `row_offsets`; from row `count` on the last row again, which is then computed for nothing but safely."""
    ty = types.UniTuple(types.intp, rows.literal_value)

    def codegen(context, builder, sig, args):
        offsets = ir.Constant(context.get_value_type(ty), ir.Undefined)
        last = builder.sub(args[2], I64(1))
        for i in range(ty.count):
            row = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            offsets = builder.insert_value(offsets, _hidden(builder, builder.mul(args[0], row)), i)
        return offsets

    return ty(stride, rows, types.intp), codegen


@intrinsic
def rank1(typingctx, tile, a, offsets, row):
    """``tile[i, j] += a[offsets[i]] * row[j]``: a column of A times a row of B, fully unrolled.

    The unrolling happens here and not in a Numba loop because LLVM promotes the tile to registers before it unrolls
    loops (a tile in memory runs at a twentieth of the speed).
    """
    ty, columns = tile.dtype, row.count

    def codegen(context, builder, sig, args):
        tile, a, offsets, row = args
        vector = llvm_type(ty)
        name = f"llvm.fmuladd.{suffix(vector)}"
        for i in range(sig.args[2].count):
            at = builder.gep(a, [builder.extract_value(offsets, i)])
            x = splat_scalar(builder, builder.load(at, align=ty.scalar.bitwidth // 8), ty.lanes)
            for j in range(columns):
                q = i * columns + j
                factors = [x, builder.extract_value(row, j), builder.extract_value(tile, q)]
                tile = builder.insert_value(tile, call_intrinsic(builder, name, vector, factors), q)
        return tile

    return tile(tile, a, offsets, row), codegen


@intrinsic
def store_rows(typingctx, tile, c, c_row, count):
    """Write the first `count` lanes of each vector of a tile to a row of C."""

    def codegen(context, builder, sig, args):
        tile, c, c_row, count = args
        for i in range(sig.args[0].count):
            value = builder.extract_value(tile, i)
            store_lanes(builder, value, vector_pointer(builder, c, builder.mul(c_row, I64(i)), value.type), count)
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


@intrinsic(prefer_literal=True)
def store_tile_rows(typingctx, tile, memory, row, vectors):
    """Write a tile of `vectors` (a constant) vectors a row to `memory`, rows `row` elements apart."""

    def codegen(context, builder, sig, args):
        ty, width = sig.args[0].dtype, vectors.literal_value
        for q in range(sig.args[0].count):
            start = builder.add(builder.mul(args[2], I64(q // width)), I64(q % width * ty.lanes))
            at = vector_pointer(builder, args[1], start, llvm_type(ty))
            builder.store(builder.extract_value(args[0], q), at, align=ty.scalar.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(tile, memory, types.intp, vectors), codegen


def _in_row(builder, memory, offsets, q, width, ty):
    """The address of vector q of a tile of `width` vectors a row whose rows are at `offsets`."""
    row = builder.gep(memory, [builder.extract_value(offsets, q // width)])
    return vector_pointer(builder, row, I64(q % width * ty.lanes), llvm_type(ty))


@intrinsic(prefer_literal=True)
def load_rows(typingctx, memory, offsets, vectors):
    """A tile of `vectors` (a constant) vectors a row, whose rows are at `offsets`."""
    ty = types.UniTuple(vec(memory.dtype), offsets.count * vectors.literal_value)

    def codegen(context, builder, sig, args):
        size = ty.dtype.scalar.bitwidth // 8
        tile = ir.Constant(context.get_value_type(ty), ir.Undefined)
        for q in range(ty.count):
            at = _in_row(builder, args[0], args[1], q, vectors.literal_value, ty.dtype)
            tile = builder.insert_value(tile, builder.load(at, align=size), q)
        return tile

    return ty(memory, offsets, vectors), codegen


@intrinsic
def store_rows_at(typingctx, tile, memory, offsets):
    """Write the rows of a tile to `offsets`.  Where two of these are the same, the rows have to be the same, too."""

    def codegen(context, builder, sig, args):
        ty = sig.args[0]
        width, size = ty.count // sig.args[2].count, ty.dtype.scalar.bitwidth // 8
        for q in range(ty.count):
            at = _in_row(builder, args[1], args[2], q, width, ty.dtype)
            builder.store(builder.extract_value(args[0], q), at, align=size)
        return context.get_dummy_value()

    return types.void(tile, memory, offsets), codegen


def _with_other(emit):
    """An intrinsic of a tile and another one, or a row, that is `emit` of each vector and its counterpart."""

    @intrinsic
    def apply(typingctx, tile, other):
        def codegen(context, builder, sig, args):
            tile, other = args
            for q in range(sig.args[0].count):
                partner = builder.extract_value(other, q % sig.args[1].count)
                tile = builder.insert_value(tile, emit(builder, builder.extract_value(tile, q), partner), q)
            return tile

        return tile(tile, other), codegen

    return apply


def _emit_slope(builder, x, y):
    zero, one = ir.Constant(y.type, None), ir.Constant(y.type, [1.0] * y.type.count)
    return builder.fmul(x, builder.select(builder.fcmp_ordered(">", y, zero), one, y))


add_row = _with_other(ir.IRBuilder.fadd)  # a row to each row of the tile
times_relu_slope = _with_other(_emit_slope)  # a tile times the slope of relu, of which the other is the output


@intrinsic
def relu_tile(typingctx, tile):
    """relu of each element: NaN stays NaN."""

    def codegen(context, builder, sig, args):
        tile = args[0]
        zero = ir.Constant(llvm_type(sig.args[0].dtype), None)
        for q in range(sig.args[0].count):
            x = builder.extract_value(tile, q)
            tile = builder.insert_value(tile, builder.select(builder.fcmp_ordered("<", x, zero), zero, x), q)
        return tile

    return tile(tile), codegen


@intrinsic(prefer_literal=True)
def touch_rows(typingctx, memory, offsets, vectors, step):
    """Write an element of every `step`-th (a constant) vector of the rows of a tile back to its place.

    So a core gets these cache lines to itself while it computes the tile.  Where another core has read a line, AMD's
    take 6 ns for a store to it, which no prefetch for writing shortens: the line is there, if not theirs alone.  A
    store waits in its queue, and nothing waits for it.  Nobody else may write these elements meanwhile.
    """

    def codegen(context, builder, sig, args):
        ty = vec(memory.dtype)
        word, size = ir.IntType(ty.scalar.bitwidth), ty.scalar.bitwidth // 8
        for row in range(offsets.count):
            start = builder.gep(args[0], [builder.extract_value(args[1], row)])
            for v in range(0, vectors.literal_value, step.literal_value):
                at = builder.bitcast(builder.gep(start, [I64(v * ty.lanes)]), word.as_pointer())
                # Atomic, or it would be left out.
                builder.store_atomic(builder.load_atomic(at, "monotonic", size), at, "monotonic", size)
        return context.get_dummy_value()

    return types.void(memory, offsets, vectors, step), codegen


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
