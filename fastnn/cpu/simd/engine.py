"""What the engine needs: atomics for its barrier, and calls through addresses."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastnn.cpu import target
from fastnn.cpu.blocking import WIDE
from fastnn.cpu.simd.references import ANY_REF, record_field
from fastnn.cpu.simd.vectors import I8, I32, I64, call_intrinsic, join


@intrinsic
def fetch_add(typingctx, pointer, i, value):
    """Add to the int64 at ``pointer[i]`` atomically; returns what was there."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(pointer, types.intp, types.int64), codegen


@intrinsic
def exchange(typingctx, pointer, i, value):
    """Write the int64 at ``pointer[i]`` atomically, after all that was written before; returns what was there."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("xchg", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(pointer, types.intp, types.int64), codegen


@intrinsic
def load_acquire(typingctx, pointer, i):
    def codegen(context, builder, sig, args):
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "acquire", 8)

    return types.int64(pointer, types.intp), codegen


@intrinsic
def store_release(typingctx, pointer, i, value):
    def codegen(context, builder, sig, args):
        builder.store_atomic(args[2], builder.gep(args[0], [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the CPU that this is a spin loop."""

    def codegen(context, builder, sig, args):
        triple = target.host().triple
        if triple.startswith(("x86_64", "i686", "amd64")):
            call_intrinsic(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif triple.startswith(("aarch64", "arm64")):
            call_intrinsic(builder, "llvm.aarch64.hint", ir.VoidType(), [I32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(typingctx, address):
    """Call the C function ``void f(void)`` (or one whose result is ignored) at `address`."""

    def codegen(context, builder, sig, args):
        builder.call(builder.inttoptr(args[0], ir.FunctionType(I32, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def call_function(typingctx, address, arguments):
    """Call the C function at `address` with these integers (a tuple); returns an integer."""

    def codegen(context, builder, sig, args):
        values = cgutils.unpack_tuple(builder, args[1], len(arguments))
        fnty = ir.FunctionType(I64, [I64] * len(values))
        return builder.call(builder.inttoptr(args[0], fnty.as_pointer()), values)

    return types.intp(types.intp, types.UniTuple(types.intp, len(arguments))), codegen


@intrinsic
def call_with_number(typingctx, address, value):
    """Call the C function at `address` with a float64; returns an integer."""

    def codegen(context, builder, sig, args):
        fnty = ir.FunctionType(I64, [ir.DoubleType()])
        return builder.call(builder.inttoptr(args[0], fnty.as_pointer()), [args[1]])

    return types.intp(types.intp, types.float64), codegen


@intrinsic
def record_at(typingctx, address):
    """The header of the record at `address`."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], I8.as_pointer())

    return ANY_REF(types.intp), codegen


@intrinsic
def call_kernel(typingctx, op, run, step, thread):
    """Call the kernel that the record `op` names."""

    def codegen(context, builder, sig, args):
        kernel = record_field(context, builder, sig.args[0], args[0], "kernel")
        fnty = ir.FunctionType(ir.VoidType(), [a.type for a in args])
        builder.call(builder.inttoptr(kernel, fnty.as_pointer()), args)
        return context.get_dummy_value()

    return types.void(op, run, types.intp, types.intp), codegen


@intrinsic
def call_epilogue(typingctx, address, run, step, tile, tile_row, i, j, rows, cols):
    """Apply the epilogue whose record is at `address` to the tile of C at (i, j), held at `tile` with leading dimension
    `tile_row`.
    """

    def codegen(context, builder, sig, args):
        record = builder.inttoptr(args[0], I8.as_pointer())
        kernel = record_field(context, builder, ANY_REF, record, "kernel")
        arguments = [record, *args[1:]]
        fnty = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        builder.call(builder.inttoptr(kernel, fnty.as_pointer()), arguments)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(integer, run, integer, tile, integer, integer, integer, integer, integer), codegen


@intrinsic
def call_row_epilogue(typingctx, address, run, step, i, j, tile):
    """Apply the row epilogue whose record is at `address` to a row of C, from (i, j) on, which is in registers.

    `tile` is a tuple of `WIDE` vectors, or of half as many.
    """

    def codegen(context, builder, sig, args):
        parts = [builder.extract_value(args[5], q) for q in range(tile.count)]
        wide = len(parts) == WIDE
        if not wide:
            parts += [ir.Constant(parts[0].type, ir.Undefined)] * (WIDE - len(parts))
        record = builder.inttoptr(args[0], I8.as_pointer())
        kernel = record_field(context, builder, ANY_REF, record, "kernel")
        arguments = [record, *args[1:5], I64(int(wide)), join(builder, parts)]
        fnty = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        builder.call(builder.inttoptr(kernel, fnty.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(types.intp, run, types.intp, types.intp, types.intp, tile), codegen


MXCSR_FLUSH = 0x8040  # flush-to-zero and denormals-are-zero
FPCR_FLUSH = 1 << 24


@intrinsic
def flush_subnormals(typingctx):
    """Make this thread treat subnormal numbers as 0; returns the mode before, for `restore_mode`."""

    def codegen(context, builder, sig, args):
        triple = target.host().triple
        if triple.startswith(("x86_64", "i686", "amd64")):
            memory = cgutils.alloca_once(builder, I32)
            at = builder.bitcast(memory, I8.as_pointer())
            call_intrinsic(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [at])
            mode = builder.load(memory)
            builder.store(builder.or_(mode, I32(MXCSR_FLUSH)), memory)
            call_intrinsic(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [at])
            return builder.zext(mode, I64)
        if triple.startswith(("aarch64", "arm64")):
            mode = call_intrinsic(builder, "llvm.aarch64.get.fpcr", I64, [])
            call_intrinsic(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [builder.or_(mode, I64(FPCR_FLUSH))])
            return mode
        return I64(0)

    return types.int64(), codegen


@intrinsic
def restore_mode(typingctx, mode):
    """Undo `flush_subnormals`."""

    def codegen(context, builder, sig, args):
        triple = target.host().triple
        if triple.startswith(("x86_64", "i686", "amd64")):
            memory = cgutils.alloca_once(builder, I32)
            builder.store(builder.trunc(args[0], I32), memory)
            call_intrinsic(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [builder.bitcast(memory, I8.as_pointer())])
        elif triple.startswith(("aarch64", "arm64")):
            call_intrinsic(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [args[0]])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
