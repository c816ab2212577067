"""SIMD vectors, register tiles and raw memory as Numba types.

This file teaches Numba the few things that a BLAS-class kernel needs and plain Numba lacks, so that the kernels
themselves stay short loops:

- `Vec`: a vector of float32 or float64 as wide as the CPU's registers, with arithmetic, comparison and `muladd`;
- `load`, `store`, `splat` and their masked forms for the first lanes of a ragged end;
- `zeros_tile`, `rank1`, `store_tile`: a tile of C held in registers, and its update by one column of A times one row of
B;
- `RecordRef`: typed access to the fields of a plan's record (`fastnn.records`);
- atomics, for the barrier, and calls through an address, for the engine.

Each is an intrinsic that emits a few LLVM instructions.  No fast-math flag is ever set: NaN and infinity behave as
IEEE says, and the order of operations is the order written.  Memory needs no alignment beyond the element's own.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin, lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model, type_callable

from fastnn.cpu import target
from fastnn.records import RUN, Record

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
BITS = target.host().simd_bits

# --- types ------------------------------------------------------------------------------------------------------


class Vec(types.Type):
    """A vector of `lanes` scalars: float32, float64, or the integers of the same size, or booleans (a mask)."""

    def __init__(self, scalar: types.Type, lanes: int) -> None:
        self.scalar, self.lanes = scalar, lanes
        super().__init__(f"vec{lanes}x{scalar}")

    @property
    def integers(self) -> "Vec":
        return Vec(types.int32 if self.scalar.bitwidth == 32 else types.int64, self.lanes)

    @property
    def floats(self) -> "Vec":
        return Vec(types.float32 if self.scalar.bitwidth == 32 else types.float64, self.lanes)

    @property
    def mask(self) -> "Vec":
        return Vec(types.boolean, self.lanes)


def vec(scalar: types.Type) -> Vec:
    """The vector type that fills a register of this CPU."""
    return Vec(scalar, BITS // scalar.bitwidth)


def _llvm(ty: types.Type) -> ir.Type:
    if isinstance(ty, Vec):
        return ir.VectorType(_llvm(ty.scalar), ty.lanes)
    return {
        types.float32: ir.FloatType(),
        types.float64: ir.DoubleType(),
        types.int32: I32,
        types.int64: I64,
        types.boolean: I1,
    }[ty]


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _llvm(fe_type))


class RecordRef(types.Type):
    """A pointer to a record whose ``T*`` fields point to `scalar`."""

    def __init__(self, record: Record, scalar: types.Type) -> None:
        self.record, self.scalar = record, scalar
        super().__init__(f"{record.name}*{scalar}")


@register_model(RecordRef)
class _RecordRefModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I8.as_pointer())


_KINDS = {
    "int": types.intp,
    "u8*": types.CPointer(types.uint8),
    "i64*": types.CPointer(types.int64),
    "f32*": types.CPointer(types.float32),
    "f64*": types.CPointer(types.float64),
}


@infer_getattr
class _RecordAttributes(AttributeTemplate):
    key = RecordRef

    def generic_resolve(self, ref, field):
        kind = ref.record.fields.get(field)
        if kind == "T*":
            return types.CPointer(ref.scalar)
        if kind == "float":
            return ref.scalar
        return _KINDS.get(kind)


@lower_getattr_generic(RecordRef)
def _record_field(context, builder, ref, value, field):
    offset = ref.record.offsets[field]
    kind = ref.record.fields[field]
    stored = ir.DoubleType() if kind == "float" else I64
    raw = builder.load(builder.bitcast(builder.gep(value, [I64(offset)]), stored.as_pointer()), align=8)
    if kind == "float":
        return context.cast(builder, raw, types.float64, ref.scalar)
    if kind == "int":
        return raw
    ty = types.CPointer(ref.scalar) if kind == "T*" else _KINDS[kind]
    return builder.inttoptr(raw, context.get_value_type(ty))


# --- memory -----------------------------------------------------------------------------------------------------


def _vector_pointer(builder, pointer, index, vector):
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


def _intrinsic(builder, name, result, arguments):
    fnty = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, fnty, name), arguments)


def _suffix(vector: ir.Type) -> str:
    scalar = {"float": "f32", "double": "f64", "i32": "i32", "i64": "i64", "i1": "i1"}
    if isinstance(vector, ir.VectorType):
        return f"v{vector.count}{scalar[str(vector.element)]}"
    return scalar[str(vector)]


def _splat(builder, scalar, lanes):
    vector = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def _first_lanes(builder, count, lanes):
    """The mask whose first `count` lanes are set."""
    iota = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", iota, _splat(builder, count, lanes))


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
        return builder.load(_vector_pointer(builder, *args, _llvm(ty)), align=ty.scalar.bitwidth // 8)

    return ty(pointer, types.intp), codegen


@intrinsic
def load_first(typingctx, pointer, i, count):
    """As `load`, but only the first `count` lanes are read; the others are 0."""
    ty = vec(pointer.dtype)

    def codegen(context, builder, sig, args):
        pointer, i, count = args
        vector = _llvm(ty)
        at = _vector_pointer(builder, pointer, i, vector)
        arguments = [
            at,
            I32(ty.scalar.bitwidth // 8),
            _first_lanes(builder, count, ty.lanes),
            ir.Constant(vector, None),
        ]
        return _intrinsic(builder, f"llvm.masked.load.{_suffix(vector)}.p0", vector, arguments)

    return ty(pointer, types.intp, types.intp), codegen


@intrinsic
def store(typingctx, pointer, i, value):
    """``pointer[i : i + lanes] = value``."""

    def codegen(context, builder, sig, args):
        pointer, i, value = args
        size = sig.args[2].scalar.bitwidth // 8
        builder.store(value, _vector_pointer(builder, pointer, i, value.type), align=size)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), codegen


@intrinsic
def store_first(typingctx, pointer, i, count, value):
    """As `store`, but only the first `count` lanes are written."""

    def codegen(context, builder, sig, args):
        pointer, i, count, value = args
        at = _vector_pointer(builder, pointer, i, value.type)
        size = sig.args[3].scalar.bitwidth // 8
        arguments = [value, at, I32(size), _first_lanes(builder, count, sig.args[3].lanes)]
        _intrinsic(builder, f"llvm.masked.store.{_suffix(value.type)}.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.intp, value), codegen


@intrinsic
def load_bytes(typingctx, pointer, i, like):
    """The bytes at ``pointer[i : i + lanes]`` as a vector of the floats that `like` points to."""
    ty = vec(like.dtype)

    def codegen(context, builder, sig, args):
        octets = ir.VectorType(I8, ty.lanes)
        value = builder.load(_vector_pointer(builder, args[0], args[1], octets), align=1)
        return builder.uitofp(value, _llvm(ty))

    return ty(pointer, types.intp, like), codegen


@intrinsic
def offset(typingctx, pointer, count):
    """``pointer + count`` elements."""

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), codegen


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


@intrinsic(prefer_literal=True)
def stack(typingctx, like, count):
    """`count` (a constant) elements of what `like` points to, on the stack of this call; 64-byte aligned."""
    ty = types.CPointer(like.dtype)
    size = count.literal_value

    def codegen(context, builder, sig, args):
        memory = cgutils.alloca_once(builder, ir.ArrayType(_llvm(like.dtype), size))
        memory.align = 64
        return builder.bitcast(memory, context.get_value_type(ty))

    return ty(like, count), codegen


# --- arithmetic -------------------------------------------------------------------------------------------------


def _as_vector(context, builder, value, ty, like):
    """`value` of Numba type `ty`, splatted to the vector type `like` if it is a scalar."""
    if isinstance(ty, Vec):
        return value
    if isinstance(ty, types.IntegerLiteral | types.Literal):
        ty = ty.literal_type
    return _splat(builder, context.cast(builder, value, ty, like.scalar), like.lanes)


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
        a, b = (_as_vector(context, builder, v, t, like) for v, t in zip(args, sig.args, strict=True))
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
        return _as_vector(context, builder, args[1], sig.args[1], ty)

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
        return builder.select(_first_lanes(builder, args[1], x.lanes), args[0], zero)

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
        vectors = [_as_vector(context, builder, v, t, like) for v, t in zip(args, sig.args, strict=True)]
        vector = _llvm(like)
        return _intrinsic(builder, f"llvm.fmuladd.{_suffix(vector)}", vector, vectors)

    return like(a, b, c), codegen


@intrinsic
def sqrt(typingctx, x):
    """The square root, correctly rounded."""

    def codegen(context, builder, sig, args):
        return _intrinsic(builder, f"llvm.sqrt.{_suffix(args[0].type)}", args[0].type, args)

    return x(x), codegen


@intrinsic
def absolute(typingctx, x):
    def codegen(context, builder, sig, args):
        return _intrinsic(builder, f"llvm.fabs.{_suffix(args[0].type)}", args[0].type, args)

    return x(x), codegen


@intrinsic
def copysign(typingctx, magnitude, sign):
    def codegen(context, builder, sig, args):
        return _intrinsic(builder, f"llvm.copysign.{_suffix(args[0].type)}", args[0].type, args)

    return magnitude(magnitude, sign), codegen


@intrinsic
def select(typingctx, mask, a, b):
    """`a` where the mask is set, else `b`; one of the two may be a scalar."""
    like = a if isinstance(a, Vec) else b

    def codegen(context, builder, sig, args):
        x, y = (_as_vector(context, builder, v, t, like) for v, t in zip(args[1:], sig.args[1:], strict=True))
        return builder.select(args[0], x, y)

    return like(mask, a, b), codegen


@intrinsic
def as_integers(typingctx, x):
    """The bits of a vector of floats as integers of the same size."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], _llvm(sig.return_type))

    return x.integers(x), codegen


