"""What Python calls to predict an array like one that was predicted before: a builtin function.

What is left then is to check whether it is like that one, to make an array for the outputs, and to do one step.  A row
through 4-3-1 takes 0.4 us, where Python's way to the same step takes 17.  Python's lock is held meanwhile, so there is
one call at a time; only small steps are done here (`fastnn.cpu.executable.ALONE`).  `fastnn.cpu.calls` makes such
functions.
"""

from numba.types import float64 as FLOAT64
from numba.types import int64 as INT64

from fastnn.cpu.direct import declined
from fastnn.cpu.jit import device, entry
from fastnn.cpu.objects import (
    ALIGNED,
    DESCR,
    FLAGS,
    TYPE,
    as_python,
    dimensions,
    elements,
    empty,
    half_word,
    length,
    stride,
    word,
)
from fastnn.cpu.simd import call_function, pointer_at, reference
from fastnn.records import PREDICTION

as_prediction = reference(PREDICTION)


@device
def is_alike(op, python, x):
    """Whether an object is an array like the one that the records were made for."""
    if word(x + TYPE) != python.array or word(x + DESCR) != op.descr or half_word(x + FLAGS) & ALIGNED == 0:
        return False
    if dimensions(x) != 2 or length(x, 2) != op.rows or length(x, 1) != op.cols or stride(x, 1) != op.col:
        return False
    return op.rows == 1 or stride(x, 2) == op.row


@device
def bind(places, where):
    """Write an address to all places of a list."""
    while word(places) != 0:
        pointer_at(word(places), INT64)[0] = where
        places += 8


@entry
def predict(own, arguments, count):
    """``f(x)``: the outputs for x, or None if it is not alike."""
    op = as_prediction(elements(own), FLOAT64)
    python = as_python(op.python, FLOAT64)
    if count != 1 or not is_alike(op, python, word(arguments)):
        return declined(python)
    out = empty(python, op.size, 2, op.shape)
    if out == 0:
        return 0
    bind(op.inputs, elements(word(arguments)))
    bind(op.outputs, elements(out))
    call_function(op.engine, (op.run, 0))
    return out
