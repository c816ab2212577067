"""How the work of one kernel is divided among the threads of a team."""

from fastnn.cpu.jit import device
from fastnn.cpu.simd import is_null


@device
def share(tasks, thread, threads):
    """The tasks of one thread: [first, last)."""
    if threads == 1:
        return 0, tasks  # without the divisions, which take longer than some kernels' work
    return tasks * thread // threads, tasks * (thread + 1) // threads


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
