"""A program on this machine: memory for its buffers, a table of records with addresses, and a team to run it."""

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastnn.cpu import blocking, builtin, calls, clock, cold, division, immediate, loader, team, tensor_parallel, trial
from fastnn.cpu.memory import address, allocate
from fastnn.program import Fields, Op, Program, Ref
from fastnn.records import EPILOGUE, GEMM, PERMUTATION, RUN, SLOT

__all__ = ["Executable", "allocate", "pad", "peaks", "permutation"]  # what a backend offers

SHORT_STEP, FIRST, STOP, RATE, ORIGIN, SEED, THREADS = (
    RUN.offsets[field] // 8 for field in ("short_step", "first", "stop", "rate", "origin", "seed", "threads")
)
WORDS = SLOT // 8  # of a record
ENGINE = ("engine.engine", "float32")
HELPERS = [("engine.lead", "float32"), ("engine.attend", "float32")]
# Floating-point operations of a step ...
ALONE = 600_000  # ... below which one thread is faster than a team
TOGETHER = 50_000_000  # ... from which a team is faster, wherever its threads are; in between `trial` finds out
CROWDED = 30_000_000  # ... likewise, if it has more threads than CPUs, which cannot be called for a slice of steps
AWAKE = 3_000_000  # ... below which one thread does a step that comes alone, since others would have to be woken for it


def pad(dtype: str) -> Callable[[int], int]:
    """The leading dimension for rows of n elements."""
    return lambda n: blocking.pad(n, dtype)


