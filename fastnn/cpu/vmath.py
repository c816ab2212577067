"""The exponential function and what is made of it, on SIMD vectors of float32 or float64.

Each function is straight-line arithmetic: no call to libm, no branch, so one vector costs what its 15 to 40
instructions cost, on any CPU.  The scheme is the classic one (Cody and Waite, "Software Manual for the Elementary
Functions", 1980): reduce the argument to a small interval, evaluate a polynomial there, scale the result back.  AVX-512
takes floats apart and puts them together in one instruction each and looks up tables of 16 numbers in another
(`fastnn.cpu.simd.exponents`), which halves exp and log: 64 KiB of float32 take 2.5 us instead of 4.5, the call aside.

Three tricks recur:

- Adding and subtracting 1.5 * 2^(mantissa bits) rounds to the nearest integer; the low bits of the sum are that
  integer, so no conversion instruction is needed (AVX2 has none for 64 bits).
- ln 2 is split into a high part with so few bits that its product with an exponent is exact, and a low part.  Hence the
  bounds below hold where `muladd` rounds twice, too.
- ``select(x > top, top, x)`` clamps and, since no comparison with NaN is true, lets NaN through.

Errors are in units in the last place (ulp) of the exact result, the largest of all paths: over all of float32 with
AVX-512, without fused multiply-adds over all 2^-30 <= |x| < 2^8 and every 61st of the others, and over some 30,000
float64 a function, chosen where errors are largest.  `tests/test_vmath.py` measures them again.
"""

import numpy as np

from fastnn.cpu.jit import device
from fastnn.cpu.simd import (
    absolute,
    as_floats,
    as_integers,
    constant,
    copysign,
    estimate_reciprocal,
    estimate_root,
    estimates,
    has_exponents,
    has_pieces,
    is_fused,
    muladd,
    pieces,
    polynomial,
    scale,
    select,
    sqrt,
    table,
)

# --- the numbers of each dtype: (float32, float64) ----------------------------------------------------------------

ROUND = constant(1.5 * 2.0**23, 1.5 * 2.0**52)
ROUND_16THS = constant(1.5 * 2.0**19, 1.5 * 2.0**48)
TO_POWER = constant(1.5 * 2.0**23 + 127, 1.5 * 2.0**52 + 1023)  # n + this, shifted by MANTISSA, has the bits of 2^n
ROUND_BITS = constant(0x4B400000, 0x4338000000000000)
HIGH_HALF = constant(-(1 << 12), -(1 << 27))  # the bits of the first half of a mantissa, and the exponent
MANTISSA = constant(23, 52)
BIAS = constant(127, 1023)
SMALLEST_NORMAL = constant(2.0**-126, 2.0**-1022)
INFINITY = float("inf")
BOTTOM = constant(-INFINITY, -INFINITY)

