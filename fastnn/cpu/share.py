"""How the work of one kernel is divided among the threads of a team."""

from fastnn.cpu.jit import device


@device
def share(tasks, thread, threads):
    """The tasks of one thread: [first, last)."""
    return tasks * thread // threads, tasks * (thread + 1) // threads
