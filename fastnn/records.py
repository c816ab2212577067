"""The records of a plan: what each kernel is told, as plain NumPy structured types.

A plan is a table of records, 320 bytes each.  A record names its kernel and its operands; `Record` gives the fields
of one kind of kernel their names and kinds.  Every field is eight bytes, so a record needs no padding rules, and one
table holds records of every kind:

=========  ==================================================================
kind       meaning
=========  ==================================================================
``T*``     address of elements of the model's dtype (float32 or float64)
``u8*``    address of bytes (``i64*``, ``f32*``, ``f64*`` likewise)
``int``    a 64-bit integer
``float``  a float64, rounded to the model's dtype where a kernel uses it
=========  ==================================================================

The first three fields are common to all records:

``kernel``
    address of the compiled function (an opcode until a backend resolves it);
``barrier``
    1 if every thread must have finished the records before this one;
``epilogue``
    address of the record that is applied to each tile this kernel produces, or 0.

This module knows nothing of Numba: `fastnn.cpu.simd` gives kernels typed access to the same bytes.
"""

import struct
from collections.abc import Mapping

import numpy as np

SLOT = 320  # bytes a record: whole cache lines
HEADER = {"kernel": "int", "barrier": "int", "epilogue": "int"}


class Record:
    """The field names and kinds of one kind of record."""

    def __init__(self, name: str, **fields: str) -> None:
        self.name = name
        self.fields = {**HEADER, **fields}
        if 8 * len(self.fields) > SLOT:
            raise ValueError(f"record {name} needs {8 * len(self.fields)} bytes, a slot has {SLOT}")
        self._packer = struct.Struct("".join("d" if kind == "float" else "q" for kind in self.fields.values()))
        self.offsets = {field: 8 * i for i, field in enumerate(self.fields)}
        self.dtype = np.dtype(
            {
                "names": list(self.fields),
                "formats": ["f8" if kind == "float" else "i8" for kind in self.fields.values()],
                "offsets": list(self.offsets.values()),
                "itemsize": SLOT,
            }
        )

    def pack_into(self, buffer: bytearray | memoryview, slot: int, values: Mapping[str, int | float]) -> None:
        """Write a record into `slot` of a table; fields without a value become 0."""
        if not values.keys() <= self.fields.keys():
            raise KeyError(f"record {self.name} has no field {sorted(values.keys() - self.fields.keys())}")
        self._packer.pack_into(buffer, slot * SLOT, *[values.get(field, 0) for field in self.fields])

    def __repr__(self) -> str:
        return f"Record({self.name!r})"


# --- products ---------------------------------------------------------------------------------------------------

GEMM = Record(
    "gemm",
    a="T*",  # (m, k), element strides a_row and a_col
    b="T*",  # (k, n), element strides b_row and b_col
    m="int",
    n="int",
    k="int",
    a_row="int",
    a_col="int",
    b_row="int",
    b_col="int",
    ahead="int",  # steps of k from the prefetch of a row of B, where it lies, to its use
    plain="int",  # 1: the epilogue only writes C, whose rows are contiguous
    pack="int",  # 1: copy panels of B into scratch before use
    copy="int",  # 1: copy blocks of A into scratch before use
    kc="int",  # depth of one block of k
    panels="int",  # panels (of NR columns; fastnn.cpu.spmm: of WIDE vectors) of C that one task computes
    rows="int",  # rows of C that one task computes
    by_rows="int",  # 1: each thread has the same rows of C as in kernels over rows, else some of all tasks
    part="int",  # which part of the batch this is the sum over, from 1, or 0: see fastnn.cpu.parts
    finish="int",  # EPILOGUE, LINEAR, RELU or RELU_SLOPE
    touched="int",  # 1: get the lines that the epilogue writes from other cores while a tile is computed; c_col is 1
    also="T*",  # what a later kernel writes to the same rows, laid out as C: its lines, too, or 0
    block="int",  # rows of A that are used together (fastnn.cpu.spmm: rows of C between two calls of the epilogue)
    kept="int",  # depth of packed B for which there is room: k, kc, or 0 for one panel at a time
    partial="int",  # rows of C for which there is room between two blocks of k
    sums="int",  # address of an epilogue for the sums of D's rows, where C = A' D (bias gradients), or 0
    joined="int",  # 1: these sums are one more row of C to the epilogue of C
    # Per thread, a cache line apart: tasks of its share that were claimed; 0: nobody takes another's.  Of an owner of
    # features, whose share is all of them: one (fastnn.cpu.tensor_parallel.lend).
    claims="i64*",
    # Per thread: panels of B (kept * columns), partial tiles (partial * columns), a block of A; or what
    # fastnn.cpu.blocking.sparse_scratch says.
    scratch="T*",
    scratch_stride="int",
    otherwise="int",  # address of the same product's record for A that is not sparse, or 0 (fastnn.cpu.spmm)
    most="int",  # elements of 64 that are not 0 in A, at most, if it is
    turned="int",  # 1: the epilogue is for C', and the sums are those of A's columns (fastnn.cpu.spmm)
    resting="u8*",  # which weights an update by 0 would not change (fastnn.cpu.spmm.is_at_rest); 0: nobody asks
    first="int",  # the first of these weights, as an element of all parameters
)

