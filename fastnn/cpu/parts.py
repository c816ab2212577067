"""Weight gradients of small layers, in parts: each is the sum over a part of the batch, and updates add the parts up.

Divided by tiles, a weight gradient reads all rows of the batch, so that each core fetches from the others what they
have computed, and each of these has to get its lines back before it can write them in the next step.  In parts a thread
reads its own rows only, and what cores exchange is one gradient.  That is less where the batch is larger than the layer
(20-64-64-1, batch 256, two threads: 22.4 us a step instead of 20.0; where the host has put the cores far apart, so that
a line takes 200 ns from one to the other, 57 instead of 30).

Whether it is done, and in how many parts, depends on the network and the batch only: the sums are the same bits with
any number of threads.
"""

from fastnn.cpu import blocking
from fastnn.program import Op, Program, Ref
from fastnn.records import FORWARD, GEMM, UPDATE

PARTS = 2
ALIGNED = 64  # elements: whole cache lines
LEAST = 1_000_000  # multiply-adds of all gradients from which some operations more do not matter


def split(program: Program, dtype: str) -> None:
    """Replace the updates of layers by sums of parts and updates by these, if that pays for all that share tiles."""
    updates = [op for op in program.ops if op.epilogue is not None and op.epilogue.record is UPDATE]
    small = [op for op in updates if not op.kernel.startswith("gemv.")]
    work = sum(_number(op, "m") * _number(op, "n") * _number(op, "k") for op in small)
    if not small or work < LEAST or not all(_pays(op, dtype) for op in small):
        return
    first = program.ops.index(updates[0])
    sums: list[Op] = []
    rest: list[Op] = []
    for op in updates:
        if op in small:
            parts, update = _split(op, program)
            sums += parts
            rest.append(update)
        else:
            rest.append(op)
    # All sums before all updates: threads wait once, in between.
    program.ops[first : first + len(updates)] = [*sums, *rest]


def _pays(op: Op, dtype: str) -> bool:
    m, n, k = (_number(op, name) for name in ("m", "n", "k"))
    assert op.epilogue is not None
    dense = op.epilogue.fields["p_row"] == n and n % blocking.CPU.lanes(dtype) == 0  # so that an update is one array
    less = 2 * PARTS * m * n <= k * (m + n)  # is exchanged
    return op.kernel in ("small.fused", "small.slim") and dense and joined(op, sums=False) and less


def joined(op: Op, *, sums: bool = True) -> bool:
    """Whether a bias lies behind its kernel, as one more row: then one update does for both.

    Without a bias it is as `sums` says: whether there has to be one.
    """
    if op.epilogue is None or op.sums is None:
        return not sums
    behind = _number(op, "m") * _number(op.epilogue, "p_row")
    for name in ("p", "s0", "s1"):
        kernel, bias = op.epilogue.fields[name], op.sums.fields[name]
        if isinstance(kernel, Ref) and bias != Ref(kernel.buffer, kernel.offset + behind):
            return False
    return True


def _split(op: Op, program: Program) -> tuple[list[Op], Op]:
    m, n, k = (_number(op, name) for name in ("m", "n", "k"))
    size = (m + (op.sums is not None)) * n
    start = -(-program.arena // ALIGNED) * ALIGNED
    program.arena = start + PARTS * size
    names = [f"part {part + 1} {op.layer}" for part in range(PARTS)]
    sums = []
    for part in range(PARTS):
        low, high = k * part // PARTS, k * (part + 1) // PARTS
        where = start + part * size
        a, b = op.fields["a"], op.fields["b"]
        assert isinstance(a, Ref)
        assert isinstance(b, Ref)
        fields = {
            **op.fields,
            "a": Ref(a.buffer, a.offset + low * _number(op, "a_col")),
            "b": Ref(b.buffer, b.offset + low * _number(op, "b_row")),
            "k": high - low,
            "part": part + 1,
            "joined": 0,
        }
        each = Op("small.fused", GEMM, fields, reads=op.reads, writes=(names[part],), layer=op.layer)
        each.label = f"gradients, part {part + 1}"
        each.epilogue = _store(Ref("arena", where), n)
        if op.sums is not None:
            each.sums = _store(Ref("arena", where + m * n), n)
        sums.append(each)
    assert op.epilogue is not None
    given: dict[str, int | float | Ref] = {**op.epilogue.fields, "n": size}
    given |= {"g": Ref("arena", start), "more": Ref("arena", start + size)}
    update = Op(f"{op.epilogue.kernel}_flat", UPDATE, given, reads=tuple(names), writes=op.writes, layer=op.layer)
    update.label = op.epilogue.kernel.removeprefix("optimizers.")
    return sums, update


def _store(where: Ref, n: int) -> Op:
    """The epilogue that writes sums to `where`, rows without gaps."""
    return Op("activations.linear_forward", FORWARD, {"c": where, "c_row": n, "c_col": 1})


def _number(op: Op, field: str) -> int:
    value = op.fields[field]
    assert isinstance(value, int)
    return value
