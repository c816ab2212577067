"""Exponents, fractions and tables in registers: single instructions of AVX-512 that other CPUs have no match for.

`has_exponents` is a constant: kernels branch on it, and where it is false the code that uses this module is compiled to
nothing (its functions are undefined there).
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnn.cpu import target
from fastnn.cpu.simd.vectors import I1, I32, call_intrinsic, llvm_type, suffix

ROUNDING = 4  # as the CPU is set
FROM_THREE_QUARTERS = 3  # fractions in [3/4, 3/2)
NAN_IF_NEGATIVE = 8


def _is_wide(x):
    return x.scalar.bitwidth * x.lanes == 512


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


def _masked(builder, name, x, operands):
    """An instruction that could leave lanes as they are, for all lanes."""
    if x.type.count * int(suffix(x.type)[-2:]) != 512:
        return ir.Constant(x.type, ir.Undefined)
    every = ir.IntType(x.type.count)((1 << x.type.count) - 1)
    kind = "ps" if x.type.count == 16 else "pd"
    arguments = [x, *operands, ir.Constant(x.type, ir.Undefined), every, I32(ROUNDING)]
    return call_intrinsic(builder, f"llvm.x86.avx512.mask.{name}.{kind}.512", x.type, arguments)


@intrinsic
def scale(typingctx, x, n):
    """``x * 2^floor(n)``, rounded once, for any float n."""

    def codegen(context, builder, sig, args):
        return _masked(builder, "scalef", args[0], [args[1]])

    return x(x, n), codegen


@intrinsic
def exponent(typingctx, x):
    """``floor(log2(|x|))`` as floats; -inf for 0 and inf for infinity."""

    def codegen(context, builder, sig, args):
        return _masked(builder, "getexp", args[0], [])

    return x(x), codegen


@intrinsic
def fraction(typingctx, x):
    """x / 2^k in [3/4, 3/2) for an integral k; 1 for 0 and infinity, NaN below 0."""

    def codegen(context, builder, sig, args):
        return _masked(builder, "getmant", args[0], [I32(FROM_THREE_QUARTERS | NAN_IF_NEGATIVE)])

    return x(x), codegen


def _look_up(builder, ty, entries, index):
    """The entry of each lane's index, of which only the low bits count: tables of one register, or of two."""
    vector = llvm_type(ty)
    registers = [ir.Constant(vector, entries[i : i + ty.lanes]) for i in range(0, len(entries), ty.lanes)]
    if not _is_wide(ty) or len(registers) > 2:
        return ir.Constant(vector, ir.Undefined)
    if len(registers) == 1:
        return call_intrinsic(builder, "llvm.x86.avx512.permvar.sf.512", vector, [*registers, index])
    name = f"llvm.x86.avx512.vpermi2var.{'ps' if ty.scalar.bitwidth == 32 else 'pd'}.512"
    return call_intrinsic(builder, name, vector, [registers[0], index, registers[1]])


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
        return I1(_is_wide(x) and 2 * x.lanes >= PIECES)

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