# What `fastnn.cpu.finish` does with a tile while it is in registers: nothing, so that the epilogue finds it in the
# first-level cache, or all that the epilogue would do.
EPILOGUE, LINEAR, RELU, RELU_SLOPE = range(4)

# --- epilogues: applied to a tile of a product while it is in the first-level cache -----------------------------

FORWARD = Record(  # c = f(tile + more + bias)
    "forward",
    c="T*",
    c_row="int",
    c_col="int",
    bias="T*",
    one_bias="int",  # 1: the same number for all columns
    more="T*",  # what is to be added to the tile before, laid out as c, whose c_col is 1 then; or 0
    alpha="float",
)
BACKWARD = Record(  # c = tile * f'(y), with f' expressed by f's output y (same layout as c)
    "backward", c="T*", c_row="int", c_col="int", y="T*", alpha="float"
)
UPDATE = Record(  # one optimizer update of p by the gradient
    "update",
    p="T*",
    p_row="int",
    below="int",  # 1: fetch the rows below a tile, too (fastnn.cpu.blocking.is_far)
    s0="T*",  # momentum, Adam's first moment, or RMSprop's mean of squares
    s1="T*",  # Adam's second moment, or RMSprop's momentum
    g="T*",  # the gradient, where it lies in memory (flat updates)
    more="T*",  # what is to be added to it, or 0
    n="int",
    momentum="float",
    decay_1="float",  # 1 - beta_1, given so that it is not rounded twice
    decay_2="float",  # 1 - beta_2, or 1 - rho
    epsilon="float",
)

# --- row and element-wise kernels ------------------------------------------------------------------------------

MAP = Record(  # y = f(x), element by element; or an epilogue of x + g (rows.combine)
    "map",
    x="T*",
    y="T*",
    g="T*",
    n="int",
    alpha="float",
    row="T*",  # a vector of `cols` elements
    rows="int",
    cols="int",
    ld="int",
    far="int",  # 1: y is so large that nobody will find it in a cache
)
GATHER = Record(  # out[r] = scale * x[index[r]] + offset
    "gather",
    x="u8*",
    index="i64*",
    out="T*",
    rows="int",
    first="int",  # columns of x, from this one on
    cols="int",
    ld="int",
    x_row="int",  # strides of x in elements
    x_col="int",
    step_rows="int",  # rows that one full step consumes
    scale="float",
    offset="float",
)
SCATTER = Record(  # out[step * step_rows + r] = x[r]: a batch of results into the caller's array
    "scatter", x="T*", ld="int", out="T*", rows="int", cols="int", step_rows="int"
)
LABELS = Record(  # out[r] = labels[index[r]]
    "labels", labels="i64*", index="i64*", out="i64*", rows="int", step_rows="int"
)
PERMUTATION = Record(  # a random order of the numbers below n
    "permutation", index="i64*", n="int", seed="int"
)
LOSS = Record(  # from outputs (logits) to predictions, loss per row and gradient
    "loss",
    z="T*",  # (rows, cols), leading dimension ld
    p="T*",  # the predictions, likewise; may be z or grad
    target="T*",  # (rows, cols) dense with leading dimension target_ld, or labels
    label="i64*",
    weight="T*",  # one a row, or 0
    grad="T*",  # (rows, cols), leading dimension ld, or 0 where only the value is wanted
    value="T*",  # one a row
    rows="int",
    cols="int",
    ld="int",
    target_ld="int",
    scale="float",  # the gradient's factor: 1 / (rows of the batch * what the loss averages over)
)
METRIC = Record(  # a value per row from predictions and targets
    "metric",
    z="T*",
    target="T*",
    label="i64*",
    value="T*",
    rows="int",
    cols="int",
    ld="int",
    target_ld="int",
    threshold="float",
)
TOTAL = Record(  # totals[slot] += sum of value, in float64 and in a fixed order
    "total", value="T*", weight="T*", rows="int", totals="f64*", slot="int"
)
DROPOUT = Record(
    "dropout",
    x="T*",
    y="T*",
    rows="int",
    cols="int",
    ld="int",
    keep="float",  # probability that a unit is kept
    threshold="int",  # keep * 2^32: a unit is kept where its random word is below
    layer="int",
)

# --- what functions over arrays need besides (fastnn.cpu.direct) --------------------------------------------------

