"""Compiled code looks at the clock (`fastnn.cpu.clock`)."""

from fastnn.cpu import target
from fastnn.cpu.jit import device
from fastnn.cpu.simd import call_function, integer

WINDOWS = "windows" in target.host().triple
BILLION = 1_000_000_000


@device
def now(clocked, place):
    """Ticks since some moment; `place` has room for two int64 and belongs to the calling thread.

    `clocked` is a record with the clock's address and number.
    """
    if WINDOWS:
        call_function(clocked.clock, (integer(place),))  # QueryPerformanceCounter
        return place[0]
    call_function(clocked.clock, (clocked.clock_id, integer(place)))  # clock_gettime: seconds and nanoseconds
    return place[0] * BILLION + place[1]
