"""Python's objects as compiled code sees them: arrays and floats are read where they lie, arrays are made.

Their layout is that of CPython's ``PyFloatObject`` and NumPy's ``PyArrayObject_fields``, unchanged since 2006;
`fastnn.cpu.memory` checks it before it is relied upon.  Objects are addresses here.
"""

from numba.types import float64 as FLOAT64
from numba.types import int32 as INT32
from numba.types import int64 as INT64

from fastnn.cpu.jit import device
from fastnn.cpu.memory import DATA
from fastnn.cpu.simd import call_function, call_with_number, pointer_at, reference
from fastnn.records import PYTHON

# Byte offsets of an object's type, of a float's value and of the fields of an array.
TYPE, VALUE = DATA - 8, DATA
NDIM, SHAPE, STRIDES, DESCR, FLAGS = DATA + 8, DATA + 16, DATA + 24, DATA + 40, DATA + 48
CONTIGUOUS, ALIGNED, WRITEABLE = 0x0001, 0x0100, 0x0400

as_python = reference(PYTHON)


@device
def word(address):
    """The 64-bit integer at an address."""
    return pointer_at(address, INT64)[0]


@device
def half_word(address):
    """The 32-bit integer at an address."""
    return INT64(pointer_at(address, INT32)[0])


@device
def number(value):
    """What a float object holds."""
    return pointer_at(value + VALUE, FLOAT64)[0]


@device
def elements(array):
    """Where the elements of an array start."""
    return word(array + DATA)


@device
def dimensions(array):
    return half_word(array + NDIM)


@device
def length(array, axis):
    """Elements along an axis; 1 is the last."""
    return word(word(array + SHAPE) + 8 * (dimensions(array) - axis))


@device
def stride(array, axis):
    """Bytes from one element to the next along an axis; 1 is the last."""
    return word(word(array + STRIDES) + 8 * (dimensions(array) - axis))


@device
def volume(array):
    """Elements of an array."""
    total = 1
    for i in range(dimensions(array)):
        total *= word(word(array + SHAPE) + 8 * i)
    return total


@device
def same_shape(a, b):
    axis = dimensions(a)
    if dimensions(b) != axis:
        return False
    while axis > 0 and length(a, axis) == length(b, axis):
        axis -= 1
    return axis == 0


@device
def itemsize(python, array, flags):
    """Bytes of an element of an array of float32 or float64 with these flags, and 0 for all other objects."""
    if word(array + TYPE) != python.array or (half_word(array + FLAGS) & flags) != flags:
        return 0
    descr = word(array + DESCR)
    if descr == python.float32:
        return 4
    return 8 if descr == python.float64 else 0


@device
def extent(array, size):
    """The lowest address of an array and the one behind its highest."""
    low = elements(array)
    high = low + size
    for axis in range(1, dimensions(array) + 1):
        reach = (length(array, axis) - 1) * stride(array, axis)
        if reach < 0:
            low += reach
        else:
            high += reach
    return low, high


@device
def kept(python, value):
    """A new reference to an object."""
    call_function(python.keep, (value,))
    return value


@device
def empty(python, size, dims, shape):
    """A new array of elements of 4 or 8 bytes, whose `dims` lengths are at `shape`; 0, an exception set, if it fails.

    No Python code runs in it: arrays are not tracked by the garbage collector, and an allocator set with
    PyDataMem_SetHandler and tracemalloc's hooks are C functions.
    """
    descr = kept(python, python.float32 if size == 4 else python.float64)  # PyArray_Empty takes a reference
    return call_function(python.empty, (dims, shape, descr, 0))


@device
def number_and(python, value, second):
    """A new tuple of a float and an object, whose reference it takes over; 0, an exception set, if it fails.

    The garbage collector may run Python code in it: nothing that calls share may be in use any more.
    """
    first = call_with_number(python.new_number, value)
    pair = call_function(python.new_tuple, (2,)) if first != 0 else 0
    if pair == 0:
        call_function(python.drop, (second,))
        if first != 0:
            call_function(python.drop, (first,))
        return 0
    call_function(python.put, (pair, 0, first))
    call_function(python.put, (pair, 1, second))
    return pair
