"""Operators and functions of vectors; a scalar operand is splatted."""

import operator

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.extending import intrinsic, type_callable

from fastnn.cpu.simd.vectors import (
    BITS,
    I1,
    I32,
    Vec,
    call_intrinsic,
    first_lanes_mask,
    join,
    llvm_type,
    splat_scalar,
    split,
    suffix,
    vec,
)


def as_vector(context, builder, value, ty, like):
    """`value` of Numba type `ty`, splatted to the vector type `like` if it is a scalar."""
    if isinstance(ty, Vec):
        return value
    if isinstance(ty, types.IntegerLiteral | types.Literal):
        ty = ty.literal_type
    return splat_scalar(builder, context.cast(builder, value, ty, like.scalar), like.lanes)


def _pair(a, b):
    """The vector type of a binary operation, or None if neither operand is one."""
    vectors = [t for t in (a, b) if isinstance(t, Vec)]
    if not vectors or (len(vectors) == 2 and a != b):
        return None
    if not all(isinstance(t, Vec | types.Number | types.Boolean) for t in (a, b)):
        return None
    return vectors[0]


def _binary(function, float_op, int_op=None, *, compare=False):
    """Give `function` (an operator) a meaning for vectors."""

    @type_callable(function)
    def typer(context):
        def typer(a, b):
            ty = _pair(a, b)
            if ty is None:
                return None
            return ty.mask if compare else ty

        return typer

    def lower(context, builder, sig, args):
        like = _pair(*sig.args)
        a, b = (as_vector(context, builder, v, t, like) for v, t in zip(args, sig.args, strict=True))
        emit = float_op if isinstance(like.scalar, types.Float) else int_op
        return emit(builder, a, b)

    for signature in ((Vec, Vec), (Vec, types.Any), (types.Any, Vec)):
        lower_builtin(function, *signature)(lower)


def _compare(symbol, ordered=True):
    def floats(builder, a, b):
        return (builder.fcmp_ordered if ordered else builder.fcmp_unordered)(symbol, a, b)

    def integers(builder, a, b):
        return builder.icmp_signed(symbol, a, b)

    return floats, integers


_binary(operator.add, ir.IRBuilder.fadd, ir.IRBuilder.add)
_binary(operator.sub, ir.IRBuilder.fsub, ir.IRBuilder.sub)
_binary(operator.mul, ir.IRBuilder.fmul, ir.IRBuilder.mul)
_binary(operator.truediv, ir.IRBuilder.fdiv)
_binary(operator.lshift, None, ir.IRBuilder.shl)
_binary(operator.rshift, None, ir.IRBuilder.ashr)
_binary(operator.and_, None, ir.IRBuilder.and_)
_binary(operator.or_, None, ir.IRBuilder.or_)
_binary(operator.xor, None, ir.IRBuilder.xor)
_binary(operator.lt, *_compare("<"), compare=True)
_binary(operator.le, *_compare("<="), compare=True)
_binary(operator.gt, *_compare(">"), compare=True)
_binary(operator.ge, *_compare(">="), compare=True)
_binary(operator.eq, *_compare("=="), compare=True)
_binary(operator.ne, *_compare("!=", ordered=False), compare=True)


@type_callable(operator.neg)
def _neg(context):
    return lambda a: a if isinstance(a, Vec) else None


@lower_builtin(operator.neg, Vec)
def _lower_neg(context, builder, sig, args):
    return builder.fneg(args[0])


@intrinsic
def splat(typingctx, like, x):
    """The scalar `x` in every lane of a vector like `like` (a vector, or a pointer to its elements)."""
    ty = like if isinstance(like, Vec) else vec(like.dtype)

    def codegen(context, builder, sig, args):
        return as_vector(context, builder, args[1], sig.args[1], ty)

    return ty(like, x), codegen


@intrinsic
def scalar_like(typingctx, pointer, x):
    """The number `x` as an element of what `pointer` points to."""
    ty = pointer.dtype

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[1], sig.args[1], ty)

    return ty(pointer, x), codegen