def peaks(dtype: str, threads: int, size: int, *, tiled: bool = False) -> tuple[float, float, float]:
    """What this machine does at best: operations a second by vectors, and on its matrix unit if `tiled`, and bytes a
    second copied where `size` bytes lie.
    """
    from fastnn.cpu import ceilings  # needs Numba

    # Short runs, of 0.5 ms or with a team of 4 ms: some of them are not interrupted, however busy the machine is.
    steps, samples = (100_000, 200) if threads == 1 else (800_000, 30)
    # Read and written: the two arrays together are as large.
    vectors, tiles = ceilings.fma_peak(dtype, threads, steps, samples), ceilings.tile_peak(threads) if tiled else 0.0
    return vectors, tiles, ceilings.copy_bandwidth(threads, size // 2, 50)


def permutation(n: int, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
    """The numbers below n in a random order, int64: in `out` if that has as many elements, else in new memory."""
    if out is None or out.size != n:
        out = np.empty(n, np.int64)
    # ``rng.integers(-(2**63), 2**63)``, which takes 10 us more, of generators with 64 bits such as `default_rng`'s.
    seed = rng.bit_generator.random_raw() - (1 << 63)
    values = {"index": address(out), "n": n, "seed": seed}
    immediate.run("shuffle.permutation", np.dtype("float32"), PERMUTATION, values, work=0, threads=1)
    return out


def _kernels(program: Program, dtype: str) -> Iterator[tuple[str, str]]:
    """Name and dtype of all kernels that a program calls."""
    for op in program.ops:
        for each in (op.sums, *op.ways):
            if each is not None:
                yield each.kernel, dtype
                if each.epilogue is not None and division.finished(each, dtype) == EPILOGUE:
                    yield each.epilogue.kernel, dtype


def _with_epilogues(op: Op) -> list[Op]:
    """The ways that an operation may be done, and their epilogues: all that has a record."""
    found = [op.sums, *(each for way in op.ways for each in (way, way.epilogue))]
    return [each for each in found if each is not None]


def _memory(elements: int, dtype: str, lent: np.ndarray | None) -> np.ndarray:
    """Memory for so many elements: what another executable lends if that is enough."""
    return lent if lent is not None and lent.size >= elements else allocate(elements, dtype)


class Table:
    """The records of one program; operands that are bound per run are remembered."""

    def __init__(
        self, program: Program, dtype: str, bases: Mapping[str, int], scratch: Ref, stride: int, threads: int
    ) -> None:
        self.dtype = dtype
        self.size = np.dtype(dtype).itemsize
        self.bases = bases
        self.length = len(program.ops)
        every = [each for op in program.ops for each in _with_epilogues(op)]
        self.claims = np.zeros((len(every), threads * blocking.LINE), np.int64)  # of a product's tasks
        self.memory = np.zeros(len(every) * SLOT, np.uint8)
        self.address = address(self.memory)
        self._view = memoryview(self.memory).cast("B")
        self._words = self.memory.view(np.int64)
        self.bound: dict[str, list[int]] = {}  # buffer -> positions of 8-byte words to patch
        free = iter(range(self.length, len(every)))  # slots for what no thread comes to by itself
        for slot, op in enumerate(program.ops):
            extra: Fields = {}
            if op.sums is not None:
                extra["sums"] = self._put(next(free), op.sums, {})
            if op.record is GEMM:
                extra |= {"scratch": scratch, "scratch_stride": stride}
            for way in reversed(op.ways):
                at = slot if way is op.ways[0] else next(free)
                if way.epilogue is not None:
                    called = division.finished(way, dtype) == EPILOGUE
                    extra["epilogue"] = self._put(next(free), way.epilogue, {}, called=called)
                extra["otherwise"] = self._put(at, way, {**extra, **self._cut(way, at, threads)})

    def _cut(self, op: Op, slot: int, threads: int) -> dict[str, int]:
        """How an operation is divided, if it is a product."""
        found = division.cut(op, self.dtype, threads) if op.record is GEMM else {}
        if division.claimed(op, threads):
            found["claims"] = address(self.claims[slot])
        return found

    def _put(self, slot: int, op: Op, extra: Mapping[str, int | float | Ref], *, called: bool = True) -> int:
        """Fill in a record, and say where it is."""
        values: dict[str, int | float] = {"barrier": int(op.barrier)}
        if called:
            values["kernel"] = loader.address(op.kernel, self.dtype)
        for name, value in {**op.fields, **extra}.items():
            if isinstance(value, Ref):
                base = self.bases.get(value.buffer)
                if base is None:  # the caller's array: filled in by `bind`
                    word = (slot * SLOT + op.record.offsets[name]) // 8
                    self.bound.setdefault(value.buffer, []).append(word)
                    continue
                value = base + value.offset * self.size
            values[name] = value
        op.record.pack_into(self._view, slot, values)
        return self.address + slot * SLOT

    def places(self, buffer: str) -> list[int]:
        """Where the records have the address of `buffer`."""
        return [self.address + 8 * word for word in self.bound.get(buffer, ())]

    def bind(self, buffer: str, where: int) -> None:
        """Point the operands of `buffer` at an address."""
        for word in self.bound.get(buffer, ()):
            self._words[word] = where


class Executable:
    """A program that can be run.

    Parameters
    ----------
    program, short
        The operations of a step of `rows` rows, and of a last step with fewer (or None).
    buffers
        ``params``, ``state0`` and ``state1`` as arrays of the model's dtype.
    sums
        How many float64 totals the program keeps.
    like
        Another executable whose memory this one uses where it is large enough: of the same buffers, and of a program
        that differs in its number of rows only (not in its capacity: what is padding to one must be padding to the
        other).
    """

    def __init__(
        self,
        program: Program,
        short: Program | None,
        rows: int,
        dtype: str,
        buffers: Mapping[str, np.ndarray],
        sums: int,
        threads: int,
        like: "Executable | None" = None,
    ) -> None:
        self.rows = rows
        flops = division.flops(program, dtype)
        self._is_small = flops < ALONE
        self.threads = 1 if self._is_small else threads
        tried = self.threads > 1 and flops < (TOGETHER if team.spins(self.threads) else min(TOGETHER, CROWDED))
        steps = [each for each in (program, short) if each is not None]
        for each in steps:
            division.divide(each, dtype, self.threads, alone=tried)
        stride = max(division.scratch(each, dtype, self.threads) for each in steps)
        programs = [each for step in steps for each in (step, step.alone, *step.apart) if each is not None]
        self.scratch = max(each.arena for each in programs)  # where it begins
        self.lock = threading.Lock()  # for who binds arrays and runs: a model may predict in several threads at once
        self.arena: np.ndarray = _memory(self.scratch + self.threads * stride, dtype, like.arena if like else None)
        apart = max(each.arena if each.apart else 0 for each in steps)
        self.apart: np.ndarray = _memory(apart, dtype, like.apart if like else None)
        self.totals = np.zeros(max(sums, 1))
        self._keep = dict(buffers)
        bases = {name: address(array) for name, array in buffers.items()}
        bases |= {"arena": address(self.arena), "apart": address(self.apart), "totals": address(self.totals)}
        self._rests = any("resting" in op.fields for each in programs for op in each.ops)
        self._resting = np.zeros(blocking.resting(buffers["params"].size, dtype) if self._rests else 0, np.uint8)
        bases["resting"] = address(self._resting)
        wanted = [*(kernel for each in programs for kernel in _kernels(each, dtype)), ENGINE]
        wanted += HELPERS if tried else []
        wanted += [calls.PREDICT] if sums == 0 and self._is_small and builtin.python() else []
        cold.load(wanted)
        self._team = np.zeros(24, np.int64)
        self._claims: list[np.ndarray] = []  # of the tasks of owners of features, for each kind of step
        self._flags = np.zeros(16, np.int64)  # 0: steps done, 8: halt
        self.run_record = np.zeros(2, RUN.dtype)  # the second one is for threads that do operations by themselves
        self._run_address = address(self.run_record)
        flags = address(self._flags)
        run = self.run_record
        run["threads"] = self.threads, 1
        run["single"] = self._run_address + SLOT
        self.length = len((program.apart or [program])[0].ops)  # operations of a step
        self._has_short = short is not None
        self._tables: list[Table] = []
        self._own_tables: list[np.ndarray] = []  # addresses
        # Which tables a run uses, as words of its record and their values: that of one thread, that of a team.
        self._table_words: tuple[list[tuple[int, int]], ...] = [], []
        for step, prefix in zip(steps, ("", "short_"), strict=False):
            self._lay_out(step, prefix, dtype, bases, stride)
        run["short_step"] = -1
        run["team"], run["done"], run["halt"] = address(self._team), flags, flags + 64
        run["yields"], run["spins"] = team.yield_address(), team.spins(self.threads)
        self._enter = team.MAIN(loader.address(*ENGINE))
        self._words = memoryview(self.run_record.view(np.int64))
        self._trial = trial.Trial() if tried else None
        self._single_alone = flops < AWAKE
        # [0]: the step that comes next, also while a run is under way.  To read it takes no call, and so there is no
        # place in between where Python would let an interruption in.
        self.progress = memoryview(self._flags)

    def _lay_out(self, step: Program, prefix: str, dtype: str, bases: Mapping[str, int], stride: int) -> None:
        """Make the tables of a step, and remember what to tell the run's record of them, in the fields that begin with
        `prefix`.
        """
        run = self.run_record
        self._claims.append(allocate(tensor_parallel.CLAIMS if step.apart else 0, dtype))
        bases = {**bases, "claims": address(self._claims[-1])}

        def table(program: Program, threads: int, thread: int = 0) -> Table:
            scratch = Ref("arena", self.scratch + thread * stride)
            self._tables.append(Table(program, dtype, bases, scratch, stride, threads))
            return self._tables[-1]

        shared = table(step, division.sharers(step, self.threads))
        alone = table(step.alone, 1) if step.alone else shared
        for words, each in zip(self._table_words, (alone, shared), strict=True):
            words.append((RUN.offsets[f"{prefix}table"] // 8, each.address))
            words.append((RUN.offsets[f"{prefix}records"] // 8, each.length))
        if step.apart:
            own = [table(program, 1, thread) for thread, program in enumerate(step.apart)]
            self._own_tables.append(np.array([each.address for each in own]))
            run[f"{prefix}apart"], run[f"{prefix}apart_records"] = address(self._own_tables[-1]), own[0].length

    def bind(self, **arrays: np.ndarray | None) -> None:
        """Give the caller's arrays (x, y, weight, index, out) for the next runs; None means absent."""
        for name, array in arrays.items():
            self._keep[name] = array  # type: ignore[assignment]
            where = 0 if array is None else address(array)
            for table in self._tables:
                table.bind(name, where)

    @property
    def order(self) -> np.ndarray | None:
        """The order of samples of the last run, whose memory the next one may use."""
        return self._keep.get("index")

    def run(
        self,
        rows: int,
        *,
        rate: np.ndarray | None = None,
        origin: int = 0,
        seed: int = 0,
        first: int = 0,
        stop: int | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Run the steps [first, stop) that `rows` rows of the bound arrays make.

        Parameters
        ----------
        rate : ndarray of float64, optional
            The optimizer's step size (or a row of them) for each of these steps.
        origin : int
            Training steps done before step 0.
        watch : callable, optional
            Called now and then with the number of steps done.
        """
        steps = -(-rows // self.rows)
        stop = steps if stop is None else stop
        where = 0 if rate is None else address(rate) - rate.strides[0] * first
        short = steps - 1 if self._has_short else -1
        self._tell(short, where, origin, seed)
        self.progress[0], self.progress[8] = first, 0
        if self.threads == 1:
            team.run_alone(self._alone, first, stop, watch)
            return
        with team.borrow(self.threads) as crew:
            assert crew is not None
            if self._trial is None:
                self._begin(first, stop, self.threads)
                self._together(crew, watch)
                return
            lead = crew.lead
            self._trial.run(lambda way, low, high: self._slice(way, low, high, lead), first, stop, short, watch)

    def _slice(self, way: int, first: int, stop: int, lead: Callable[[int], None]) -> None:
        """Some steps by the calling thread, with or without the others of its team."""
        if way == trial.TEAM:
            self._begin(first, stop, self.threads)
            lead(self._run_address)
        else:
            self._alone(first, stop)

    def step(self, *, rate: np.ndarray | None = None, at: int = 0, origin: int = 0, seed: int = 0) -> None:
        """Run one full step of the bound arrays: as `run`, for steps that come one by one.

        ``rate[at]`` is the optimizer's step size.
        """
        self._tell(-1, 0 if rate is None else address(rate) + rate.strides[0] * at, origin, seed)
        self.progress[0] = self.progress[8] = 0
        if self.threads == 1 or self._single_alone:
            self._alone(0, 1)
            return
        self._begin(0, 1, self.threads)
        with team.borrow(self.threads) as crew:
            assert crew is not None
            crew.lead(self._run_address)

    def prediction(self, x: np.ndarray, units: int) -> Callable[[np.ndarray], np.ndarray | None]:
        """A builtin function that does a full step for an array like `x`, or returns None for any other object.

        It makes the array of outputs, (rows, units).  This executable is its own from now on.
        """
        if not self._is_small:
            return builtin.declining
        return calls.prediction(self, self._tables[0], self.rows, x, units)

    def timed(self, steps: int, *, rate: np.ndarray | None = None, origin: int = 0, seed: int = 0) -> np.ndarray:
        """Run full steps and say how long each operation took.

        Returns
        -------
        ndarray
            Seconds, (threads, steps, operations + 1, 2): waiting before an operation and working on it.  The last
            "operation" is the step itself: waiting at its start, and what one look at the clock costs, which is part
            of every other number that is not 0.
        """
        from fastnn.cpu import engine  # needs Numba

        length = self.length + 1
        stride = -(-(engine.HEAD + steps * length * 2) // 8) * 8
        times = allocate(self.threads * stride, "int64")
        record, keep = self.run_record, (self._enter, self._trial)
        record["clock"], record["clock_id"] = clock.function()
        record["times"], record["times_stride"] = address(times), stride
        self._enter, self._trial = team.MAIN(loader.address("engine.timed", "float32")), None
        try:
            self.run(steps * self.rows, rate=rate, origin=origin, seed=seed)
        finally:
            self._enter, self._trial = keep
        ticks = times.reshape(self.threads, stride)[:, engine.HEAD : engine.HEAD + steps * length * 2]
        return ticks.reshape(self.threads, steps, length, 2) * clock.tick()

    def density(self, op: Op) -> float:
        """What part of a product's multiply-adds the last step did: it may have left out those with a 0.

        Near the limit it may have been otherwise, since a step decides by some of the rows.
        """
        for way in op.sparsely:
            a = way.fields["a"]
            assert isinstance(a, Ref)
            memory = (self.apart if a.buffer == "apart" else self.arena)[a.offset :]
            shape = way.number("m"), way.number("k")
            strides = [way.number(name) * memory.itemsize for name in ("a_row", "a_col")]
            share = np.count_nonzero(as_strided(memory, shape, strides)) / (shape[0] * shape[1])
            if share * blocking.WORD <= way.number("most"):
                return share
        return 1.0

    def _tell(self, short: int, rate: int, origin: int, seed: int) -> None:
        """Fill in what all steps of a run need to know; `rate` is the address of the step size of step 0."""
        words = self._words
        for i in (0, WORDS):
            words[i + SHORT_STEP], words[i + RATE], words[i + ORIGIN], words[i + SEED] = short, rate, origin, seed
        if self._rests:
            self._resting.fill(0)  # the state may have been set since the last run

    def _begin(self, first: int, stop: int, threads: int) -> None:
        """Prepare the steps [first, stop) for so many threads.

        Claims are counted by that number, and a forked process may have inherited those of half a step.
        """
        words = self._words
        words[FIRST], words[STOP], words[THREADS] = first, stop, threads
        for word, value in self._table_words[threads > 1]:
            words[word] = value
        words[WORDS + FIRST], words[WORDS + STOP] = first, stop
        self._team.fill(0)
        for claims in (*self._claims, *(table.claims for table in self._tables)):
            claims.fill(0)

    def _alone(self, first: int, stop: int) -> None:
        self._begin(first, stop, 1)
        self._enter(self._run_address, 0)

    def _together(self, crew: "team.Team", watch: Callable[[int], None] | None) -> None:
        def halt() -> None:
            self._flags[8] = 1

        crew.run(
            lambda thread: self._enter(self._run_address, thread),
            halt,
            (lambda: watch(self.progress[0])) if watch else None,
        )
