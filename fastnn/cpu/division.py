"""How the operations of a program are divided among threads: kernels, shares, barriers, lines that cores exchange."""

from fastnn import costs
from fastnn.cpu import blocking, parts, tensor_parallel, zeros
from fastnn.program import Op, Program, Ref, schedule
from fastnn.records import EPILOGUE, GEMM, LINEAR, RELU, RELU_SLOPE, UPDATE

# Epilogues that small.fused and spmm.spmm do with tiles in registers.
FINISHED = {
    "activations.linear_forward": LINEAR,
    "activations.relu_forward": RELU,
    "activations.relu_backward": RELU_SLOPE,
}
CLAIMED = 5_000_000  # multiply-adds of a product above which a task takes at least some microseconds
# Kernels whose tasks threads can take from each other.
CLAIMABLE = "gemm.gemm", "small.fused", blocking.ON_TILES, *zeros.KERNELS


def cut(op: Op, dtype: str, threads: int) -> dict[str, int]:
    """How a product is divided into blocks and tasks."""
    m, n, k = op.number("m"), op.number("n"), op.number("k")
    by_rows = int(op.by_rows and op.batch == "m")
    strides = op.number("a_row"), op.number("a_col"), op.number("b_row"), op.number("b_col")
    finish, lent = finished(op, dtype), "claims" in op.fields
    if op.kernel in ("small.fused", "small.slim"):
        # Stores from registers need not be hidden: the next tile is computed while they wait.
        touched = int(op.shared and finish == EPILOGUE)
        return {"by_rows": by_rows, "touched": touched, "finish": finish, **blocking.whole(m, n, k, dtype, threads)}
    if op.kernel in zeros.KERNELS:
        turned = "turned" in op.fields
        # What is updated comes too late by itself where threads exchange it, and where only a part of each row is
        # updated before the next one.
        updates = op.epilogue is not None and op.epilogue.record is UPDATE
        parted = op.kernel == zeros.UPDATING and n > blocking.WIDE * blocking.CPU.lanes(dtype)
        touched = int(updates and not turned and (threads > 1 or parted))
        rows, sharing = (-(-m // threads), 1) if by_rows else (m, threads)
        blocks = blocking.sparse(rows, n, k, dtype, *strides[1:], sharing, turned=turned, lent=lent)
        return {"touched": touched, "by_rows": by_rows, "finish": finish, **blocks}
    if op.kernel == blocking.ON_TILES:
        rows, sharing = (-(-m // threads), 1) if by_rows else (m, threads)
        return {"by_rows": by_rows, **blocking.tiles(rows, n, k, sharing, lent=lent)}
    if not op.by_rows or op.batch == "n":
        return {"by_rows": 0, **blocking.blocks(m, n, k, dtype, *strides, threads)}
    return {"by_rows": 1, **blocking.blocks(-(-m // threads), n, k, dtype, *strides, 1)}


def scratch(program: Program, dtype: str, threads: int) -> int:
    """Elements of scratch that each thread needs for the products of a program that is divided."""
    sharing = sharers(program, threads)
    every = [op for each in (program, *program.apart) for op in each.ops if op.record is GEMM]
    every = [each for op in every for each in op.ways]
    least = scratch(program.alone, dtype, 1) if program.alone else 0
    return max([least, *(_scratch(op, dtype, sharing) for op in every)])


def sharers(program: Program, threads: int) -> int:
    """How many threads share each operation of a program that is divided."""
    return 1 if program.apart else threads


def _scratch(op: Op, dtype: str, threads: int) -> int:
    if op.kernel in zeros.KERNELS:
        return blocking.sparse_scratch(op.number("k"), dtype, cut(op, dtype, threads))
    if op.kernel == blocking.ON_TILES:
        return blocking.tiles_scratch(cut(op, dtype, threads))
    return blocking.scratch(dtype, cut(op, dtype, threads))


def finished(op: Op, dtype: str) -> int:
    """Which epilogue's work a kernel does itself, since it is little and C has whole vectors.

    For all others (`EPILOGUE`) it calls the epilogue's kernel.
    """
    if op.record is not GEMM or op.epilogue is None or op.epilogue.fields.get("c_col") != 1:
        return EPILOGUE
    n = op.number("n")
    whole = op.kernel == "small.fused" and n % blocking.CPU.lanes(dtype) == 0
    if op.kernel in zeros.KERNELS:
        whole = blocking.has_whole_panels(n, dtype) and "turned" not in op.fields
    return FINISHED.get(op.epilogue.kernel, EPILOGUE) if whole else EPILOGUE


def divide(program: Program, dtype: str, threads: int, *, alone: bool = False) -> None:
    """Choose the kernels of products, which of them are divided by rows of the batch, and where threads must wait.

    Where threads own features instead, `program.apart` becomes what each does, and `program` what one does alone.
    Otherwise that is `program.alone`, if one is asked for.
    """
    for op in program.ops:
        op.tiled = op.record is GEMM and _pays_tiles(op, dtype)
    single = program.copy() if alone else None
    split = tensor_parallel.find(program)
    if split is not None:
        if threads == tensor_parallel.OWNERS:
            program.apart = tensor_parallel.programs(program, split)
            threads = 1
        tensor_parallel.part(program, split)
    for each in (program, *program.apart):
        _choose(each, dtype, threads)
        if split is None:
            parts.split(each, dtype)
        # What a run remembers of weights at rest goes by panels, which are others where threads own units of the layer.
        _share(each, dtype, threads, rests=split is None or not split.before)
    for each in program.apart:
        tensor_parallel.set_barriers(each)
    for each in (program, *program.apart):
        for op in each.ops:
            zeros.offer(op, dtype)
    if split is not None and program.apart:
        tensor_parallel.lend(program.apart, split, CLAIMABLE)
    if single is not None and not program.apart:
        divide(single, dtype, 1)
        program.alone = single


def _pays_tiles(op: Op, dtype: str) -> bool:
    m, n, k, *strides = (op.number(name) for name in ("m", "n", "k", "a_row", "a_col", "b_row", "b_col"))
    return blocking.pays_tiles(m, n, k, dtype, *strides)


def _choose(program: Program, dtype: str, threads: int) -> None:
    """The kernels of products, and which of them are divided by rows of the batch."""
    for op in program.ops:
        if op.record is not GEMM or "part" in op.fields:
            continue
        m, n, k = op.number("m"), op.number("n"), op.number("k")
        strides = op.number("a_col"), op.number("b_row"), op.number("b_col")
        if op.tiled:
            op.kernel = blocking.ON_TILES
        elif op.sums is not None and op.sums.number("n") > 1:  # gemv's kernels have sums of a single unit only
            op.kernel = blocking.of_matrix(m, n, k, dtype, strides[2])
        else:
            op.kernel = blocking.of_row(m, *strides) or blocking.of_matrix(m, n, k, dtype, strides[2])
        if op.epilogue is not None and op.epilogue.record is UPDATE:
            arrays = sum(isinstance(op.epilogue.fields[name], Ref) for name in ("p", "s0", "s1"))
            op.epilogue.fields["below"] = int(blocking.is_far(m * n * arrays, dtype, threads))
        op.fields["joined"] = int(op.kernel == "small.slim" and parts.joined(op))
        if op.batch == "m":
            op.by_rows = blocking.by_rows(m, n, k, dtype, strides[2], threads)
        elif op.batch == "n":
            op.by_rows = op.kernel == "gemv.gemv_columns"


def _share(program: Program, dtype: str, threads: int, *, rests: bool) -> None:
    """Which products leave out zeros, what threads read of each other, and where they must wait.

    `rests`: whether weights at rest may be left alone.
    """
    for op in program.ops:
        if "part" in op.fields:
            op.by_rows = threads == parts.PARTS  # each thread reads its rows of the batch
        elif op.record is GEMM:
            zeros.leave_out(op, dtype, rests=rests)
    for op in program.ops:
        op.shared = threads > 1 and _shared(op, program.ops)
    for i, op in enumerate(program.ops):
        if op.kernel.endswith("_outer") and op.shared:  # it computes next to nothing while lines come
            _fetch_early(op, program.ops[:i])
    schedule(program.ops)


def flops(program: Program, dtype: str) -> int:
    """Operations of a step, of which products of mostly zeros count a third: about as long they take."""
    return program.flops - sum(costs.flops(op) * 2 // 3 for op in program.ops if op.sparse and zeros.pays(op, dtype))


def _fetch_early(op: Op, before: list[Op]) -> None:
    """Have a product whose output is laid out like what `op` writes get the lines of that, too.

    It writes what is there, in rows of the same thread, and says so, for the sake of barriers.
    """
    shape = [op.fields.get(name) for name in ("rows", "cols", "ld")]
    for product in reversed(before):
        if product.kernel == "small.fused" and product.by_rows and product.epilogue is not None:
            row = product.epilogue.fields.get("c_row")
            if [product.fields["m"], product.fields["n"], row] == shape:
                product.fields["also"] = op.fields["y"]
                product.writes = tuple(dict.fromkeys([*product.writes, *op.writes]))
                return


def _shared(op: Op, ops: list[Op]) -> bool:
    """Whether threads read what others write in an operation.

    Tiles of a weight and tiles of the product that it is a factor of are divided in the same way, by columns; where it
    is turned, its columns are rows.
    """
    readers = [e for e in ops if e is not op and not set(op.writes).isdisjoint(e.reads)]
    if op.epilogue is not None and op.epilogue.record is UPDATE:
        return any(e.by_rows or e.fields.get("b_col") != 1 for e in readers)
    return any(not (op.by_rows and e.by_rows) for e in readers)


def claimed(op: Op, threads: int) -> bool:
    """Whether threads take each other's tasks of a product: where that is worth atomic operations."""
    if threads == 1 or op.kernel not in CLAIMABLE or op.by_rows or "part" in op.fields:
        return False
    return op.number("m") * op.number("n") * op.number("k") > CLAIMED