@intrinsic
def as_floats(typingctx, x):
    """The bits of a vector of integers as floats of the same size."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], _llvm(sig.return_type))

    return x.floats(x), codegen


@intrinsic
def to_floats(typingctx, x):
    """Integers converted to floats of the same size."""

    def codegen(context, builder, sig, args):
        return builder.sitofp(args[0], _llvm(sig.return_type))

    return x.floats(x), codegen


@intrinsic
def first_lanes(typingctx, like, count):
    """The mask whose first `count` lanes are set, for vectors like `like`."""

    def codegen(context, builder, sig, args):
        return _first_lanes(builder, args[1], like.lanes)

    return like.mask(like, types.intp), codegen


def constant(float32, float64):
    """A number that depends on the dtype, as a function of a vector: splatted floats, or integers if it is an `int`."""

    @intrinsic
    def splatted(typingctx, like):
        value = float32 if like.scalar.bitwidth == 32 else float64
        ty = like.integers if isinstance(value, int) else like.floats

        def codegen(context, builder, sig, args):
            return ir.Constant(_llvm(ty), [value] * ty.lanes)

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
            vector = _llvm(x)
            name = f"llvm.fmuladd.{_suffix(vector)}"

            def horner(coefficients, z):
                *rest, total = (ir.Constant(vector, [c] * x.lanes) for c in coefficients)
                for c in reversed(rest):
                    total = _intrinsic(builder, name, vector, [total, z, c])
                return total

            if len(coefficients) <= 8:
                return horner(coefficients, args[0])
            square = builder.fmul(args[0], args[0])
            even, odd = horner(coefficients[::2], square), horner(coefficients[1::2], square)
            return _intrinsic(builder, name, vector, [odd, args[0], even])

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
def max_lanes(typingctx, x):
    """The largest of a vector's lanes."""

    def larger(builder, a, b):
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    def codegen(context, builder, sig, args):
        return _fold(builder, args[0], x.lanes, larger)

    return x.scalar(x), codegen