@intrinsic
def keep_first(typingctx, x, count):
    """`x` with every lane but the first `count` set to 0."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, None)
        return builder.select(first_lanes_mask(builder, args[1], x.lanes), args[0], zero)

    return x(x, types.intp), codegen


@intrinsic
def first_lane(typingctx, x):
    """The first lane as a scalar."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], I32(0))

    return x.scalar(x), codegen


@intrinsic
def muladd(typingctx, a, b, c):
    """``a * b + c``, rounded once where the CPU can (every path but the portable one).  Scalars are splatted."""
    like = next(t for t in (a, b, c) if isinstance(t, Vec))

    def codegen(context, builder, sig, args):
        vectors = [as_vector(context, builder, v, t, like) for v, t in zip(args, sig.args, strict=True)]
        vector = llvm_type(like)
        return call_intrinsic(builder, f"llvm.fmuladd.{suffix(vector)}", vector, vectors)

    return like(a, b, c), codegen


@intrinsic
def sqrt(typingctx, x):
    """The square root, correctly rounded."""

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, f"llvm.sqrt.{suffix(args[0].type)}", args[0].type, args)

    return x(x), codegen


def _estimated(x):
    """Whether the CPU estimates reciprocals and roots of these vectors (to 14 bits, in a few cycles)."""
    return BITS == 512 and x.scalar.bitwidth * x.lanes % BITS == 0


@intrinsic
def estimates(typingctx, x):
    """Whether `estimate_reciprocal` and `estimate_root` are worth using for vectors like `x` (a constant)."""

    def codegen(context, builder, sig, args):
        return I1(_estimated(x))

    return types.boolean(x), codegen


def _estimate(builder, name, x):
    count, kind = (16, "ps") if x.type.element == ir.FloatType() else (8, "pd")
    every = ir.IntType(count)(2**count - 1)
    full = f"llvm.x86.avx512.{name}14.{kind}.512"
    return join(builder, [call_intrinsic(builder, full, v.type, [v, v, every]) for v in split(builder, x, count)])


def _refined(builder, estimate, factor, residual):
    """``estimate + estimate * factor * (1 - product of residual)``: a step of Newton's iteration, in float64 only."""
    if estimate.type.element == ir.FloatType():
        return estimate
    one = ir.Constant(estimate.type, [1.0] * estimate.type.count)
    scaled = builder.fmul(estimate, ir.Constant(estimate.type, [factor] * estimate.type.count))
    name = f"llvm.fma.{suffix(estimate.type)}"
    left = call_intrinsic(builder, name, estimate.type, [builder.fneg(residual[0]), residual[1], one])
    return call_intrinsic(builder, name, estimate.type, [scaled, left, estimate])


@intrinsic
def estimate_reciprocal(typingctx, x):
    """1 / x with a relative error below 2^-14, in float64 2^-27, or exact where the CPU has no estimates."""

    def codegen(context, builder, sig, args):
        if _estimated(x):
            y = _estimate(builder, "rcp", args[0])
            return _refined(builder, y, 1.0, (args[0], y))
        return builder.fdiv(ir.Constant(args[0].type, [1.0] * x.lanes), args[0])

    return x(x), codegen


@intrinsic
def estimate_root(typingctx, x):
    """1 / sqrt(x) with a relative error below 2^-14, in float64 2^-26, or exact where the CPU has no estimates."""

    def codegen(context, builder, sig, args):
        if _estimated(x):
            y = _estimate(builder, "rsqrt", args[0])
            return _refined(builder, y, 0.5, (builder.fmul(args[0], y), y))
        root = call_intrinsic(builder, f"llvm.sqrt.{suffix(args[0].type)}", args[0].type, args)
        return builder.fdiv(ir.Constant(args[0].type, [1.0] * x.lanes), root)

    return x(x), codegen


@intrinsic
def absolute(typingctx, x):
    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, f"llvm.fabs.{suffix(args[0].type)}", args[0].type, args)

    return x(x), codegen


