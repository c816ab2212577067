"""Builtin functions made of our machine code, through CPython's and NumPy's C interfaces.

A call of one costs 0.01 us, through ctypes 0.5 us.  What compiled code relies upon is tried out first, once; where it
does not hold (another Python, no global lock, a later NumPy that moved things) there are no such functions, and whoever
asks for one gets one that always declines.
"""

import ctypes
import functools
import importlib
import sys
from collections.abc import Callable

import numpy as np

from fastnn.cpu import loader
from fastnn.cpu.memory import DATA, TRUSTED, address, keep
from fastnn.records import PYTHON, SLOT

METH_FASTCALL = 0x80
NUMPY_2 = 0x02000000  # what PyArray_GetNDArrayCVersion says as long as the interface is that of NumPy 2
# Places in NumPy's table of C functions.
VERSION, ARRAY_TYPE, RETURN, EMPTY = 0, 2, 76, 184

FUNCTIONS = {  # of CPython's stable interface, by the field of the record `PYTHON`
    "keep": "Py_IncRef",
    "drop": "Py_DecRef",
    "new_number": "PyFloat_FromDouble",
    "new_tuple": "PyTuple_New",
    "put": "PyTuple_SetItem",
    "release": "PyEval_SaveThread",
    "acquire": "PyEval_RestoreThread",
    "ident": "PyThread_get_thread_ident",
}


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def make(entry: str, own: np.ndarray) -> Callable:
    """A builtin function that runs the entry "module.function" on its `own` records, or `declining`.

    The function keeps `own`.
    """
    if python() == 0:
        return declining
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    return new(_definition(entry), own, None)


@functools.cache
def _definition(entry: str) -> int:
    """The address of what Python is told of the functions of an entry."""
    definition = _MethodDef(entry.encode(), loader.address(entry, "float64"), METH_FASTCALL, None)
    keep(definition)
    return ctypes.addressof(definition)


def declining(*arguments: object) -> None:
    """In place of a builtin function where there is none."""


@functools.cache
def python() -> int:
    """The address of the record `PYTHON`, or 0 if objects are not what compiled code takes them for."""
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.implementation.name != "cpython" or not locked or not TRUSTED or ctypes.sizeof(ctypes.c_void_p) != 8:
        return 0
    table = _numpy_table()
    if not table or not _objects_hold() or not _functions_hold(table):
        return 0
    record = np.zeros(SLOT, np.uint8)
    values = {"none": id(None), "array": id(np.ndarray), "number": id(float)}
    values |= {"float32": id(np.dtype("float32")), "float64": id(np.dtype("float64"))}
    values |= {"empty": table[EMPTY], "returned": table[RETURN]}
    values["int64"] = id(np.dtype("int64"))
    for field, name in FUNCTIONS.items():
        values[field] = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0
    PYTHON.pack_into(memoryview(record), 0, values)
    keep(record)
    return address(record)


def _numpy_table() -> dict[int, int]:
    """Addresses in NumPy's C interface, if it is the one of NumPy 2."""
    try:
        capsule = importlib.import_module("numpy._core._multiarray_umath")._ARRAY_API
    except (ImportError, AttributeError):
        return {}
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    functions = ctypes.cast(pointer(capsule, None), ctypes.POINTER(ctypes.c_size_t))
    if ctypes.PYFUNCTYPE(ctypes.c_uint)(functions[VERSION])() != NUMPY_2 or functions[ARRAY_TYPE] != id(np.ndarray):
        return {}
    return {i: functions[i] for i in (RETURN, EMPTY)}


def _objects_hold() -> bool:
    """Types, values of floats and the flag of contiguous arrays lie where `fastnn.cpu.objects` reads them."""
    whole, part = np.ones((2, 3)), np.ones((2, 3))[:, ::2]
    types = (ctypes.c_size_t.from_address(id(x) + DATA - 8).value == id(type(x)) for x in (1.5, whole))
    flags = [ctypes.c_int.from_address(id(x) + DATA + 48).value for x in (whole, part)]
    value = ctypes.c_double.from_address(id(1.5) + DATA).value
    return all(types) and value == 1.5 and (flags[0] & 1, flags[1] & 1) == (1, 0)


def _functions_hold(table: dict[int, int]) -> bool:
    """PyArray_Empty makes arrays, PyArray_Return numbers, and they count references as they should."""
    dtype = np.dtype("float64")
    shape = (ctypes.c_ssize_t * 2)(3, 5)
    keep = ctypes.pythonapi.Py_IncRef
    keep.restype, keep.argtypes = None, (ctypes.py_object,)
    empty = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_int, ctypes.c_void_p, ctypes.py_object, ctypes.c_int)
    returned = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)
    expected, count = np.empty((3, 5)), sys.getrefcount(dtype)
    keep(dtype)  # both functions take over a reference
    made = empty(table[EMPTY])(2, shape, dtype, 0)
    sound = type(made) is np.ndarray and made.dtype is dtype and (made.shape, made.strides) == ((3, 5), (40, 8))
    sound = sound and made.flags.owndata and sys.getrefcount(dtype) == count + 1
    sound = sound and sys.getrefcount(made) == sys.getrefcount(expected)
    del made
    number = np.array(2.5)
    count = sys.getrefcount(number)
    keep(number)
    return bool(sound and type(returned(table[RETURN])(number)) is np.float64 and sys.getrefcount(number) == count)
