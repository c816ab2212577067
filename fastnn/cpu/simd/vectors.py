"""The vector type, and how it looks to LLVM."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from fastnn.cpu import target

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
BITS = target.host().simd_bits


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


def llvm_type(ty: types.Type) -> ir.Type:
    if isinstance(ty, Vec):
        return ir.VectorType(llvm_type(ty.scalar), ty.lanes)
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
        super().__init__(dmm, fe_type, llvm_type(fe_type))


# --- pieces of code that the intrinsics emit ---


def vector_pointer(builder, pointer, index, vector):
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


def call_intrinsic(builder, name, result, arguments):
    fnty = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, fnty, name), arguments)


def suffix(vector: ir.Type) -> str:
    scalar = {"float": "f32", "double": "f64", "i32": "i32", "i64": "i64", "i8": "i8", "i1": "i1"}
    if isinstance(vector, ir.VectorType):
        return f"v{vector.count}{scalar[str(vector.element)]}"
    return scalar[str(vector)]


def splat_scalar(builder, scalar, lanes):
    vector = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def first_lanes_mask(builder, count, lanes):
    """The mask whose first `count` lanes are set."""
    # In lanes of 32 bits where 64 would take several registers; beyond `lanes` a count is as good as that.
    width = I32 if 64 * lanes > BITS else I64
    if width == I32:
        most = I64(lanes)
        count = builder.trunc(builder.select(builder.icmp_signed("<", count, most), count, most), I32)
    iota = ir.Constant(ir.VectorType(width, lanes), list(range(lanes)))
    return builder.icmp_signed("<", iota, splat_scalar(builder, count, lanes))


def store_lanes(builder, value, at, count):
    """Write the first `count` lanes of the vector `value` to the address `at`."""
    size = 4 if value.type.element == ir.FloatType() else 8
    if target.host().slow_masks and 8 * size * value.type.count == BITS:
        _store_by_halves(builder, value, at, count, size)
        return
    name = f"llvm.masked.store.{suffix(value.type)}.p0"
    mask = first_lanes_mask(builder, count, value.type.count)
    call_intrinsic(builder, name, ir.VoidType(), [value, at, I32(size), mask])


def _store_by_halves(builder, value, at, count, size):
    """All lanes, or as many as each bit of `count` says."""
    lanes = value.type.count
    with builder.if_else(builder.icmp_signed(">=", count, I64(lanes))) as (all_lanes, some):
        with all_lanes:
            builder.store(value, at, align=size)
        with some, builder.if_then(builder.icmp_signed(">", count, I64(0))):
            at = builder.bitcast(at, I8.as_pointer())
            while lanes > 1:
                lanes //= 2
                low, high = split(builder, value, lanes)
                wanted = builder.icmp_unsigned("!=", builder.and_(count, I64(lanes)), I64(0))
                with builder.if_then(wanted):
                    builder.store(low, builder.bitcast(at, low.type.as_pointer()), align=size)
                value = builder.select(wanted, high, low)
                at = builder.select(wanted, builder.gep(at, [I64(lanes * size)]), at)


def split(builder, value, lanes):
    """A long vector in parts of `lanes` elements."""
    undefined = ir.Constant(value.type, ir.Undefined)
    every = range(value.type.count)
    masks = [ir.Constant(ir.VectorType(I32, lanes), list(every[i : i + lanes])) for i in every[::lanes]]
    return [builder.shuffle_vector(value, undefined, mask) for mask in masks]


def join(builder, parts):
    """One long vector of a power of two of equal parts."""
    while len(parts) > 1:
        mask = ir.Constant(ir.VectorType(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
