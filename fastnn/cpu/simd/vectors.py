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
    iota = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", iota, splat_scalar(builder, count, lanes))


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
