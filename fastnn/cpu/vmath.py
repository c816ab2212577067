"""Exponential, logarithm and their kin on SIMD vectors of float32 or float64.

Each function is straight-line arithmetic: no call to libm, no table, no branch, so one vector costs what its 15 to 40
instructions cost, on any CPU.  The scheme is the classic one (Cody and Waite, "Software Manual for the Elementary
Functions", 1980): reduce the argument to a small interval, evaluate a polynomial there, scale the result back.

Three tricks recur:

- Adding and subtracting 1.5 * 2^(mantissa bits) rounds to the nearest integer; the low bits of the sum are that
  integer, so no conversion instruction is needed (AVX2 has none for 64 bits).
- ln 2 is split into a high part with so few bits that its product with an exponent is exact, and a low part.  Hence the
  bounds below hold where `muladd` rounds twice, too.
- ``select(x > top, top, x)`` clamps and, since no comparison with NaN is true, lets NaN through.

Errors are in units in the last place (ulp) of the exact result: the largest over all of float32 (swept with AVX-512 and
on the portable path) and over some 30,000 float64 a function, chosen where errors are largest.  `tests/test_vmath.py`
measures them again.
"""

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
    muladd,
    polynomial,
    select,
    sqrt,
)

# --- the numbers of each dtype: (float32, float64) ----------------------------------------------------------------

ROUND = constant(1.5 * 2.0**23, 1.5 * 2.0**52)
ROUND_BITS = constant(0x4B400000, 0x4338000000000000)
MANTISSA = constant(23, 52)
BIAS = constant(127, 1023)
SMALLEST_NORMAL = constant(2.0**-126, 2.0**-1022)
INFINITY = float("inf")
NAN = float("nan")
BOTTOM = constant(-INFINITY, -INFINITY)