BATCH = Record(  # a product for every matrix of a batch
    "batch",
    a="int",  # addresses of the first matrices
    b="int",
    c="int",
    count="int",  # matrices
    axes="i64*",  # for each of `dims` axes, innermost first: its length, and its strides in a, b and c in bytes
    dims="int",
    pairs="int",  # per thread: the records of the product and of its epilogue
    scratch="T*",
    scratch_stride="int",  # in bytes
    run="int",  # the run of a single thread
)
PRODUCT = Record(  # a product of NumPy arrays of one dtype
    "product",
    batch="int",  # address of the batch to fill in and run
    dense="int",  # 1: of a dense layer
    tiled="int",  # addresses of the kernels gemm, gemv_rows, gemv_columns and that of small products
    rows="int",
    columns="int",
    small="int",
    kc="int",  # the largest depth of a block
    layouts="int",  # address of a table of LAYOUT, for products that are too large for the interpreter's lock
)
LAYOUT = Record(  # how such a product is done; its records follow in the next two slots
    "layout",
    m="int",
    n="int",
    k="int",
    a_row="int",
    a_col="int",
    b_row="int",
    b_col="int",
    c_row="int",
    c_col="int",
    epoch="int",  # the setting of threads that it was made for (fastnn.threads)
    helpers="int",  # threads besides the caller's
    swapped="int",  # 1: as C' = B' A'
    scratch="int",  # bytes for each thread
)
WORKSHOP = Record(  # one for all of them: one at a time
    "workshop",
    epoch="i64*",  # the setting of threads
    busy="int",
    scratch="T*",
    size="int",  # bytes of it
    team="i64*",  # the words of a crowd (fastnn.cpu.crowd), or 0
    leader="int",  # the caller's place in it
    together="int",  # address of fastnn.cpu.engine.together
    provided="int",  # the setting of threads for which these three are there
    job="int",  # room for the record of a function that they join
)
CRITERION = Record(  # a mean loss of NumPy arrays of one dtype
    "criterion",
    loss="int",  # address of the loss to fill in and run
    labels="int",  # 1: targets are class numbers
    by_rows="int",  # 1: rows stand for themselves, else the mean is over all elements
    bounded="int",  # 1: targets lie between 0 and 1
)
CALL = Record(  # a builtin function over NumPy arrays
    "call",
    python="int",  # address of the record PYTHON
    float32="int",  # address of the record to fill in and run for arrays of float32, or 0 while there is none
    float64="int",
    run="int",
    most="int",  # the largest work that is done here
    shared="int",  # what is more than that helpers join where it closely follows another call (fastnn.cpu.immediate)
    helpers="int",  # how many there may be
    epoch="int",  # the setting of threads for which this is so, and the one in force
    epochs="i64*",
    ended="i64*",  # thread and time of the end of the last such call, and room for a look at the clock
    clock="int",
    clock_id="int",
    workshop="int",  # address of what they need, and what products of a LAYOUT do
)
PYTHON = Record(  # addresses in Python and NumPy
    "python",
    none="int",  # objects
    array="int",
    number="int",
    float32="int",
    float64="int",
    int64="int",
    empty="int",  # functions: PyArray_Empty, PyArray_Return
    returned="int",
    keep="int",  # Py_IncRef
    drop="int",  # Py_DecRef
    new_number="int",  # PyFloat_FromDouble
    new_tuple="int",  # PyTuple_New
    put="int",  # PyTuple_SetItem
    release="int",  # PyEval_SaveThread, PyEval_RestoreThread: the interpreter's lock
    acquire="int",
    ident="int",  # PyThread_get_thread_ident
)
PREDICTION = Record(  # a builtin function that predicts arrays like one that was predicted before
    "prediction",
    python="int",
    descr="int",  # the dtype of such an array, its lengths, and its strides in bytes
    rows="int",
    cols="int",
    row="int",
    col="int",
    shape="int",  # address of the two lengths of an array of outputs
    size="int",  # bytes of an output
    inputs="int",  # addresses of the places where records keep the arrays' addresses, 0 behind the last one
    outputs="int",
    run="int",
    engine="int",  # address of the function that does the run
)

# --- what the threads of one run share --------------------------------------------------------------------------

RUN = Record(
    "run",
    threads="int",
    table="int",  # address of the records of a full step: of all threads, or of one that works alone
    records="int",
    short_table="int",  # the records of a step with fewer rows
    short_records="int",
    short_step="int",  # the step that uses them, or -1
    first="int",
    stop="int",  # the step after the last one
    apart="i64*",  # addresses of the records of each thread, where these do operations by themselves, or 0
    apart_records="int",
    short_apart="i64*",
    short_apart_records="int",
    single="int",  # address of the same run for a thread that does: its `threads` are 1
    rate="f64*",  # the optimizer's step sizes, one a step (or two: see fastnn.optimizers.AdamW)
    origin="int",  # training steps before step 0 of this run (dropout's counter)
    seed="int",
    team="i64*",  # the barrier's counters (fastnn.cpu.engine)
    yields="int",  # address of the operating system's yield
    spins="int",  # how often a thread looks at a barrier before it offers its core to others
    done="i64*",  # the step that comes next: read by the caller while the team works
    halt="i64*",  # set by the caller: stop after this step
    worker="int",  # which helper this record belongs to (fastnn.cpu.crowd)
    ready="i64*",  # the columns of B that this helper has packed, or 0 where threads are not helpers; `attend`'s jobs
    clock="int",  # address of the operating system's clock (fastnn.cpu.clock), and what it is asked for
    clock_id="int",
    times="i64*",  # per thread: a cache line for the clock, then what each record of each step took
    times_stride="int",  # elements from one thread's times to the next one's
)
