"""What the operations of a program must do at least, from their records alone: arithmetic, and bytes to move.

Arithmetic is that of the products: two operations for each multiply-add.  Padding to whole vectors counts, since it is
computed; activations, losses and updates are not counted, because a multiply-add is no measure of an exponential.

Bytes are those of each operand once: read, written, or both.  What a kernel packs, or reads again because a cache could
not hold it, is not counted: the floor does not depend on how the work is cut.
"""

from collections.abc import Mapping

from fastnn import records
from fastnn.program import Op, Ref

INT64 = 8


def flops(op: Op, density: float = 1.0) -> int:
    """Operations of a product, a multiply-add being two; 0 for all else.

    `density` is the share of them that is done where a product leaves out those with a 0.
    """
    if op.record is not records.GEMM:
        return 0
    return round(2 * _int(op.fields, "m") * _int(op.fields, "n") * _int(op.fields, "k") * density)


def moved(op: Op, size: int) -> int:
    """Bytes that an operation reads and writes, with elements of `size` bytes.

    Raises
    ------
    NotImplementedError
        If nobody has said what operations with such a record move.
    """
    fields, record = op.fields, op.record
    if record is records.GEMM:
        return size * _product(op)
    if record is records.UPDATE:
        return size * _int(fields, "n") * (2 * _given(fields, "p", "s0", "s1") + _given(fields, "g", "more"))
    rows, cols = _int(fields, "rows", 0), _int(fields, "cols", 1)
    index = INT64 * rows if "index" in fields else 0
    if record is records.GATHER:
        source = {"uint8": 1, "float32": 4, "float64": 8}[op.kernel.rpartition("_")[2]]
        return rows * cols * (source + size) + index
    if record is records.LABELS:
        return 2 * INT64 * rows + index
    if record is records.MAP and op.kernel.endswith("_map"):
        return 2 * size * _int(fields, "n")
    if op.kernel.endswith("_outer"):
        return size * (rows * cols * (2 - (fields["x"] == fields["y"])) + rows + cols)
    if record in (records.SCATTER, records.DROPOUT, records.MAP):
        return rows * cols * size * (2 + _given(fields, "g"))
    if record is records.TOTAL:
        return rows * size * (1 + _given(fields, "weight")) + INT64
    if record in (records.LOSS, records.METRIC):
        matrices = 1 + _given(fields, "p", "grad", "target")
        vectors = 1 + _given(fields, "weight")
        return size * rows * (matrices * cols + vectors) + INT64 * rows * _given(fields, "label")
    raise NotImplementedError(f"what {op.kernel} moves is not known: its record is {record}")


def _product(op: Op) -> int:
    """Elements of both factors and of what the epilogue touches."""
    fields = op.fields
    m, n, k = (_int(fields, name) for name in ("m", "n", "k"))
    factors = (m if fields["a_row"] else 1) * (k if fields["a_col"] else 1)
    factors += (k if fields["b_row"] else 1) * (n if fields["b_col"] else 1)
    assert op.epilogue is not None
    epilogue = op.epilogue.fields
    if op.epilogue.record is records.UPDATE:
        updated = m * n + (_int(op.sums.fields, "n") if op.sums else 0)
        return factors + 2 * updated * _given(epilogue, "p", "s0", "s1")
    vectors = (1 if "one_bias" in epilogue else n) * _given(epilogue, "bias") + (n if op.sums else 0)
    return factors + m * n * _given(epilogue, "c", "y", "more") + vectors


def _int(fields: Mapping[str, int | float | Ref], name: str, default: int | None = None) -> int:
    value = fields[name] if default is None else fields.get(name, default)
    assert isinstance(value, int)
    return value


def _given(fields: Mapping[str, int | float | Ref], *names: str) -> int:
    """How many of these operands an operation has."""
    return sum(isinstance(fields.get(name), Ref) for name in names)
