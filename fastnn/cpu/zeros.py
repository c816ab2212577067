"""Which products leave out zeros (`fastnn.cpu.spmm`), and how many there have to be."""

from dataclasses import replace

from fastnn.cpu import blocking
from fastnn.program import Op, Ref, transposed
from fastnn.records import GEMM, UPDATE

KERNELS = KERNEL, UPDATING = "spmm.spmm", "spmm.update"
# Elements of 64 in A that are not 0, at most, for a product to leave out the zeros of what relu or dropout have left:
MOST = 44
PACKED = 48  # where other kernels pack B, too: input gradients
# Added where a row of C is one short panel, whose sums wait for each other if two could begin a cycle.
NARROW = 0 if blocking.CPU.halves_vectors else -6
# Optimizers that leave a weight as it is where its gradient and its state are 0.  (Momentum makes +0 of -0.)
RESTING = tuple(f"optimizers.{rule}_row" for rule in ("sgd", "adam", "rmsprop", "rmsprop_momentum"))
# Of D in C = D' X, which has to be turned: if there are too few zeros in X.
TURNED = 34 if blocking.CPU.simd_bits == 512 else 30


def pays(op: Op, dtype: str) -> bool:
    """Whether a product is large enough to leave out zeros."""
    return blocking.pays_sparse(op.number("m"), op.number("n"), op.number("k"), dtype)


def _in_registers(op: Op, dtype: str) -> bool:
    """Whether a weight gradient updates a row of weights at a time, out of registers.

    The sums of many samples are kept in the caches, since the factor that they read is in the first one a block at a
    time.
    """
    if op.epilogue is None or op.epilogue.record is not UPDATE:
        return False
    return op.number("k") <= blocking.WORD and blocking.has_whole_panels(op.number("n"), dtype)


def _choose(op: Op, dtype: str) -> None:
    """The kernel of a product that leaves out zeros."""
    op.kernel = KERNEL
    if _in_registers(op, dtype):
        assert op.epilogue is not None
        op.kernel, op.epilogue = UPDATING, replace(op.epilogue, kernel=f"{op.epilogue.kernel}_row")


def leave_out(op: Op, dtype: str, *, rests: bool) -> None:
    """Choose the kernel for a product of inputs that are mostly 0, where that pays; it may leave weights alone that
    are at rest if the program `rests`.

    After gradients have been parted, which depends on the network and the batch only: so the bits do, too.
    """
    op.sparse = op.sparse and pays(op, dtype)
    if op.sparse:
        op.by_rows = op.tiled = False
        op.fields["joined"] = 0
        if op.epilogue is not None and op.epilogue.record is UPDATE:
            op.epilogue.fields["below"] = 0  # what is updated is fetched while the gradient is computed
        _choose(op, dtype)
        if rests and op.epilogue is not None and op.epilogue.kernel in RESTING:
            weights = op.epilogue.fields["p"]
            assert isinstance(weights, Ref)
            op.fields |= {"resting": Ref("resting"), "first": weights.offset}


def offer(op: Op, dtype: str) -> None:
    """Have a product leave out zeros in steps in which there are many; in others it is what has been chosen so far.

    Of a weight gradient X' D those of X, or else those of D.  Not what the matrix unit does: it is as fast where half
    of A is 0, and its bits would depend on which rows a thread looks at.
    """
    op.sparsely = []
    if op.record is not GEMM or op.sparse or op.swapped or op.tiled:
        return
    fields = {**op.fields, "joined": 0, "also": 0}
    if op.may_be_sparse and pays(op, dtype):
        narrow = op.number("n") <= blocking.WIDE // 2 * blocking.CPU.lanes(dtype)
        most = (MOST if op.fields["b_col"] == 1 else PACKED) + narrow * NARROW
        found = replace(op, fields={**fields, "most": _most(most, op, dtype)}, sparsely=[])
        _choose(found, dtype)
        op.sparsely = [found]
    if op.gradient_may_be_sparse and op.fields["a_row"] == 1:
        turned = replace(op, kernel=KERNEL, fields={**transposed(fields), "turned": 1}, sparsely=[])
        if pays(turned, dtype):
            turned.fields["most"] = _most(TURNED, turned, dtype)
            op.sparsely = [*op.sparsely, turned]


def _most(most: int, op: Op, dtype: str) -> int:
    """The limit for a product whose last panel is not full: columns that are not there take as long as others."""
    columns = op.number("n")
    return most * columns // blocking.in_panels(columns, dtype)
