"""How the work of one kernel is divided among the threads of a team."""

from fastnn.cpu.blocking import LINE
from fastnn.cpu.jit import device
from fastnn.cpu.parts import PARTS
from fastnn.cpu.simd import fetch_add, is_null
from fastnn.cpu.tensor_parallel import OWNERS


@device
def share(tasks, thread, threads):
    """The tasks of one thread: [first, last)."""
    if threads == 1:
        return 0, tasks  # without the divisions, which take longer than some kernels' work
    return tasks * thread // threads, tasks * (thread + 1) // threads


@device
def part_of(part, thread, threads):
    """The place of a thread among those that sum over a part of the batch (from 1; 0: all of it), or -1, and their
    number: each part has threads of its own, if these can be parted.
    """
    if part > 0 and threads % PARTS == 0:
        threads //= PARTS
        thread -= (part - 1) * threads
        if not 0 <= thread < threads:
            thread = -1
    return thread, threads


@device
def claim(claims, tasks, thread, threads, owner):
    """The next task for a thread that has come to `owner`'s share: ``owner, task``, or a task of -1 if none is left.

    A thread does its own share first and then what others have left of theirs: the system interrupts some threads and
    not others, and two cores are not always equally fast.  `owner` counts from `thread` to all of the `threads`, modulo
    their number.  Every thread asks once in vain of every share, so a counter that has seen a whole step is a multiple
    of what it is divided by, and need not be set back.  Where one thread has all tasks, another one asks for them, too
    (`fastnn.cpu.tensor_parallel.lend`).
    """
    asking = max(threads, OWNERS)
    while owner < thread + threads:
        first, last = share(tasks, owner % threads, threads)
        number = fetch_add(claims, owner % threads * LINE, 1) % (last - first + asking)
        if number < last - first:
            return owner, first + number
        owner += 1
    return owner, -1


@device
def first_task(op, tasks, thread, threads):
    """Where a thread starts with the tasks of a product: ``owner, task, last``.

    It goes on with `next_task` as long as the task is one of ``[0, last)``.  By rows all tasks are its own.
    """
    owner, task, last = thread, 0, tasks
    if not is_null(op.claims):
        owner, task = claim(op.claims, tasks, thread, threads, owner)
    elif not op.by_rows:
        task, last = share(tasks, thread, threads)
    return owner, task, last


@device
def next_task(op, tasks, thread, threads, owner, task):
    """``owner, task`` of the one that comes after it."""
    if is_null(op.claims):
        return owner, task + 1
    return claim(op.claims, tasks, thread, threads, owner)


# A helper (`fastnn.cpu.crowd`) calls a kernel once for each share that it claims: `thread` is then the share's number,
# and what the helper has in its scratch stays there from one share to the next.


@device
def worker(run, thread):
    """Which part of the scratch belongs to the calling thread."""
    return thread if is_null(run.ready) else run.worker


@device
def packed_columns(run):
    """The first column of B that the calling thread has packed already, or -1."""
    return -1 if is_null(run.ready) else run.ready[0]


@device
def keep_packed_columns(run, column):
    """Remember it for the next share."""
    if not is_null(run.ready):
        run.ready[0] = column
