"""Memory of a kernel's own."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnn.cpu.simd.vectors import llvm_type, vec


@intrinsic(prefer_literal=True)
def stack(typingctx, like, blocks):
    """Uninitialised memory for `blocks` (a constant) blocks of lanes x lanes elements, until the kernel returns."""
    lanes = vec(like.dtype).lanes
    block = ir.ArrayType(llvm_type(like.dtype), lanes * lanes * blocks.literal_value)

    def codegen(context, builder, sig, args):
        with builder.goto_entry_block():
            memory = builder.alloca(block)
        memory.align = 64
        return builder.bitcast(memory, context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(like, blocks), codegen
