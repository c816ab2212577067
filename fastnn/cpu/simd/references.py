"""Typed access to the fields of a plan's records (`fastnn.records`)."""

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_getattr_generic, lower_setattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model

from fastnn.cpu.simd.vectors import I8, I64
from fastnn.records import RUN, Record


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
def record_field(context, builder, ref, value, field):
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


@lower_setattr_generic(RecordRef)
def _set_record_field(context, builder, sig, args, field):
    ref, value = args
    record = sig.args[0].record
    if record.fields[field] == "float":
        value = context.cast(builder, value, sig.args[1], types.float64)
    elif record.fields[field] != "int":
        value = builder.ptrtoint(value, I64)
    at = builder.gep(ref, [I64(record.offsets[field])])
    builder.store(value, builder.bitcast(at, value.type.as_pointer()), align=8)


def reference(record):
    """A function that makes an address a reference to a record of this kind: ``refer(address, like)``.

    `like` is another reference, whose dtype is taken, or a Numba type.
    """

    @intrinsic
    def refer(typingctx, address, like):
        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], I8.as_pointer())

        scalar = like.scalar if isinstance(like, RecordRef) else like.dtype
        return RecordRef(record, scalar)(types.intp, like), codegen

    return refer


ANY_REF = RecordRef(Record("any"), types.float32)
RUN_REF = RecordRef(RUN, types.float32)
