"""Exponents, fractions and tables in registers: single instructions of AVX-512 that other CPUs have no match for.

`has_exponents` is a constant: kernels branch on it, and where it is false the code that uses this module is compiled to
nothing (its functions are undefined there).
"""

import itertools

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnn.cpu import target
from fastnn.cpu.simd.vectors import BITS, I1, I32, call_intrinsic, join, llvm_type, split, suffix, vec

ROUNDING = 4  # as the CPU is set
FROM_THREE_QUARTERS = 3  # fractions in [3/4, 3/2)
NAN_IF_NEGATIVE = 8


def _is_wide(x):
    """Whether `x` fills registers of 512 bits: one, or several if it is a block."""
    return BITS == 512 and x.scalar.bitwidth * x.lanes % BITS == 0


@intrinsic
def has_exponents(typingctx, x):
    """Whether `scale`, `exponent`, `fraction` and tables may be used for vectors like `x` (a constant)."""

    def codegen(context, builder, sig, args):
        return I1(_is_wide(x))

    return types.boolean(x), codegen


@intrinsic
def is_fused(typingctx, x):
    """Whether `muladd` rounds once (a constant)."""
    cpu = target.host()

    def codegen(context, builder, sig, args):
        return I1(cpu.simd_bits > 128 or cpu.triple.startswith(("aarch64", "arm64")))

    return types.boolean(x), codegen


def _masked(builder, name, ty, operands):
    """An instruction that could leave lanes as they are, for all lanes of vectors of type `ty`."""
    if not _is_wide(ty):
        return ir.Constant(llvm_type(ty), ir.Undefined)
    lanes = vec(ty.scalar).lanes
    every = ir.IntType(lanes)((1 << lanes) - 1)
    function = f"llvm.x86.avx512.mask.{name}.{'ps' if ty.scalar.bitwidth == 32 else 'pd'}.512"
    lists = (split(builder, x, lanes) if isinstance(x.type, ir.VectorType) else itertools.repeat(x) for x in operands)
    undefined = ir.Constant(llvm_type(vec(ty.scalar)), ir.Undefined)
    arguments = ([*parts, undefined, every, I32(ROUNDING)] for parts in zip(*lists, strict=False))
    return join(builder, [call_intrinsic(builder, function, undefined.type, a) for a in arguments])


@intrinsic
def scale(typingctx, x, n):
    """``x * 2^floor(n)``, rounded once, for any float n."""

    def codegen(context, builder, sig, args):
        return _masked(builder, "scalef", x, args)

    return x(x, n), codegen


@intrinsic
def exponent(typingctx, x):
    """``floor(log2(|x|))`` as floats; -inf for 0 and inf for infinity."""

    def codegen(context, builder, sig, args):
        return _masked(builder, "getexp", x, args)

    return x(x), codegen


@intrinsic
def fraction(typingctx, x):
    """x / 2^k in [3/4, 3/2) for an integral k; 1 for 0 and infinity, NaN below 0."""

    def codegen(context, builder, sig, args):
        return _masked(builder, "getmant", x, [*args, I32(FROM_THREE_QUARTERS | NAN_IF_NEGATIVE)])

    return x(x), codegen


def _look_up(builder, ty, entries, index):
    """The entry of each lane's index, of which only the low bits count: tables of one register, or of two."""
    lanes = vec(ty.scalar).lanes
    if not _is_wide(ty) or len(entries) > 2 * lanes:
        return ir.Constant(llvm_type(ty), ir.Undefined)
    registers = [ir.Constant(llvm_type(vec(ty.scalar)), entries[i : i + lanes]) for i in range(0, len(entries), lanes)]

    def of_register(index):
        if len(registers) == 1:
            return call_intrinsic(builder, "llvm.x86.avx512.permvar.sf.512", registers[0].type, [*registers, index])
        name = f"llvm.x86.avx512.vpermi2var.{'ps' if ty.scalar.bitwidth == 32 else 'pd'}.512"
        return call_intrinsic(builder, name, registers[0].type, [registers[0], index, registers[1]])

    return join(builder, [of_register(part) for part in split(builder, index, lanes)])


def table(float32, float64):
    """Sixteen numbers for each dtype as a function of a vector of integers, of which the low four bits count."""

    @intrinsic
    def look_up(typingctx, index):
        def codegen(context, builder, sig, args):
            entries = float32 if index.scalar.bitwidth == 32 else float64
            return _look_up(builder, index.floats, entries, args[0])

        return index.floats(index), codegen

    return look_up


PIECES = 32


@intrinsic
def has_pieces(typingctx, x):
    """Whether two registers of the CPU hold a number for each of the `pieces` (a constant)."""

    def codegen(context, builder, sig, args):
        return I1(_is_wide(x) and 2 * vec(x.scalar).lanes >= PIECES)

    return types.boolean(x), codegen


def pieces(polynomials):
    """Polynomials (`PIECES` of float32, lowest power first) as a function of integers that tell which, and of x."""
    columns = list(zip(*polynomials, strict=True))

    @intrinsic
    def evaluate(typingctx, index, x):
        def codegen(context, builder, sig, args):
            *rest, total = (_look_up(builder, x, column, args[0]) for column in columns)
            for c in reversed(rest):
                arguments = [total, args[1], c]
                total = call_intrinsic(builder, f"llvm.fmuladd.{suffix(c.type)}", c.type, arguments)
            return total

        return x(index, x), codegen

    return evaluate
