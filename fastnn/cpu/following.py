"""Calls that closely follow each other, which helpers join (`fastnn.cpu.immediate.SHARED`): what compiled code does."""

from numba.types import float64 as FLOAT64

from fastnn.cpu.crowd import TABLE, TAKEN
from fastnn.cpu.immediate import CLOSE
from fastnn.cpu.jit import device
from fastnn.cpu.objects import word
from fastnn.cpu.simd import call_function, exchange, offset, pointer_at, reference, store_release
from fastnn.cpu.ticks import now
from fastnn.records import SLOT, WORKSHOP

as_workshop = reference(WORKSHOP)


@device
def follows(call, python):
    """Whether this call closely follows one of the same thread, so that helpers are likely to be awake."""
    ended = call.ended
    if call.helpers == 0 or ended[0] != call_function(python.ident, ()):
        return False
    return now(call, offset(ended, 2)) - ended[1] < CLOSE


@device
def note_end(call, python):
    """Write down who ended a call that helpers may join, and when, if there are any."""
    if call.helpers > 0:
        ended = call.ended
        ended[0], ended[1] = call_function(python.ident, ()), now(call, offset(ended, 2))


@device
def join(call, python, record):
    """Run the kernel of a record with helpers, without the interpreter's lock; whether that was possible."""
    shop = as_workshop(call.workshop, FLOAT64)
    team = shop.team
    if shop.busy or exchange(team, TAKEN, 1) != 0:
        return False
    shop.busy = 1
    # A copy, since another thread may fill in the record meanwhile; word by word, or LLVM would call memcpy.
    for i in range(SLOT // 8):
        store_release(pointer_at(shop.job, team), i, word(record + 8 * i))
    team[TABLE] = shop.job
    state = call_function(python.release, ())
    call_function(shop.together, (shop.leader, call.helpers))
    call_function(python.acquire, (state,))
    shop.busy = 0
    return True