LOG2_E = constant(1.4426950408889634, 1.4426950408889634)
LN2_HIGH = constant(float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.62e42fefa2p-1"))  # 15 and 40 bits
LN2_LOW = constant(1.4286068203094173e-06, 7.371002565167799e-13)

EXP_TOP = constant(89.0, 710.0)  # exp of more is infinite
EXP_BOTTOM = constant(-104.0, -746.0)  # exp of less is 0
TANH_TOP = constant(10.0, 20.0)  # tanh of more is 1

# Scaling that makes a subnormal normal, and what it adds to the exponent.
RAISE = constant(2.0**24, 2.0**54)
RAISED = constant(24.0, 54.0)

TWO_THIRDS_BITS = constant(0x3F2AAAAB, 0x3FE5555555555555)
LARGE = constant(2.0**30, 2.0**60)  # 1 + x == x, with room to spare

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

# (tanh(x) - x) / x^3 in x^2 on |x| <= 0.55: degree 4, tanh to 2^-29.8; degree 9, tanh to 2^-55.4
TANH_TAIL = polynomial(
    [-0.3333331754498976, 0.1333258559083728, -0.05385224762300713, 0.021071403987233363, -0.006273825728324625],
    [
        -0.3333333333333231,
        0.13333333333168426,
        -0.053968253875942146,
        0.02186948597152142,
        -0.008863194459774215,
        0.0035917193370125274,
        -0.001453214955805976,
        0.0005791316110739101,
        -0.00021029346301301783,
        5.101522386697633e-05,
    ],
)

# (log(1 + f) - f + f^2 / 2) / f^3 on |f| <= 1/3: degree 7, log to 2^-27.6; degree 18, log to 2^-56.6
LOG_TAIL = polynomial(
    [
        0.33333215982853215,
        -0.24999797673352306,
        0.20010405900921688,
        -0.16680487332328361,
        0.14005869249431424,
        -0.1218426093749352,
        0.13984435724105376,
        -0.1289168676082827,
    ],
    [
        0.3333333333333323,
        -0.25000000000013334,
        0.20000000000054693,
        -0.16666666662931892,
        0.142857142765352,
        -0.12500000388858262,
        0.11111111840324718,
        -0.09999979302977748,
        0.09090876597121816,
        -0.08333971919469202,
        0.07693188841980954,
        -0.07130796791551952,
        0.06651602210969546,
        -0.06390851948992081,
        0.06044751622231587,
        -0.045737882862354994,
        0.042043091030102286,
        -0.08624275657122792,
        0.08448936581127721,
    ],
)

# --- exp and what is made of it -----------------------------------------------------------------------------------


@device
def reduce_exp(x):
    """``n, expm1(r)`` with x = n ln 2 + r, |r| <= ln(2) / 2; n is an integer vector."""
    shifted = muladd(x, LOG2_E(x), ROUND(x))
    n = shifted - ROUND(x)
    r = muladd(n, -LN2_LOW(x), muladd(n, -LN2_HIGH(x), x))
    return as_integers(shifted) - ROUND_BITS(x), muladd(r * r, EXP_TAIL(r), r)


@device
def exp(x):
    """e^x: 2^n (1 + expm1(r)).  At most 1.01 ulp in float32, 1.0 in float64."""
    x = select(x > EXP_TOP(x), EXP_TOP(x), x)
    x = select(x < EXP_BOTTOM(x), EXP_BOTTOM(x), x)
    n, p = reduce_exp(x)
    # 2^n alone may be out of range where the result is not, so it is applied in halves; the second product rounds
    # a subnormal result once.
    n = n + (BIAS(x) + BIAS(x))
    half = n >> 1
    return (1.0 + p) * as_floats(half << MANTISSA(x)) * as_floats((n - half) << MANTISSA(x))


@device
def sigmoid(x):
    """1 / (1 + e^-x), as e / (1 + e) for x < 0, with e = e^-|x|: never overflows.

    At most 1.97 ulp in float32, 1.7 in float64.
    """
    e = exp(-absolute(x))
    d = 1.0 + e
    lost = e - (d - 1.0)  # by rounding d: costs 0.8 ulp if it is not made good
    y = select(x < 0.0, e, 1.0) / d
    reciprocal = select(x < 0.0, 1.0 - y, y)  # of d, near enough
    return muladd(y * reciprocal, -lost, y)


@device
def tanh(x):
    """x + x^3 P(x^2) for |x| < 0.55, else 1 - 2 / (e^(2 |x|) + 1), odd: what is rounded is small beside the result.

    At most 1.47 ulp in float32, 1.4 in float64.
    """
    z = absolute(x)
    z = select(z > TANH_TOP(x), TANH_TOP(x), z)
    square = z * z
    small = muladd(z * square, TANH_TAIL(square), z)
    n, p = reduce_exp(z + z)
    power = as_floats((n + BIAS(x)) << MANTISSA(x))
    large = 1.0 - 2.0 / muladd(power, 1.0 + p, 1.0)
    return copysign(select(z < 0.55, small, large), x)


# --- division by a root -------------------------------------------------------------------------------------------


@device
def divide_by_root(m, v, epsilon):
    """m / (sqrt(v) + epsilon) for finite m and v >= 0, as Adam needs it.  At most 2.21 ulp, as with correctly
    rounded operations: three roundings follow each other.

    Where the CPU has estimates of 14 bits, one step of Newton's iteration each makes the root and the quotient of them:
    8 multiply-adds instead of a square root and a division (AVX-512, data in the second-level cache: 5.4 ns a vector,
    all of Adam included, instead of 6.6).
    """
    if not estimates(v):
        return m / (sqrt(v) + epsilon)
    y = estimate_root(select(v < SMALLEST_NORMAL(v), SMALLEST_NORMAL(v), v))
    root = v * y
    root = muladd(muladd(-root, root, v), 0.5 * y, root)
    d = root + epsilon
    q = estimate_reciprocal(d)
    q = muladd(q, muladd(-d, q, 1.0), q)
    t = m * q
    return muladd(muladd(-d, t, m), q, t)


# --- log and what is made of it -----------------------------------------------------------------------------------


@device
def exponent(x):
    """k such that x / 2^k is in [2/3, 4/3)."""
    return (as_integers(x) - TWO_THIRDS_BITS(x)) >> MANTISSA(x)


@device
def log_reduced(k, f):
    """``k ln 2 + log(1 + f)`` for an integral k and |f| <= 1/3, the small terms first."""
    square = f * f
    tail = muladd(f * square, LOG_TAIL(f), k * LN2_LOW(f))
    return muladd(k, LN2_HIGH(f), f - muladd(square, 0.5, -tail))


@device
def integral(k):
    """An integer vector of small numbers as floats."""
    like = as_floats(k)
    return as_floats(k + ROUND_BITS(like)) - ROUND(like)


@device
def log(x):
    """Natural logarithm: k ln 2 + log(1 + f), f = x / 2^k - 1 in [-1/3, 1/3).

    At most 0.86 ulp in float32, 0.8 in float64.
    """
    tiny = x < SMALLEST_NORMAL(x)
    y = select(tiny, x * RAISE(x), x)
    k = exponent(y)
    f = as_floats(as_integers(y) - (k << MANTISSA(x))) - 1.0
    result = log_reduced(integral(k) - select(tiny, RAISED(x), 0.0), f)
    result = select(x < INFINITY, result, x)
    return select(x > 0.0, result, select(x == 0.0, -INFINITY, x * NAN))


@device
def log1p(x):
    """log(1 + x): what rounding 1 + x to u loses is added to f, which is x itself where x is small.

    Reduced and evaluated as in `log`.  At most 1.59 ulp in float32, 1.51 in float64.
    """
    u = 1.0 + x
    v = u - 1.0
    lost = (1.0 - (u - v)) + (x - v)
    k = exponent(u)
    shift = k << MANTISSA(x)
    f = as_floats(as_integers(u) - shift) - 1.0
    scale = as_floats((BIAS(x) << MANTISSA(x)) - shift)  # 2^-k
    f = select(x > LARGE(x), f, muladd(lost, scale, f))
    result = copysign(log_reduced(integral(k), f), x)
    result = select(x < INFINITY, result, x)
    return select(x > -1.0, result, select(x == -1.0, -INFINITY, x * NAN))


@device
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|): never overflows.

    At most 1.88 ulp in float32, 1.71 in float64.
    """
    return select(x > 0.0, x, 0.0) + log1p(exp(-absolute(x)))