# --- register tiles ---------------------------------------------------------------------------------------------


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
        vector, lanes = _llvm(ty.dtype), ty.dtype.lanes
        tile = ir.Constant(context.get_value_type(ty), ir.Undefined)
        for q in range(ty.count):
            at = _vector_pointer(builder, args[0], I64(q * lanes), vector)
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
        vector = _llvm(ty)
        size = ty.scalar.bitwidth // 8
        row = [builder.load(_vector_pointer(builder, b, I64(j * ty.lanes), vector), align=size) for j in range(columns)]
        name = f"llvm.fmuladd.{_suffix(vector)}"
        for i in range(sig.args[0].count // columns):
            at = builder.gep(a, [builder.mul(a_row, I64(i))])
            x = _splat(builder, builder.load(at, align=size), ty.lanes)
            for j in range(columns):
                q = i * columns + j
                total = _intrinsic(builder, name, vector, [x, row[j], builder.extract_value(tile, q)])
                tile = builder.insert_value(tile, total, q)
        return tile

    return tile(tile, vectors, a, types.intp, b), codegen


@intrinsic
def store_tile(typingctx, tile, memory):
    """Write a tile to `memory`, row after row without gaps."""

    def codegen(context, builder, sig, args):
        ty = sig.args[0].dtype
        for q in range(sig.args[0].count):
            at = _vector_pointer(builder, args[1], I64(q * ty.lanes), _llvm(ty))
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
        vector, size = _llvm(ty), ty.scalar.bitwidth // 8
        rows = [
            builder.load(_vector_pointer(builder, source, builder.mul(row, I64(i)), vector), align=size)
            for i in range(ty.lanes)
        ]
        for j, column in enumerate(_butterfly(builder, rows)):
            builder.store(column, _vector_pointer(builder, out, builder.mul(out_row, I64(j)), vector), align=size)
        return context.get_dummy_value()

    return types.void(source, types.intp, out, types.intp), codegen


@intrinsic
def transpose_corner(typingctx, source, row, rows, cols, out, out_row):
    """As `transpose_block` for `rows` x `cols` elements; writes `cols` whole vectors, with zeros beyond `rows`."""
    ty = vec(source.dtype)

    def codegen(context, builder, sig, args):
        source, row, count, cols, out, out_row = args
        vector, size = _llvm(ty), ty.scalar.bitwidth // 8
        zero = ir.Constant(vector, None)
        name = f"llvm.masked.load.{_suffix(vector)}.p0"
        rows = []
        for i in range(ty.lanes):
            read = builder.select(builder.icmp_signed("<", I64(i), count), cols, I64(0))
            at = _vector_pointer(builder, source, builder.mul(row, I64(i)), vector)
            mask = _first_lanes(builder, read, ty.lanes)
            rows.append(_intrinsic(builder, name, vector, [at, I32(size), mask, zero]))
        for j, column in enumerate(_butterfly(builder, rows)):
            with builder.if_then(builder.icmp_signed("<", I64(j), cols)):
                builder.store(column, _vector_pointer(builder, out, builder.mul(out_row, I64(j)), vector), align=size)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(source, integer, integer, integer, out, integer), codegen


# --- atomics and calls, for the engine --------------------------------------------------------------------------


@intrinsic
def fetch_add(typingctx, pointer, i, value):
    """Add to the int64 at ``pointer[i]`` atomically; returns what was there."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(pointer, types.intp, types.int64), codegen


@intrinsic
def load_acquire(typingctx, pointer, i):
    def codegen(context, builder, sig, args):
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "acquire", 8)

    return types.int64(pointer, types.intp), codegen


@intrinsic
def store_release(typingctx, pointer, i, value):
    def codegen(context, builder, sig, args):
        builder.store_atomic(args[2], builder.gep(args[0], [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the CPU that this is a spin loop."""

    def codegen(context, builder, sig, args):
        triple = target.host().triple
        if triple.startswith(("x86_64", "i686", "amd64")):
            _intrinsic(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif triple.startswith(("aarch64", "arm64")):
            _intrinsic(builder, "llvm.aarch64.hint", ir.VoidType(), [I32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(typingctx, address):
    """Call the C function ``void f(void)`` (or one whose result is ignored) at `address`."""

    def codegen(context, builder, sig, args):
        builder.call(builder.inttoptr(args[0], ir.FunctionType(I32, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


ANY = Record("any")
ANY_REF = RecordRef(ANY, types.float32)
RUN_REF = RecordRef(RUN, types.float32)


@intrinsic
def record_at(typingctx, address):
    """The header of the record at `address`."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], I8.as_pointer())

    return ANY_REF(types.intp), codegen


@intrinsic
def call_kernel(typingctx, op, run, step, thread):
    """Call the kernel that the record `op` names."""

    def codegen(context, builder, sig, args):
        kernel = _record_field(context, builder, sig.args[0], args[0], "kernel")
        fnty = ir.FunctionType(ir.VoidType(), [a.type for a in args])
        builder.call(builder.inttoptr(kernel, fnty.as_pointer()), args)
        return context.get_dummy_value()

    return types.void(op, run, types.intp, types.intp), codegen


@intrinsic
def call_epilogue(typingctx, op, run, step, tile, tile_row, i, j, rows, cols):
    """Apply the epilogue of `op` to the tile of C at (i, j), held at `tile` with leading dimension `tile_row`."""

    def codegen(context, builder, sig, args):
        record = builder.inttoptr(_record_field(context, builder, sig.args[0], args[0], "epilogue"), I8.as_pointer())
        kernel = _record_field(context, builder, ANY_REF, record, "kernel")
        arguments = [record, *args[1:]]
        fnty = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        builder.call(builder.inttoptr(kernel, fnty.as_pointer()), arguments)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(op, run, integer, tile, integer, integer, integer, integer, integer), codegen
