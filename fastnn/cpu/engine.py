"""The engine: each thread of a team runs the same table of records, and they meet at barriers.

A record is one call through an address, so any network runs in these few lines and none needs a compilation of its own.

The counters in ``run.team`` (int64, a cache line apart):

====  =====================================================================
0     threads that have arrived at the barrier
8     barriers passed
16    set before an even step if the team must stop there (17: an odd step)
====  =====================================================================

What the timed engine leaves in ``run.times`` (int64, ticks of `fastnn.cpu.clock`), for each thread: a cache line for
the clock, then for each step a pair for each record (waiting before it, working) and a pair for the step itself
(waiting at its start, the time from one look at the clock to the next).
"""

from fastnn.cpu.blocking import SHARES
from fastnn.cpu.clock import now
from fastnn.cpu.jit import device, main
from fastnn.cpu.simd import (
    call,
    call_kernel,
    fetch_add,
    flush_subnormals,
    load_acquire,
    offset,
    pause,
    record_at,
    reference,
    restore_mode,
    store_release,
)
from fastnn.records import RUN, SLOT

as_run = reference(RUN)

ARRIVED, PASSED, STOPPED = 0, 8, 16
NEXT, FINISHED, BACK = 0, 8, 16  # of `assist`: shares claimed, done, and claimed by helpers
HEAD = 8  # elements of a thread's times before those of the first step
LINGER = 2000  # spins (about 50 us) that a helper waits for the next job: waking it takes the system as long
POSTED, AWAY, CALLED = 0, 8, 16  # of `attend`: jobs posted, helpers that have not finished theirs, a job is coming
STAY = 8000  # spins (about 200 us) that a helper of a team waits for the next step: Python makes a batch meanwhile
SPINS = 400  # about 10 us, longer than any kernel's imbalance here; then the core is offered to somebody else


@device
def barrier(run):
    """Wait until every thread of the team is here.  What was written before it is visible after it."""
    if run.threads == 1:
        return
    team = run.team
    passed = load_acquire(team, PASSED)
    if fetch_add(team, ARRIVED, 1) == run.threads - 1:
        store_release(team, ARRIVED, 0)
        store_release(team, PASSED, passed + 1)
        return
    spins = 0
    while load_acquire(team, PASSED) == passed:
        if spins < SPINS:
            spins += 1
            pause()
        else:
            call(run.yields)


@main
def assist(run, thread):
    """Take shares of one kernel's work until none is left; thread 0 then waits for the others, who linger a while.

    Thread 0 takes them from the front, helpers from the back, so that what a core wrote in the last call it mostly
    writes again in the next.  Who comes late, or not at all, costs nothing: shares are claimed, not assigned.

    Thread -1 opens a job: its record must be complete by then, since a thread that lingers from the job before may
    claim a share of this one.
    """
    team = run.team
    if thread < 0:
        store_release(team, FINISHED, 0)
        store_release(team, BACK, 0)
        store_release(team, NEXT, 0)
        return
    front = 0
    spins = 0
    while spins < LINGER:
        if load_acquire(team, NEXT) < SHARES and fetch_add(team, NEXT, 1) < SHARES:
            if thread == 0:
                share = front
                front += 1
            else:
                share = SHARES - 1 - fetch_add(team, BACK, 1)
            call_kernel(record_at(run.table), run, 0, share)
            fetch_add(team, FINISHED, 1)
            spins = 0
        elif thread == 0:
            break
        else:
            spins += 1
            pause()
    spins = 0
    while thread == 0 and load_acquire(team, FINISHED) < SHARES:
        if spins < SPINS:
            spins += 1
            pause()
        else:
            call(run.yields)


def make_steps(timed):
    """A thread's part of a run; `timed` ones also write down how long each record took."""

    @device
    def steps(run, thread):
        """Run steps [first, stop) of a plan, or until ``run.halt`` is set.

        Subnormal numbers count as 0 meanwhile: Adam's first moment of a weight that is never used decays into them,
        and each operation on one costs the CPU over a hundred cycles (MNIST, after one epoch: 700 us a step instead of
        330).
        """
        mode = flush_subnormals()
        if timed:
            clock = offset(run.times, thread * run.times_stride)
            end = now(run, clock)
        for step in range(run.first, run.stop):
            short = step == run.short_step
            table = run.short_table if short else run.table
            records = run.short_records if short else run.records
            # The flag was written before this barrier by the one thread that reads run.halt, and is written again two
            # steps later at the earliest: all threads see the same value.
            barrier(run)
            if load_acquire(run.team, STOPPED + step % 2):
                break
            if timed:
                times = offset(clock, HEAD + step * 2 * (records + 1))
                start = now(run, clock)
                times[2 * records] = start - end
                end = now(run, clock)
                times[2 * records + 1] = end - start
            for i in range(records):
                op = record_at(table + i * SLOT)
                if op.barrier:
                    barrier(run)
                if timed:
                    start = end
                    if op.barrier:
                        start = now(run, clock)
                    times[2 * i] = start - end
                call_kernel(op, run, step, thread)
                if timed:
                    end = now(run, clock)
                    times[2 * i + 1] = end - start
            if thread == 0:
                store_release(run.done, 0, step + 1)
                store_release(run.team, STOPPED + (step + 1) % 2, load_acquire(run.halt, 0))
        restore_mode(mode)

    return steps


steps, timed_steps = make_steps(False), make_steps(True)


@main
def engine(run, thread):
    """Thread's part of a run."""
    steps(run, thread)


@main
def timed(run, thread):
    """The same, for `Sequential.profile`."""
    timed_steps(run, thread)


@main
def lead(place, thread):
    """Do the run at ``place.table`` as thread 0, together with the helpers that `attend`, and wait for all of them.

    For a run of one step: a team that is woken by the system for each (`fastnn.cpu.team.Team.run`) takes over 100 us.
    """
    team = place.team
    store_release(team, AWAY, place.threads - 1)
    store_release(team, POSTED, load_acquire(team, POSTED) + 1)
    steps(as_run(place.table, place), 0)
    spins = 0
    while load_acquire(team, AWAY) > 0:
        if spins < SPINS:
            spins += 1
            pause()
        else:
            call(place.yields)


@main
def attend(place, thread):
    """Do the runs that `lead` posts, as one of their threads, until none has come for a while.

    While the leader has called it stays in any case: one that left between the call and the job would be missed.
    """
    seen = 8 * thread  # where this helper keeps the number of the last job that it did
    spins = 0
    while spins < STAY or load_acquire(place.team, CALLED):
        posted = load_acquire(place.team, POSTED)
        if posted != place.ready[seen]:
            place.ready[seen] = posted
            steps(as_run(place.table, place), thread)
            fetch_add(place.team, AWAY, -1)
            spins = 0
        elif spins < STAY:
            spins += 1
            pause()
        else:
            call(place.yields)
