"""Threads that own features and not tiles: tensor parallelism (Shoeybi et al., "Megatron-LM", arXiv:1909.08053).

Divided by tiles or by rows of the batch, threads exchange activations, gradients, and all weights, since what one of
them updates is read by the others.  A cache line takes 45 to 300 ns from one core to another, so of small steps that is
up to half of the time.  Here a thread owns half of the features that a layer takes:

- of the first layer the inputs, and with them rows of its kernel; or
- of the second layer the units of the first one, and with them columns of the first kernel and rows of the second one.

It computes for the whole batch what its features contribute to the layer's outputs, and later all gradients that
concern them, without a look at what others do, unless it is done with the last one before them (`lend`).  What threads
exchange is one sum, these outputs before the activation.
All that follows, until its gradient is back, is little, and each thread does all of it, on buffers of its own.

So the sum over the features is the sum of one sum for each owner, with any number of threads: the bits are the same.
Whether it is done depends on the network and the batch only, with rows padded as the CPU's vectors are wide.
"""

from dataclasses import dataclass, replace

from fastnn import costs
from fastnn.cpu.parts import ALIGNED
from fastnn.program import Fields, Op, Program, Ref
from fastnn.records import FORWARD, GATHER, GEMM, MAP, TOTAL, UPDATE

OWNERS = 2
ARENAS = "arena", "apart"  # of the owners
# Elements: features are owned in whole vectors, on every CPU, and where they are many in whole words of
# `fastnn.cpu.spmm`.
VECTOR, WORD, MANY = 16, 64, 512
# What must be less, for it to pay, than all weights of the owned layers: elements that are exchanged ...
INPUTS, UNITS = 1 / 6, 1 / 2
# ... and that of all operations which each thread does for itself, those of the layers after.
REPEATED = 1 / 16
# Weights above which columns are not owned: rows of a kernel are read by both threads then, each its half, and CPUs
# fetch ahead what the other one has written.
COLUMNS = 65536
# Operations of a step between which it pays: below, one thread is as fast as two; above, tasks that threads take from
# each other (`fastnn.cpu.share.claim`) gain more.
LEAST, MOST = 2_000_000, 150_000_000
LENT = 1_000_000  # likewise of an update, from which an owner helps the other
WAYS = 3  # of an update, at most: with all elements, without zeros of one factor or the other
CLAIMS = OWNERS * WAYS * VECTOR  # elements with the counters of their tasks, a cache line or two apart


@dataclass(frozen=True)
class Split:
    """The product whose sum is parted, where the second owner's features begin, and the layer of which these are
    units ("" if they are inputs).
    """

    op: Op
    at: int
    before: str = ""

    def features(self, owner: int) -> tuple[int, int]:
        """What an owner has of k."""
        return (0, self.at) if owner == 0 else (self.at, self.op.number("k"))


