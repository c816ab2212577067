"""Loads, stores and pointers.  Memory needs no alignment beyond the element's own."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastnn.cpu.simd.vectors import (
    I8,
    I32,
    I64,
    call_intrinsic,
    first_lanes_mask,
    llvm_type,
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
        at = vector_pointer(builder, pointer, i, value.type)
        size = sig.args[3].scalar.bitwidth // 8
        arguments = [value, at, I32(size), first_lanes_mask(builder, count, sig.args[3].lanes)]
        call_intrinsic(builder, f"llvm.masked.store.{suffix(value.type)}.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.intp, value), codegen


@intrinsic
def stream(typingctx, pointer, i, value):
    """As `store` past the caches, for what nobody reads soon; ``pointer + i`` must be aligned to whole vectors.

    Such stores are seen by other threads in no particular order until the thread calls `settle`.
    """

    def codegen(context, builder, sig, args):
        pointer, i, value = args
        size = sig.args[2].scalar.bitwidth * sig.args[2].lanes // 8
        written = builder.store(value, vector_pointer(builder, pointer, i, value.type), align=size)
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


@intrinsic
def load_bytes(typingctx, pointer, i, like):
    """The bytes at ``pointer[i : i + lanes]`` as a vector of the floats that `like` points to."""
    ty = vec(like.dtype)

    def codegen(context, builder, sig, args):
        octets = ir.VectorType(I8, ty.lanes)
        value = builder.load(vector_pointer(builder, args[0], args[1], octets), align=1)
        return builder.uitofp(value, llvm_type(ty))

    return ty(pointer, types.intp, like), codegen


def _prefetch(write):
    def typed(typingctx, pointer, i):
        def codegen(context, builder, sig, args):
            at = builder.bitcast(builder.gep(args[0], [args[1]]), I8.as_pointer())
            call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), [at, I32(write), I32(3), I32(1)])
            return context.get_dummy_value()

        return types.void(pointer, types.intp), codegen

    return intrinsic(typed)


prefetch = _prefetch(0)  # start fetching the cache line of ``pointer[i]``; harmless for any address
prefetch_write = _prefetch(1)  # likewise, to be written, too


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
