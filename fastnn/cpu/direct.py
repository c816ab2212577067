"""Small products of NumPy arrays, with the overhead that matters for them removed.

A product of 32 x 64 by 64 x 64 takes 2 us; reading the shapes and strides of three arrays in Python takes longer.  So this
entry reads NumPy's array objects itself, in compiled code.  Their layout is NumPy's C interface (``PyArrayObject_fields``),
unchanged since 2006; `fastnn.cpu.memory` checks it before it is relied upon.
"""

from fastnn.cpu.blocking import MR
from fastnn.cpu.jit import device, entry
from fastnn.cpu.simd import call_kernel, pointer_at, record_like
from numba.types import int32 as INT32
from numba.types import int64 as INT64

from fastnn.records import DIRECT, FORWARD, GEMM, RUN
