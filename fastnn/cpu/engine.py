"""The engine: each thread of a team runs a table of records, and they meet at barriers.

A record is one call through an address, so any network runs in these few lines and none needs a compilation of its own.
Threads share the work of each record; or each has a table of its own (``run.apart``), whose records it does by itself
but for tasks of the last one (`fastnn.cpu.tensor_parallel`).  Kernels are given ``run.single`` then, as whose only
thread it works.

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

from fastnn.cpu.blocking import LINE, SHARES
from fastnn.cpu.crowd import (
    ASLEEP,
    BACK,
    COLUMNS,
    CPUS,
    FINISHED,
    GRANTED,
    HERE,
    JOB,
    LOCK,
    MASK,
    MASKS,
    MOVE,
    NEXT,
    PLACES,
    RATE,
    SEEN,
    TABLE,
    TAKEN,
    THREAD,
    UNLOCK,
    WHERE,
)
from fastnn.cpu.jit import device, main
from fastnn.cpu.simd import (
    call,
    call_function,
    call_kernel,
    exchange,
    fetch_add,
    flush_subnormals,
    is_null,
    load_acquire,
    offset,
    pause,
    pointer_at,
    record_at,
    reference,
    restore_mode,
    store_release,
)
from fastnn.cpu.team import SPINS
from fastnn.cpu.ticks import now
from fastnn.records import RUN, SLOT

as_run = reference(RUN)

ARRIVED, PASSED, STOPPED = 0, 8, 16
HEAD = 8  # elements of a thread's times before those of the first step
# Spins (about 200 us) that a helper waits for the next job, or the next step, for which Python makes a batch.  To wake
# it takes 50 us, and whoever is interrupted comes late: with 2000 spins a step of 784-256-10 by hand, batch 32,
# took 510 us instead of 290 beside neighbours, and Adam over 200,000 parameters in a loop 100 instead of 55.
LINGER = 8000
POSTED, AWAY, CALLED = 0, 8, 16  # of `attend`: jobs posted, helpers that have not finished theirs, a job is coming


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
        if spins < run.spins:
            spins += 1
            pause()
        else:
            call(run.yields)


@device
def do_share(run, number):
    """One share of the crowd's job, in the calling thread's place `run`."""
    team, own = run.team, run.ready
    if own[SEEN] != team[JOB]:
        own[SEEN], own[COLUMNS] = team[JOB], -1
        run.table, run.rate = team[TABLE], pointer_at(team[RATE], run.rate)
    call_kernel(record_at(run.table), run, 0, number)
    fetch_add(team, FINISHED, 1)


@main
def claim(run, thread):
    """Reserve the crowd for the caller, who may then name a job, unless somebody else has it."""
    run.team[GRANTED] = exchange(run.team, TAKEN, 1) == 0


@device
def make_way(run):
    """Send all helpers to other CPUs than the caller's, if it is not where it was at the last job."""
    team = run.team
    if team[CPUS] == 0:
        return
    cpu = call_function(team[WHERE], ()) & 0xFFFFFFFF
    if cpu == team[HERE] or cpu >= team[CPUS]:
        return
    team[HERE] = cpu
    for helper in range(1, team[PLACES]):
        thread = run.ready[LINE * helper + THREAD]
        if thread == 0:  # it has not started yet
            team[HERE] = -1
        else:
            call_function(team[MOVE], (thread, team[MASK], team[MASKS] + cpu * team[MASK]))


@main
def together(run, helpers):
    """Do the job that the claimed crowd was told, with the help of as many others, and give the crowd back.

    The caller takes shares from the front, helpers from the back, so that what a core wrote in the last call it mostly
    writes again in the next.  Who comes late, or not at all, costs nothing: shares are claimed, not assigned.
    """
    team = run.team
    team[JOB] += 1
    store_release(team, FINISHED, 0)
    store_release(team, BACK, 0)
    exchange(team, NEXT, 0)  # opens the job: a helper that lingers may claim a share from here on
    make_way(run)
    for helper in range(1, helpers + 1):
        own = offset(run.ready, LINE * helper)
        if exchange(own, ASLEEP, 0):
            call_function(team[UNLOCK], (own[LOCK],))
    front = 0
    while fetch_add(team, NEXT, 1) < SHARES:
        do_share(run, front)
        front += 1
    spins = 0
    while load_acquire(team, FINISHED) < SHARES:
        if spins < SPINS:
            spins += 1
            pause()
        else:
            call(run.yields)
    store_release(team, TAKEN, 0)


@main
def assist(run, thread):
    """Take shares of the crowd's jobs until none has come for a while."""
    team, own = run.team, run.ready
    spins = 0
    while True:
        if load_acquire(team, NEXT) < SHARES and fetch_add(team, NEXT, 1) < SHARES:
            do_share(run, SHARES - 1 - fetch_add(team, BACK, 1))
            spins = 0
        elif spins < LINGER:
            spins += 1
            pause()
        else:
            # A job that was opened before this was written is seen now; one that is opened later finds it written.
            exchange(own, ASLEEP, 1)
            if load_acquire(team, NEXT) >= SHARES or exchange(own, ASLEEP, 0) == 0:
                return
            spins = 0


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
            apart = run.short_apart if short else run.apart
            own, place = run, thread
            if run.threads > 1 and not is_null(apart):
                table, own, place = apart[thread], as_run(run.single, run), 0
                records = run.short_apart_records if short else run.apart_records
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
                call_kernel(op, own, step, place)
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
    while spins < LINGER or load_acquire(place.team, CALLED):
        posted = load_acquire(place.team, POSTED)
        if posted != place.ready[seen]:
            place.ready[seen] = posted
            steps(as_run(place.table, place), thread)
            fetch_add(place.team, AWAY, -1)
            spins = 0
        elif spins < LINGER:
            spins += 1
            pause()
        else:
            call(place.yields)
