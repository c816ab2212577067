"""What Python calls for small losses: as `fastnn.cpu.direct`, of which this is a part."""

from numba.types import float32 as FLOAT32
from numba.types import float64 as FLOAT64
from numba.types import int64 as INT64

from fastnn.cpu.batch import as_run
from fastnn.cpu.blocking import ROW
from fastnn.cpu.direct import apart, as_call, congruent, declined
from fastnn.cpu.jit import device, entry
from fastnn.cpu.objects import (
    ALIGNED,
    CONTIGUOUS,
    DESCR,
    FLAGS,
    SHAPE,
    TYPE,
    WRITEABLE,
    as_python,
    dimensions,
    elements,
    empty,
    half_word,
    itemsize,
    kept,
    length,
    number_and,
    volume,
    word,
)
from fastnn.cpu.simd import call_kernel, integer, pointer_at, reference
from fastnn.records import CRITERION, LOSS

as_criterion, as_loss = reference(CRITERION), reference(LOSS)


@device
def between(values, n, low, high):
    """Whether all values lie between two bounds; NaN does not."""
    outside = 0
    for i in range(n):
        outside += not (low <= values[i] <= high)
    return outside == 0


@device
def are_labels(python, array, rows, classes):
    """Whether an object is a contiguous array of a class number, an int64, for every row."""
    flags = CONTIGUOUS | ALIGNED
    if word(array + TYPE) != python.array or word(array + DESCR) != python.int64 or dimensions(array) != 1:
        return False
    if (half_word(array + FLAGS) & flags) != flags or length(array, 1) != rows:
        return False
    return between(pointer_at(elements(array), INT64), rows, 0, classes - 1)


@device
def are_probabilities(array, n, size):
    if size == 4:
        return between(pointer_at(elements(array), FLOAT32), n, 0, 1)
    return between(pointer_at(elements(array), FLOAT64), n, 0, 1)


@device
def total(values, rows, size):
    """The sum of a value per row, in order."""
    s = 0.0
    for r in range(rows):
        s += pointer_at(values, FLOAT32)[r] if size == 4 else pointer_at(values, FLOAT64)[r]
    return s


@entry
def mean(own, arguments, count):
    """``f(z, target, out)``: the mean loss and its gradient with respect to z; `out` may be None."""
    call = as_call(elements(own), FLOAT64)
    python = as_python(call.python, FLOAT64)
    if count != 3:
        return declined(python)
    z, target, out = word(arguments), word(arguments + 8), word(arguments + 16)
    size = itemsize(python, z, CONTIGUOUS | ALIGNED)
    record = call.float32 if size == 4 else call.float64
    if size == 0 or record == 0 or dimensions(z) == 0:
        return declined(python)
    criterion = as_criterion(record, FLOAT64)
    n = volume(z)
    if n == 0 or n > call.most or (criterion.by_rows and dimensions(z) != 2):
        return declined(python)
    if criterion.labels:
        if not are_labels(python, target, length(z, 2), length(z, 1)):
            return declined(python)
    elif not congruent(python, target, size, z) or (criterion.bounded and not are_probabilities(target, n, size)):
        return declined(python)
    if out != python.none:
        if itemsize(python, out, WRITEABLE) == 0 or not congruent(python, out, size, z):
            return declined(python)
        if not apart(out, target, size) or (elements(out) != elements(z) and not apart(out, z, size)):
            return declined(python)
        result = kept(python, out)
    else:
        result = empty(python, size, dimensions(z), word(z + SHAPE))
        if result == 0:
            return 0
    op = as_loss(criterion.loss, FLOAT64)
    value = 0.0
    first = 0
    while first < n:  # once, and once more for what is left of a whole number of rows
        width = length(z, 1) if criterion.by_rows else min(n - first, ROW)
        rows = (n - first) // width
        part = 1.0 / rows if criterion.by_rows else width / n
        at = first * size
        op.z, op.target = pointer_at(elements(z) + at, op.z), pointer_at(elements(target) + at, op.z)
        op.label = pointer_at(elements(target), INT64)
        op.p = op.grad = pointer_at(elements(result) + at, op.z)
        op.rows, op.cols, op.scale = rows, width, part
        op.ld = op.target_ld = width
        call_kernel(op, as_run(call.run, op), 0, 0)
        value += total(integer(op.value), rows, size) * part
        first += rows * width
    return number_and(python, value, result)
