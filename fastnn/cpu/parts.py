"""Weight gradients of small layers, in parts: each is the sum over a part of the batch, and updates add the parts up.

Divided by tiles, a weight gradient reads all rows of the batch, so that each core fetches from the others what they
have computed, and each of these has to get its lines back before it can write them in the next step.  In parts a thread
reads its own rows only, and what cores exchange is one gradient.  That is less where the batch is larger than the layer
(20-64-64-1, batch 256, two threads on a Zen 5: 21.8 us a step instead of 22.9; batch 32: 5.25 instead of 4.70).

Whether it is done, and in how many parts, depends on the network and the batch only: the sums are the same bits with
any number of threads.
"""

from fastnn.cpu import blocking
from fastnn.program import Fields, Op, Program, Ref
from fastnn.records import FORWARD, GEMM, UPDATE

PARTS = 2
ALIGNED = 64  # elements: whole cache lines
LEAST = (
    1_000_000  # multiply-adds of all gradients, several microseconds, from which a few more operations do not matter
)


def split(program: Program, dtype: str) -> None:
    """Replace the updates of layers by sums of parts and updates by these, if that pays for all that share tiles."""
    updates = [op for op in program.ops if op.epilogue is not None and op.epilogue.record is UPDATE]
    small = [op for op in updates if not op.kernel.startswith("gemv.")]
    work = sum(op.number("m") * op.number("n") * op.number("k") for op in small)
    if not small or work < LEAST or not all(_pays(op, dtype) for op in small):
        return
    sums: list[Op] = []
    rest = [op for op in updates if op not in small]
    for group in _neighbours(small):
        parts, update = _split(group, program)
        sums += parts
        rest.append(update)
    # All sums before all updates: threads wait once, in between.
    first = program.ops.index(updates[0])
    program.ops[first : first + len(updates)] = [*sums, *rest]


def _neighbours(updates: list[Op]) -> list[list[Op]]:
    """Those whose parameters follow each other: one update does for all of them."""
    groups: list[list[Op]] = []
    for op in sorted(updates, key=_place):
        if groups and _place(groups[-1][-1]) + _size(groups[-1][-1]) == _place(op):
            groups[-1].append(op)
        else:
            groups.append([op])
    return groups


def _place(op: Op) -> int:
    """Where the parameters of an update begin."""
    assert op.epilogue is not None
    kernel = op.epilogue.fields["p"]
    assert isinstance(kernel, Ref)
    return kernel.offset


def _size(op: Op) -> int:
    """How many there are, with the bias."""
    return (op.number("m") + (op.sums is not None)) * op.number("n")


def _pays(op: Op, dtype: str) -> bool:
    m, n, k = (op.number(name) for name in ("m", "n", "k"))
    assert op.epilogue is not None
    dense = op.epilogue.fields["p_row"] == n and n % blocking.CPU.lanes(dtype) == 0  # so that an update is one array
    # Elements that cores exchange: of the parts, written and read, or of both factors.
    less = 2 * PARTS * m * n <= k * (m + n)
    return op.kernel in ("small.fused", "small.slim") and dense and joined(op, sums=False) and less


def joined(op: Op, *, sums: bool = True) -> bool:
    """Whether a bias lies behind its kernel, as one more row: then one update does for both.

    Without a bias it is as `sums` says: whether there has to be one.
    """
    if op.epilogue is None or op.sums is None:
        return not sums
    behind = op.number("m") * op.epilogue.number("p_row")
    for name in ("p", "s0", "s1"):
        kernel, bias = op.epilogue.fields[name], op.sums.fields[name]
        if isinstance(kernel, Ref) and bias != Ref(kernel.buffer, kernel.offset + behind):
            return False
    return True


def _split(group: list[Op], program: Program) -> tuple[list[Op], Op]:
    """The sums of parts for these layers, and one update by them."""
    size = sum(_size(op) for op in group)
    start = -(-program.arena // ALIGNED) * ALIGNED
    program.arena = start + PARTS * size
    sums = []
    for op in reversed(group):  # as gradients come
        for part in range(PARTS):
            where = start + part * size + _place(op) - _place(group[0])
            sums.append(_sum(op, part, where))
    first = group[0].epilogue
    assert first is not None
    given: Fields = {**first.fields, "n": size}
    given |= {"g": Ref("arena", start), "more": Ref("arena", start + size)}
    update = Op(f"{first.kernel}_flat", UPDATE, given)
    update.reads = tuple(name for op in sums for name in op.writes)
    update.writes = tuple(name for op in group for name in op.writes)
    update.layer = group[0].layer if len(group) == 1 else f"{group[0].layer} to {group[-1].layer}"
    update.label = first.kernel.removeprefix("optimizers.")
    return sums, update


def _sum(op: Op, part: int, where: int) -> Op:
    """The gradients of a layer over a part of the batch, which are left in the arena."""
    m, n, k = (op.number(name) for name in ("m", "n", "k"))
    low, high = k * part // PARTS, k * (part + 1) // PARTS
    a, b = op.fields["a"], op.fields["b"]
    assert isinstance(a, Ref)
    assert isinstance(b, Ref)
    fields = {
        **op.fields,
        "a": Ref(a.buffer, a.offset + low * op.number("a_col")),
        "b": Ref(b.buffer, b.offset + low * op.number("b_row")),
        "k": high - low,
        "part": part + 1,
        "joined": 0,
    }
    found = Op("small.fused", GEMM, fields, reads=op.reads, writes=(f"part {part + 1} {op.layer}",), layer=op.layer)
    found.label = f"gradients, part {part + 1}"
    found.may_be_sparse, found.gradient_may_be_sparse = op.may_be_sparse, op.gradient_may_be_sparse
    found.epilogue = _store(Ref("arena", where), n)
    if op.sums is not None:
        found.sums = _store(Ref("arena", where + m * n), n)
    return found


def _store(where: Ref, n: int) -> Op:
    """The epilogue that writes sums to `where`, rows without gaps."""
    return Op("activations.linear_forward", FORWARD, {"c": where, "c_row": n, "c_col": 1})