def find(program: Program) -> Split | None:
    """Which features threads may own in a step of training, if that pays."""
    layers = [op for op in program.ops if op.record is GEMM and op.label == "forward"]
    if len(layers) < 2 or not any(_updates(op) for op in program.ops):
        return None
    if not LEAST <= program.flops <= MOST:
        return None
    first, second = layers[:2]
    weights, units = [op.number("k") * _units(op) for op in layers], [_units(op) for op in layers]
    rows = first.number("m")

    def pays(parted: int, part: float) -> bool:
        repeated = 6 * rows * sum(weights[parted + 1 :])
        little = rows * units[parted] <= part * sum(weights[: parted + 1])
        return units[0] > 1 and little and repeated <= REPEATED * program.flops

    if first.reads[0] == "a0" and pays(0, INPUTS):
        inputs = first.number("k")
        whole = WORD if inputs >= MANY else VECTOR
        at = round(inputs / OWNERS / whole) * whole
        return Split(first, at) if 0 < at < inputs else None
    plain = all(op is first or _updates(op) for op in program.ops if op.layer == first.layer)
    even = second.number("k") == units[0] and units[0] % (OWNERS * VECTOR) == 0
    if plain and even and first.writes[0] in second.reads and weights[0] <= COLUMNS and pays(1, UNITS):
        return Split(second, units[0] // OWNERS, first.layer)
    return None


def _units(forward: Op) -> int:
    return 1 if forward.swapped else forward.number("n")


# --- for any number of threads --------------------------------------------------------------------------------------


def part(program: Program, split: Split) -> None:
    """Sum over each owner's features by itself."""
    place = Ref("arena", _take(program, _outputs(split.op)))
    before, last = _partial(split, 0, place), _depth(split.op, *split.features(1))
    assert last.epilogue is not None
    last.epilogue.fields["more"] = place
    last.reads += before.writes
    at = program.ops.index(split.op)
    program.ops[at : at + 1] = [before, last]


def _partial(split: Split, owner: int, where: Ref) -> Op:
    """What an owner's features contribute."""
    op = _depth(split.op, *split.features(owner))
    assert op.epilogue is not None
    given: Fields = {"c": where, "c_row": op.epilogue.fields["c_row"], "c_col": 1}
    op.epilogue = Op("activations.linear_forward", FORWARD, given)
    op.writes = (f"sum {owner + 1} {op.layer}",)
    op.label = f"forward, part {owner + 1}"
    return op


def _outputs(op: Op) -> int:
    """Elements of a layer's outputs."""
    assert op.epilogue is not None
    return op.number("n" if op.swapped else "m") * op.epilogue.number("c_row")


# --- for as many threads as there are owners ------------------------------------------------------------------------


def programs(program: Program, split: Split) -> list[Program]:
    """What each thread does.  The second one's buffers lie as those of the first one, in an arena of its own."""
    where = _take(program, _outputs(split.op))
    nowhere = _take(program, 2 * sum(op.record is TOTAL for op in program.ops))  # float64 that nobody reads
    found = []
    for owner, (arena, other) in enumerate((ARENAS, ARENAS[::-1])):
        own = [each for op in program.ops for each in _own(op, split, owner, Ref("arena", where))]
        ops = [_moved(op, arena) for op in own]
        for op in ops:
            if op.record is TOTAL and owner > 0:
                op.fields["totals"] = Ref(arena, nowhere)
            if op.kernel == "rows.combine":
                op.fields["g"] = Ref(other, where)
        found.append(Program(ops, program.arena, program.flops))
    return found


def set_barriers(program: Program) -> None:
    """Let an owner wait for the others' sums, and before updates of parameters (and, in the next step, of sums) that
    others may still read.
    """
    waits = [op for op in program.ops if op.kernel == "rows.combine"]
    waits += [op for op in program.ops if _updates(op)][:1]
    for op in program.ops:
        op.barrier = any(op is each for each in waits)


def lend(programs: list[Program], split: Split, kernels: tuple[str, ...]) -> None:
    """Let the owner who is done first do what the other has left of the last update, that of the first layer, if its
    tasks can be claimed: if it is done by one of these kernels.

    The bits are the same whoever does a task.  One of two cores may be slower than the other for hours, since somebody
    else computes beside it: 784-256-10, batch 32, 91 and 65 us for this update.  Nothing else in a step waits for this
    update, and it waits for nothing that its owner does after the last barrier.

    Both find the same tasks, in records that are alike, but that each reads its own copy of the second factor, where
    it has one.  The first factor is the same memory, since it decides how the product is done, and so what a task is.
    """
    updates = [[op for op in program.ops if _updates(op)][-1] for program in programs]
    if not all(way.kernel in kernels and costs.flops(op) >= LENT for op in updates for way in op.ways):
        return
    assert all(len(op.ways) <= WAYS for op in updates)
    helping = [op.copy() for op in updates]
    for owner, copy in enumerate(helping):
        copy.helps, copy.barrier = True, False
        for i, (way, other) in enumerate(zip(updates[owner].ways, copy.ways, strict=True)):
            way.fields["claims"] = other.fields["claims"] = Ref("claims", (owner * WAYS + i) * VECTOR)
            if ("turned" in way.fields) == bool(split.before):  # it is all inputs, or the gradients of all units
                second = other.fields["b"]
                assert isinstance(second, Ref)
                assert second.buffer == ARENAS[owner]
                other.fields["b"] = replace(second, buffer=ARENAS[1 - owner])
    for program, op, copy in zip(programs, updates, reversed(helping), strict=True):
        program.ops.insert(program.ops.index(op) + 1, copy)


def _own(op: Op, split: Split, owner: int, where: Ref) -> list[Op]:
    """What an operation of a step is to an owner."""
    low, high = split.features(owner)
    of_layer = op.layer == split.op.layer
    if op is split.op:
        return [_partial(split, owner, where), _combine(op, where)]
    if op.record is GATHER and op.layer == "input" and not split.before:
        return [_slice(op, {"out": low}, first=low, cols=high - low)]
    if op.layer == split.before:
        return [_columns(op, low, high, sums=True)]
    if _updates(op):
        if not of_layer:  # inputs are shared, in whole vectors, since these are what is read and written
            inputs = op.number("n" if op.swapped else "m")
            at = min(-(-inputs // OWNERS // VECTOR) * VECTOR, inputs)
            low, high = (0, at) if owner == 0 else (at, inputs)
        own = _columns(op, low, high) if op.swapped else _rows(op, low, high)
        own.sums = own.sums if owner == 0 else None
        return [own]
    if of_layer and op.record is GEMM:  # the input gradient
        return [_columns(op, low, high)]
    if of_layer and op.kernel.endswith("_outer"):
        return [_slice(op, {"x": low, "y": low, "row": low}, cols=high - low)]
    return [_slice(op)]


def _combine(op: Op, where: Ref) -> Op:
    """The sum of all owners' contributions, and the epilogue of the product."""
    assert op.epilogue is not None
    epilogue = _slice(op.epilogue)
    fields: Fields = {"x": where, "g": where, "y": epilogue.fields["c"], "rows": op.number("m"), "cols": op.number("n")}
    fields["ld"] = epilogue.fields["c_row"]
    return Op(
        "rows.combine",
        MAP,
        fields,
        reads=op.reads,
        writes=op.writes,
        epilogue=epilogue,
        layer=op.layer,
        label="forward, sum of parts",
    )


# --- parts of operations --------------------------------------------------------------------------------------------


def _slice(op: Op, by: dict[str, int] | None = None, **numbers: int) -> Op:
    """A copy whose operands start some elements later, with other numbers."""
    fields = {**op.fields, **numbers}
    for name, elements in (by or {}).items():
        value = fields.get(name)
        if isinstance(value, Ref):
            fields[name] = Ref(value.buffer, value.offset + elements)
    return replace(op, fields=fields)


def _depth(op: Op, low: int, high: int) -> Op:
    """The sum over a part of k."""
    assert op.epilogue is not None
    part = _slice(op, {"a": low * op.number("a_col"), "b": low * op.number("b_row")}, k=high - low)
    part.epilogue = _slice(op.epilogue)
    return part


def _columns(op: Op, low: int, high: int, *, sums: bool = False) -> Op:
    """Some columns of C, and where `sums` of the sums of B's rows, too."""
    assert op.epilogue is not None
    part = _slice(op, {"b": low * op.number("b_col")}, n=high - low)
    part.epilogue = _slice(op.epilogue, dict.fromkeys(("c", "y", "bias", "p", "s0", "s1"), low))
    if op.sums is not None and sums:
        part.sums = _slice(op.sums, dict.fromkeys(("p", "s0", "s1"), low), n=high - low)
    return part


def _rows(op: Op, low: int, high: int) -> Op:
    """Some rows of an update."""
    assert op.epilogue is not None
    part = _slice(op, {"a": low * op.number("a_row")}, m=high - low)
    part.epilogue = _slice(op.epilogue, dict.fromkeys(("p", "s0", "s1"), low * op.epilogue.number("p_row")))
    return part


def _moved(op: Op, arena: str) -> Op:
    """The same operation on buffers in another arena."""
    fields = {
        name: Ref(arena, value.offset) if isinstance(value, Ref) and value.buffer == "arena" else value
        for name, value in op.fields.items()
    }
    moved = replace(op, fields=fields)
    if op.epilogue is not None:
        moved.epilogue = _moved(op.epilogue, arena)
    if op.sums is not None:
        moved.sums = _moved(op.sums, arena)
    return moved


def _updates(op: Op) -> bool:
    return op.epilogue is not None and op.epilogue.record is UPDATE


def _take(program: Program, elements: int) -> int:
    """The place of as many elements behind a program's other buffers."""
    start = -(-program.arena // ALIGNED) * ALIGNED
    program.arena = start + -(-elements // ALIGNED) * ALIGNED
    return start
