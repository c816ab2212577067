"""Which elements are not 0, as the bits of integers."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnn.cpu.simd.vectors import I1, I64, Vec, call_intrinsic, splat_scalar, vec, vector_pointer


def _differs(builder, x):
    """The mask of lanes that are not 0, as NaN is not."""
    return builder.fcmp_unordered("!=", x, ir.Constant(x.type, None))


@intrinsic
def nonzero_lanes(typingctx, x):
    """An integer whose bit i says whether lane i of a vector is not 0."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(_differs(builder, args[0]), ir.IntType(x.lanes))
        return builder.zext(bits, I64)

    return types.int64(x), codegen


@intrinsic
def trailing_zeros(typingctx, x):
    """How many zeros follow the last 1 of an integer that is not 0: where its lowest bit is."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, "llvm.cttz.i64", I64, [args[0], I1(1)])

    return types.int64(types.int64), codegen


@intrinsic
def ones(typingctx, word):
    """How many bits of an integer are 1."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, "llvm.ctpop.i64", I64, args)

    return types.int64(types.int64), codegen


@intrinsic
def zero_words(typingctx, like):
    """A 64-bit integer, 0, for each lane of a vector of what `like` points to."""
    ty = Vec(types.int64, vec(like.dtype).lanes)

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.VectorType(I64, ty.lanes), None)

    return ty(like), codegen


@intrinsic
def set_bits(typingctx, words, bit, x):
    """`words` with bit `bit` set for each lane of the vector `x` that is not 0."""

    def codegen(context, builder, sig, args):
        words, bit, x = args
        one = splat_scalar(builder, builder.shl(I64(1), bit), words.type.count)
        return builder.or_(words, builder.select(_differs(builder, x), one, ir.Constant(words.type, None)))

    return words(words, types.int64, x), codegen


@intrinsic
def store_words(typingctx, pointer, i, words):
    """Write them to ``pointer[i:]``."""

    def codegen(context, builder, sig, args):
        pointer, i, words = args
        builder.store(words, vector_pointer(builder, pointer, i, words.type), align=8)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, words), codegen