LOG2_E = constant(1.4426950408889634, 1.4426950408889634)
LN2_HIGH = constant(float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.62e42fefa2p-1"))  # 15 and 40 bits
LN2_LOW = constant(1.4286068203094173e-06, 7.371002565167799e-13)

EXP_TOP = constant(89.0, 710.0)  # exp of more is infinite
EXP_BOTTOM = constant(-104.0, -746.0)  # exp of less is 0
EXPM1_BOTTOM = constant(-20.0, -40.0)  # expm1 of less is -1
TANH_TOP = constant(10.0, 20.0)  # tanh of more is 1

# The polynomials are minimax (Remez exchange at 200 bits), weighted by how much each contributes to its function.

# (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2: degree 4, exp to 2^-28.2; degree 9, exp to 2^-57.9
EXP_TAIL = polynomial(
    [0.4999999344780462, 0.16666520631748297, 0.0416683880462062, 0.0083687168776981, 0.001381459852760012],
    [
        0.5000000000000011,
        0.16666666666666413,
        0.04166666666653016,
        0.008333333333494465,
        0.001388888894363005,
        0.0001984126950657133,
        2.480149309892918e-05,
        2.7557586380882427e-06,
        2.7630248379742436e-07,
        2.5000059256054842e-08,
    ],
)

# (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 32: degree 1, exp to 2^-29.2; degree 4, exp to 2^-56.2
EXP_NEAR_ZERO = polynomial(
    [0.5000162112412361, 0.16667057742902644],
    [
        0.5000000000000006,
        0.16666666664416974,
        0.04166666665964044,
        0.008333471950980578,
        0.0013889129237563112,
    ],
)
# 2^(j / 16), rounded, and what that takes away: it would cost half an ulp.
ROOTS = [2.0 ** (j / 16) for j in range(16)]
ROOT = table(ROOTS, ROOTS)
LOWS = (
    [root - float(np.float32(root)) for root in ROOTS],
    [
        0.0,
        8.551889705537965e-17,
        -3.046782079812471e-17,
        8.912812676025408e-17,
        3.982015231465646e-17,
        4.658027591836937e-17,
        2.5382502794888315e-17,
        7.70094837980299e-17,
        -9.667293313452913e-17,
        -3.483994556892796e-17,
        7.949834809697621e-17,
        2.4707192569797888e-17,
        8.199010020581497e-17,
        2.960140695448873e-17,
        3.283107224245627e-17,
        -1.0619946056195963e-16,
    ],
)
ROOT_LOW = table(*LOWS)
ROOT_LOSS = table(*([low / root for low, root in zip(lows, ROOTS, strict=True)] for lows in LOWS))

# (exp(r) - 1 - r) / r^2 likewise, where the error of exp(r) - 1 counts: degree 2, to 2^-31.0; degree 5, to 2^-58.7
EXPM1_NEAR_ZERO = polynomial(
    [0.5, 0.1666696580870061, 0.04166716523565794],
    [
        0.5000000000000001,
        0.16666666666666669,
        0.04166666666347077,
        0.008333333332978234,
        0.0013889066949166822,
        0.0001984146768580789,
    ],
)

# tanh in 32 intervals of width 19/64, around the multiples of that: degree 6, to 2^-28
TANH_WIDTH = 19 / 64
TANH_LAST = 31 * TANH_WIDTH  # tanh of more is 1


def interpolated(f, degree, first, last):
    series = np.polynomial.Chebyshev.interpolate(f, degree, domain=[first, last])
    return series.convert(kind=np.polynomial.Polynomial).coef


def tanh_near(middle):
    """Coefficients of tanh(middle + r) for |r| <= TANH_WIDTH / 2 (at 0 only r >= 0), lowest power first."""
    half = TANH_WIDTH / 2
    if middle == 0:
        return [0.0, 1.0, *interpolated(lambda r: (np.tanh(r) - r) / r**2, 4, 0, half)]
    return interpolated(lambda r: np.tanh(middle + r), 6, -half, half)


TANH_PIECES = pieces([tanh_near(j * TANH_WIDTH) for j in range(32)])

# --- exp and what is made of it -----------------------------------------------------------------------------------


@device
def product(a, b):
    """``high, low``: a b rounded and what that takes away, exactly (Dekker's product where `muladd` rounds twice)."""
    high = a * b
    if is_fused(a):
        return high, muladd(a, b, -high)
    a_high = as_floats(as_integers(a) & HIGH_HALF(a))
    b_high = as_floats(as_integers(b) & HIGH_HALF(b))
    a_low, b_low = a - a_high, b - b_high
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


@device
def reduce_exp(x):
    """``n, r`` with x = n ln 2 + r, |r| <= ln(2) / 2, n integral."""
    n = muladd(x, LOG2_E(x), ROUND(x)) - ROUND(x)
    return n, muladd(n, -LN2_LOW(x), muladd(n, -LN2_HIGH(x), x))


@device
def power(n):
    """2^n for an integral n, if that is a normal number."""
    return as_floats(as_integers(n + TO_POWER(n)) << MANTISSA(n))


@device
def scaled(x, n):
    """x 2^n for an integral n and x of about 1; a subnormal result is rounded once."""
    if has_exponents(x):
        return scale(x, n)
    # 2^n alone may be out of range where the result is not, so it is applied in halves.
    n = as_integers(n + ROUND(x)) - (ROUND_BITS(x) - BIAS(x) - BIAS(x))
    half = n >> 1
    return x * as_floats(half << MANTISSA(x)) * as_floats((n - half) << MANTISSA(x))


@device
def exp_below_top(x):
    """e^x for x <= EXP_TOP: 2^n e^r, with AVX-512 for n in sixteenths."""
    x = select(x < EXP_BOTTOM(x), EXP_BOTTOM(x), x)
    if has_exponents(x):
        shifted = muladd(x, LOG2_E(x), ROUND_16THS(x))
        n = shifted - ROUND_16THS(x)
        r = muladd(n, -LN2_LOW(x), muladd(n, -LN2_HIGH(x), x))
        j = as_integers(shifted)
        root = ROOT(j)
        return scale(root + muladd(root * r, muladd(r, EXP_NEAR_ZERO(r), 1.0), ROOT_LOW(j)), n)
    n, r = reduce_exp(x)
    return scaled(1.0 + muladd(r * r, EXP_TAIL(r), r), n)


@device
def exp(x):
    """e^x.  At most 0.98 ulp in float32, 0.99 in float64."""
    return exp_below_top(select(x > EXP_TOP(x), EXP_TOP(x), x))


@device
def expm1_scaled(x, shift, one):
    """``(e^x - 1) one``, where `one` is 2^-shift, for x such that ``e^x one`` is in range."""
    x = select(x < EXPM1_BOTTOM(x), EXPM1_BOTTOM(x), x)
    if has_exponents(x):
        shifted = muladd(x, LOG2_E(x), ROUND_16THS(x))
        n = shifted - ROUND_16THS(x)
        r = muladd(n, -LN2_LOW(x), muladd(n, -LN2_HIGH(x), x))
        j = as_integers(shifted)
        s = scale(ROOT(j), n - shift)
        small = muladd(r * r, EXPM1_NEAR_ZERO(r), ROOT_LOSS(j))
    else:
        n, r = reduce_exp(x)
        s = power(n - shift)
        small = r * r * EXP_TAIL(r)
    return muladd(s, small, muladd(s, r, s - one))


@device
def expm1(x):
    """e^x - 1.  At most 1.55 ulp in float32, 1.88 in float64."""
    z = select(x > EXP_TOP(x), EXP_TOP(x), x)
    half = expm1_scaled(z, 1.0, 0.5)  # because 2^128 is out of range where e^x is not
    return copysign(half + half, x)


@device
def one_minus_exp(y):
    """1 - e^-y, as accurate as `expm1`, for y not below -`EXP_TOP`."""
    return 0.0 - expm1_scaled(-y, 0.0, 1.0)  # 0 for 0, where a minus sign would make -0


@device
def sigmoid(x):
    """1 / (1 + e^-x), as e / (1 + e) for x < 0, with e = e^-|x|: never overflows.

    At most 1.96 ulp in float32, 1.72 in float64.
    """
    e = exp_below_top(-absolute(x))
    d = 1.0 + e
    dividend = select(x < 0.0, e, 1.0)
    if estimates(x):
        reciprocal = estimate_reciprocal(d)
        y = dividend * reciprocal
        return muladd(muladd(-e, y, dividend - y), reciprocal, y)
    reciprocal = 1.0 / d
    y = dividend * reciprocal
    return muladd(y, muladd(-e, reciprocal, 1.0 - reciprocal), y)  # 1 - (1 + e) / d: what rounding 1 + e to d did


@device
def tanh(x):
    """m / (m + 2) with m = e^(2 |x|) - 1, odd; in float32 with AVX-512 a polynomial for each of 32 intervals.

    At most 1.77 ulp in float32, 1.89 in float64.
    """
    z = absolute(x)
    if has_pieces(x):
        z = select(z > TANH_LAST, TANH_LAST, z)
        shifted = muladd(z, 1.0 / TANH_WIDTH, ROUND(x))
        r = muladd(shifted - ROUND(x), -TANH_WIDTH, z)
        return copysign(TANH_PIECES(as_integers(shifted), r), x)
    z = select(z > TANH_TOP(x), TANH_TOP(x), z)
    n, r = reduce_exp(z + z)
    s = power(n)
    m = muladd(s, r * r * EXP_TAIL(r), muladd(s, r, s - 1.0))
    reciprocal = estimate_reciprocal(m + 2.0)
    y = m * reciprocal
    left = muladd(-2.0, y, m)  # m - y (m + 2), where m + 2 is not rounded
    if is_fused(x):
        left = muladd(-m, y, left)
    else:
        whole, rest = product(m, y)
        left = (left - whole) - rest
    return copysign(muladd(left, reciprocal, y), x)


# --- division by a root -------------------------------------------------------------------------------------------


@device
def divide_by_root(m, v, epsilon):
    """m / (sqrt(v) + epsilon) for finite m and v >= 0, as Adam needs it.  At most 2.5 ulp, as with correctly
    rounded operations: three roundings follow each other.

    Where the CPU has estimates (AVX-512), one step of Newton's iteration each makes the root and the quotient of them:
    multiply-adds instead of a square root and a division.  All of Adam, data in the second-level cache: 5.4 ns a vector
    instead of 6.6 in float32, 6.1 instead of 11.5 in float64.
    """
    if not estimates(v):
        return m / (sqrt(v) + epsilon)
    y = estimate_root(select(v < SMALLEST_NORMAL(v), SMALLEST_NORMAL(v), v))
    root = v * y
    root = muladd(muladd(-root, root, v), 0.5 * y, root)
    d = root + epsilon
    q = estimate_reciprocal(d)
    t = m * q
    return muladd(muladd(-d, t, m), q, t)


@device
def over_root(g, d):
    """g / sqrt(d) for finite g and d > 0, as RMSprop needs it.  At most 2 ulp with the rounding of d = v + epsilon, as
    with correctly rounded operations.

    Where the CPU has estimates, one step of Newton's iteration each makes the root and the quotient of one estimate.
    """
    if not estimates(d):
        return g / sqrt(d)
    d = select(d < SMALLEST_NORMAL(d), SMALLEST_NORMAL(d), d)
    y = estimate_root(d)
    root = d * y
    root = muladd(muladd(-root, root, d), 0.5 * y, root)
    q = g * y
    return muladd(muladd(-root, q, g), y, q)
