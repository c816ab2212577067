"""Loads, stores and pointers.  Memory needs no alignment beyond the element's own."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastnn.cpu.simd.vectors import (
    I8,
    I32,
    I64,
    Vec,
    call_intrinsic,
    first_lanes_mask,
    join,
    llvm_type,
    split,
    store_lanes,
    suffix,
    vec,
    vector_pointer,
)


@intrinsic
def lanes(typingctx, pointer):
    """Elements in one vector of what `pointer` points to (a constant)."""
    count = vec(pointer.dtype).lanes

    def codegen(context, builder, sig, args):
        return I64(count)

    return types.intp(pointer), codegen


@intrinsic
def load(typingctx, pointer, i):
    """The vector at ``pointer[i : i + lanes]``."""
    ty = vec(pointer.dtype)

    def codegen(context, builder, sig, args):
        return builder.load(vector_pointer(builder, *args, llvm_type(ty)), align=ty.scalar.bitwidth // 8)

    return ty(pointer, types.intp), codegen


@intrinsic(prefer_literal=True)
def load_block(typingctx, pointer, row, rows, vectors):
    """`rows` (a constant) rows, `row` elements apart, of `vectors` vectors each, as one long vector.

    LLVM does each operation on its parts one after the other.  So the chains of dependent instructions of all parts lie
    side by side, where the CPU sees them: its scheduler has no room for a whole chain of one vector before the next.
    """
    ty = vec(pointer.dtype)
    count = rows.literal_value * vectors.literal_value
    block = Vec(ty.scalar, ty.lanes * count)

    def codegen(context, builder, sig, args):
        pointer, row = args[:2]
        parts = []
        for r in range(rows.literal_value):
            start = builder.mul(row, I64(r))
            for v in range(vectors.literal_value):
                at = vector_pointer(builder, pointer, builder.add(start, I64(v * ty.lanes)), llvm_type(ty))
                parts.append(builder.load(at, align=ty.scalar.bitwidth // 8))
        return join(builder, parts)

    return block(pointer, types.intp, rows, vectors), codegen


@intrinsic(prefer_literal=True)
def store_block(typingctx, pointer, row, rows, value):
    """Write what `load_block` reads."""
    ty = vec(pointer.dtype)

    def codegen(context, builder, sig, args):
        pointer, row, _, value = args
        vectors = value.type.count // ty.lanes // rows.literal_value
        for i, part in enumerate(split(builder, value, ty.lanes)):
            start = builder.add(builder.mul(row, I64(i // vectors)), I64(i % vectors * ty.lanes))
            builder.store(part, vector_pointer(builder, pointer, start, part.type), align=ty.scalar.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, rows, value), codegen


@intrinsic(prefer_literal=True)
def half_of(typingctx, block, which):
    """The first half (0) or the second one (1) of a long vector."""
    half = Vec(block.scalar, block.lanes // 2)

    def codegen(context, builder, sig, args):
        return split(builder, args[0], half.lanes)[which.literal_value]

    return half(block, which), codegen


@intrinsic
def load_first(typingctx, pointer, i, count):
    """As `load`, but only the first `count` lanes are read; the others are 0."""
    ty = vec(pointer.dtype)

    def codegen(context, builder, sig, args):
        pointer, i, count = args
        vector = llvm_type(ty)
        at = vector_pointer(builder, pointer, i, vector)
        arguments = [
            at,
            I32(ty.scalar.bitwidth // 8),
            first_lanes_mask(builder, count, ty.lanes),
            ir.Constant(vector, None),
        ]
        return call_intrinsic(builder, f"llvm.masked.load.{suffix(vector)}.p0", vector, arguments)

    return ty(pointer, types.intp, types.intp), codegen


@intrinsic
def store(typingctx, pointer, i, value):
    """``pointer[i : i + lanes] = value``."""

    def codegen(context, builder, sig, args):
        pointer, i, value = args
        size = sig.args[2].scalar.bitwidth // 8
        builder.store(value, vector_pointer(builder, pointer, i, value.type), align=size)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), codegen


@intrinsic
def store_first(typingctx, pointer, i, count, value):
    """As `store`, but only the first `count` lanes are written."""

    def codegen(context, builder, sig, args):
        pointer, i, count, value = args
        store_lanes(builder, value, vector_pointer(builder, pointer, i, value.type), count)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.intp, value), codegen


@intrinsic
def stream(typingctx, pointer, i, value):
    """As `store` past the caches, for what nobody reads soon; ``pointer + i`` must be aligned to whole vectors.

    Such stores are seen by other threads in no particular order until the thread calls `settle`.
    """

    def codegen(context, builder, sig, args):
        ty = vec(sig.args[0].dtype)
        pointer, i, value = args
        for k, part in enumerate(split(builder, value, ty.lanes)):
            at = vector_pointer(builder, pointer, builder.add(i, I64(k * ty.lanes)), part.type)
            written = builder.store(part, at, align=ty.scalar.bitwidth * ty.lanes // 8)
            written.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), codegen


@intrinsic
def settle(typingctx):
    """What this thread has stored, streamed or not, is seen by others before what it stores from now on."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")  # on x86 weaker fences emit nothing, and streaming stores pass
        return context.get_dummy_value()

    return types.void(), codegen


