"""The operating system's monotonic clock, for compiled code.

It is a C function, called by address.  The CPU's own counter would cost less, but it is read in another way on every
architecture, is not the same on all cores everywhere, and needs a scale; the system's clock reads that counter where it
can be trusted, and tells nanoseconds.
"""

import ctypes
import sys
import time


def function() -> tuple[int, int]:
    """Address of the system's function, and which of its clocks to read."""
    if sys.platform == "win32":
        system, which = ctypes.windll.kernel32.QueryPerformanceCounter, 0
    elif sys.platform == "darwin":
        system, which = ctypes.CDLL(None).clock_gettime, time.CLOCK_UPTIME_RAW  # CLOCK_MONOTONIC: microseconds only
    else:
        system, which = ctypes.CDLL(None).clock_gettime, time.CLOCK_MONOTONIC
    return ctypes.cast(system, ctypes.c_void_p).value or 0, which


def tick() -> float:
    """Seconds between two ticks."""
    if sys.platform == "win32":
        frequency = ctypes.c_int64()
        ctypes.windll.kernel32.QueryPerformanceFrequency(ctypes.byref(frequency))
        return 1 / frequency.value
    else:
        return 1e-9