@intrinsic
def copysign(typingctx, magnitude, sign):
    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, f"llvm.copysign.{suffix(args[0].type)}", args[0].type, args)

    return magnitude(magnitude, sign), codegen


@intrinsic
def select(typingctx, mask, a, b):
    """`a` where the mask is set, else `b`; one of the two may be a scalar."""
    like = a if isinstance(a, Vec) else b

    def codegen(context, builder, sig, args):
        x, y = (as_vector(context, builder, v, t, like) for v, t in zip(args[1:], sig.args[1:], strict=True))
        return builder.select(args[0], x, y)

    return like(mask, a, b), codegen


@intrinsic
def as_integers(typingctx, x):
    """The bits of a vector of floats as integers of the same size."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], llvm_type(sig.return_type))

    return x.integers(x), codegen


@intrinsic
def as_floats(typingctx, x):
    """The bits of a vector of integers as floats of the same size."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], llvm_type(sig.return_type))

    return x.floats(x), codegen


@intrinsic
def first_lanes(typingctx, like, count):
    """The mask whose first `count` lanes are set, for vectors like `like`."""

    def codegen(context, builder, sig, args):
        return first_lanes_mask(builder, args[1], like.lanes)

    return like.mask(like, types.intp), codegen


def constant(float32, float64):
    """A number that depends on the dtype, as a function of a vector: splatted floats, or integers if it is an `int`."""

    @intrinsic
    def splatted(typingctx, like):
        value = float32 if like.scalar.bitwidth == 32 else float64
        ty = like.integers if isinstance(value, int) else like.floats

        def codegen(context, builder, sig, args):
            return ir.Constant(llvm_type(ty), [value] * ty.lanes)

        return ty(like), codegen

    return splatted


def polynomial(float32, float64):
    """A polynomial as a function of a vector; coefficients for each dtype, lowest power first.

    Horner's rule, for even and odd powers apart where the degree is high: a chain of half the length lets the CPU
    overlap several vectors (log in float64, degree 18, takes 1.0 ns an element instead of 1.2).
    """

    @intrinsic
    def evaluate(typingctx, x):
        coefficients = float32 if x.scalar.bitwidth == 32 else float64

        def codegen(context, builder, sig, args):
            vector = llvm_type(x)
            name = f"llvm.fmuladd.{suffix(vector)}"

            def horner(coefficients, z):
                *rest, total = (ir.Constant(vector, [c] * x.lanes) for c in coefficients)
                for c in reversed(rest):
                    total = call_intrinsic(builder, name, vector, [total, z, c])
                return total

            if len(coefficients) <= 8:
                return horner(coefficients, args[0])
            square = builder.fmul(args[0], args[0])
            even, odd = horner(coefficients[::2], square), horner(coefficients[1::2], square)
            return call_intrinsic(builder, name, vector, [odd, args[0], even])

        return x(x), codegen

    return evaluate


def _fold(builder, value, lanes, combine):
    """Combine all lanes pairwise: a fixed tree, so a fixed rounding."""
    width = lanes
    while width > 1:
        width //= 2
        index = [i + width if i < width else i for i in range(lanes)]
        other = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, lanes), index))
        value = combine(builder, value, other)
    return builder.extract_element(value, I32(0))


@intrinsic
def sum_lanes(typingctx, x):
    """The sum of a vector's lanes, by a fixed tree."""

    def codegen(context, builder, sig, args):
        return _fold(builder, args[0], x.lanes, ir.IRBuilder.fadd)

    return x.scalar(x), codegen


@intrinsic
def sum_vectors(typingctx, block):
    """The sum of a block's vectors as one vector, by a fixed tree."""
    ty = vec(block.scalar)

    def codegen(context, builder, sig, args):
        parts = split(builder, args[0], ty.lanes)
        while len(parts) > 1:
            parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return ty(block), codegen


@intrinsic
def max_lanes(typingctx, x):
    """The largest of a vector's lanes."""

    def larger(builder, a, b):
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    def codegen(context, builder, sig, args):
        return _fold(builder, args[0], x.lanes, larger)

    return x.scalar(x), codegen