def _as_floats(builder, value, scalar, ty):
    """A vector of numbers of type `scalar` as the vector type `ty` of floats."""
    if isinstance(scalar, types.Integer):
        return builder.uitofp(value, llvm_type(ty))
    if scalar == ty.scalar:
        return value
    convert = builder.fptrunc if scalar.bitwidth > ty.scalar.bitwidth else builder.fpext
    return convert(value, llvm_type(ty))


def _numbers(scalar, lanes):
    """The LLVM type of a vector of a user's numbers: bytes or floats."""
    return ir.VectorType(I8 if isinstance(scalar, types.Integer) else llvm_type(scalar), lanes)


@intrinsic
def load_numbers(typingctx, pointer, i, like):
    """The bytes or floats at ``pointer[i : i + lanes]`` as a vector of the floats that `like` points to."""
    ty = vec(like.dtype)

    def codegen(context, builder, sig, args):
        vector = _numbers(pointer.dtype, ty.lanes)
        value = builder.load(vector_pointer(builder, *args[:2], vector), align=pointer.dtype.bitwidth // 8)
        return _as_floats(builder, value, pointer.dtype, ty)

    return ty(pointer, types.intp, like), codegen


@intrinsic
def load_first_numbers(typingctx, pointer, i, count, like):
    """As `load_numbers`, but only the first `count` lanes are read; the others are 0."""
    ty = vec(like.dtype)

    def codegen(context, builder, sig, args):
        vector = _numbers(pointer.dtype, ty.lanes)
        at = vector_pointer(builder, *args[:2], vector)
        mask = first_lanes_mask(builder, args[2], ty.lanes)
        arguments = [at, I32(pointer.dtype.bitwidth // 8), mask, ir.Constant(vector, None)]
        value = call_intrinsic(builder, f"llvm.masked.load.{suffix(vector)}.p0", vector, arguments)
        return _as_floats(builder, value, pointer.dtype, ty)

    return ty(pointer, types.intp, types.intp, like), codegen


def _prefetch(write, locality):
    def typed(typingctx, pointer, i):
        def codegen(context, builder, sig, args):
            at = builder.bitcast(builder.gep(args[0], [args[1]]), I8.as_pointer())
            call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), [at, I32(write), I32(locality), I32(1)])
            return context.get_dummy_value()

        return types.void(pointer, types.intp), codegen

    return intrinsic(typed)


prefetch = _prefetch(0, 3)  # start fetching the cache line of ``pointer[i]``; harmless for any address
prefetch_far = _prefetch(0, 2)  # likewise, as near as the second-level cache
prefetch_write = _prefetch(1, 3)  # likewise, to be written, too


@intrinsic
def offset(typingctx, pointer, count):
    """``pointer + count`` elements."""

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), codegen


@intrinsic
def pointer_at(typingctx, address, dtype):
    """The address (an integer) as a pointer to `dtype` (a Numba type, or a pointer whose element type is meant)."""
    ty = types.CPointer(dtype.dtype)

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(ty))

    return ty(types.intp, dtype), codegen


@intrinsic(prefer_literal=True)
def local_words(typingctx, count):
    """Memory for `count` (a constant) 64-bit integers, until the function that calls this returns."""

    def codegen(context, builder, sig, args):
        return cgutils.alloca_once(builder, I64, size=count.literal_value)

    return types.CPointer(types.int64)(count), codegen


@intrinsic
def integer(typingctx, pointer):
    """The address that a pointer holds."""

    def codegen(context, builder, sig, args):
        return builder.ptrtoint(args[0], I64)

    return types.intp(pointer), codegen


@intrinsic
def is_null(typingctx, pointer):
    def codegen(context, builder, sig, args):
        return builder.icmp_unsigned("==", builder.ptrtoint(args[0], I64), I64(0))

    return types.boolean(pointer), codegen


@intrinsic
def cast(typingctx, pointer, dtype):
    """The same address as a pointer to `dtype` (a Numba type, or a pointer whose element type is meant)."""
    element = dtype.dtype
    ty = types.CPointer(element)

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], context.get_value_type(ty))

    return ty(pointer, dtype), codegen
