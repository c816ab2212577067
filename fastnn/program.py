"""Programs: the list of operations that one step of a network performs.

A program is neutral: operations name their kernel, and their operands are offsets into named buffers.  `fastnn.plan`
makes programs; a backend divides the operations among threads, lets `schedule` find where these must wait for each
other, gives the buffers memory, and turns the operations into a table of records (`fastnn.records`) that its engine
runs.

The buffers of a program:

==============  ==================================================================
``params``      weights and biases of all layers, rows padded (see `Affine`)
``state0/1``    the optimizer's state, the same layout as ``params``
``arena``       activations, gradients, gathered batches: everything within a step
``apart``       the same for a second thread that does operations by itself
``resting``     bytes in which a run finds out which weights updates by 0 do not change
``claims``      counts of tasks that two threads take from each other
``totals``      float64 sums over the steps of a run: the loss, then the metrics
``x y weight index out``   the caller's arrays, bound for each run
==============  ==================================================================
"""

from dataclasses import dataclass, field, replace

from fastnn.records import Record


@dataclass(frozen=True)
class Ref:
    """An operand: an element of a buffer."""

    buffer: str
    offset: int = 0


Fields = dict[str, int | float | Ref]


@dataclass
class Op:
    """One operation of a program.

    `reads` and `writes` name regions of memory; from them `schedule` finds where the threads must wait for each other.
    An operation `by_rows` gives each thread the same rows as every other operation by rows, so two of them in sequence
    need no barrier.  A product can be divided in that way where one of its dimensions is the batch; whether it is, the
    backend decides.
    """

    kernel: str
    record: Record
    fields: Fields
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    by_rows: bool = False
    shared: bool = False  # threads read what others write in it; the backend finds out whether
    batch: str = ""  # of a product: its dimension, m or n, that counts rows of the batch
    epilogue: "Op | None" = None
    sparse: bool = False  # of a product: most of A is 0, which it may leave out; the backend decides whether it does
    may_be_sparse: bool = False  # likewise, but how many are 0 is not known before a step
    gradient_may_be_sparse: bool = False  # of a weight gradient A' D: D, too
    sparsely: list["Op"] = field(default_factory=list)  # the same, leaving out zeros, for steps in which there are many
    tiled: bool = False  # of a product: the matrix unit does it, and does all that become of it; the backend decides
    swapped: bool = False  # of a product with a single column: it is computed as a row, C' = B' A'
    sums: "Op | None" = None  # of a product A' D: the epilogue for the sum of D's rows
    helps: bool = False  # it is another thread's: this one does what that has left of its tasks
    barrier: bool = False
    layer: str = ""  # what a profile calls it: the layer it belongs to,
    label: str = ""  # and what it does there

    def number(self, field: str) -> int:
        """A field that is an integer."""
        value = self.fields[field]
        assert isinstance(value, int)
        return value

    @property
    def ways(self) -> list["Op"]:
        """The ways that it may be done, the one that is asked for first at first: without zeros, or as it is."""
        return [*self.sparsely, self]

    def copy(self) -> "Op":
        """The same with fields of its own."""
        epilogue, sums = (each and each.copy() for each in (self.epilogue, self.sums))
        sparsely = [way.copy() for way in self.sparsely]
        return replace(self, fields=dict(self.fields), epilogue=epilogue, sums=sums, sparsely=sparsely)


@dataclass
class Program:
    """The operations of a step, the size of its arena in elements, and the multiply-adds of its products, times two.

    `apart` is what each of two threads does instead, if they do operations by themselves and do not share each; the
    second one has buffers of its own in an arena of its own, ``apart``.  `alone` is the same step as one thread does it
    for all, if that is not this program.
    """

    ops: list[Op]
    arena: int
    flops: int
    apart: list["Program"] = field(default_factory=list)
    alone: "Program | None" = None

    def copy(self) -> "Program":
        """The same with operations of its own."""
        return replace(self, ops=[op.copy() for op in self.ops])


def transposed(fields: Fields) -> Fields:
    """The fields of a product C = A B as that of C' = B' A'."""
    names = {
        "a": "b",
        "a_row": "b_col",
        "a_col": "b_row",
        "b": "a",
        "b_row": "a_col",
        "b_col": "a_row",
        "m": "n",
        "n": "m",
    }
    return {**fields, **{to: fields[of] for to, of in names.items()}}


def schedule(ops: list[Op]) -> None:
    """Set `Op.barrier` where an operation needs what others do since the last barrier, or overwrites what they use."""
    since: list[Op] = []
    for op in ops:

        def conflicts(earlier: Op, op: Op = op) -> bool:
            if earlier.by_rows and op.by_rows:
                return False
            wrote, used = set(earlier.writes), set(earlier.writes) | set(earlier.reads)
            return bool(wrote & set(op.reads)) or bool(used & set(op.writes))

        op.barrier = any(conflicts(earlier) for earlier in since)
        if op.barrier:
            since = []
        since.append(op)
