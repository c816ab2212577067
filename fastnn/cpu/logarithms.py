"""Logarithms on SIMD vectors of float32 or float64, built like `fastnn.cpu.vmath`."""

import math

from fastnn.cpu.jit import device
from fastnn.cpu.simd import (
    absolute,
    as_floats,
    as_integers,
    constant,
    copysign,
    exponent,
    fraction,
    has_exponents,
    muladd,
    polynomial,
    scale,
    select,
    table,
)
from fastnn.cpu.vmath import (
    BIAS,
    LN2_HIGH,
    LN2_LOW,
    MANTISSA,
    ROUND,
    ROUND_BITS,
    SMALLEST_NORMAL,
    exp_below_top,
)

INFINITY = float("inf")
NAN = float("nan")

LN2 = constant(0.6931471805599453, 0.6931471805599453)

# Scaling that makes a subnormal normal, and what it adds to the exponent.
RAISE = constant(2.0**24, 2.0**54)
RAISED = constant(24.0, 54.0)

TWO_THIRDS_BITS = constant(0x3F2AAAAB, 0x3FE5555555555555)
LARGE = constant(2.0**30, 2.0**60)  # 1 + x == x, with room to spare

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

# (log(1 + r) - r) / r^2 on -1/32 <= r <= 1/16: degree 3, log to 2^-28.4; degree 8, log to 2^-56.6
LOG_NEAR_ONE = polynomial(
    [-0.5000000095151165, 0.33334446897718906, -0.25006670020729443, 0.1885523066817621],
    [
        -0.5000000000000002,
        0.3333333333334755,
        -0.24999999999860986,
        0.19999999927800466,
        -0.16666666160068583,
        0.1428581984192193,
        -0.12501869671547036,
        0.11071431261538325,
        -0.08745035456430048,
    ],
)

# 1 / c in units of 2^-22, c about the middle of each interval, but 1 where x is next to 1 (there nothing may be lost).
# They are chosen such that log(c) is within 1/32 ulp of a float32 and 1/64 ulp of a float64.
LOG_INTERVALS = constant(23 - 4, 52 - 4)  # the first four bits of a fraction tell its interval
INVERSES = [
    *(4194304, 3834415, 3626467, 3441320, 3273759, 3120734, 2982576, 2855068),  # c from 1 to 3/2
    *(5478817, 5262925, 5065776, 4880622, 4709572, 4549218, 4400272, 4194304),  # c from 3/4 to 1
]
LOG1P_INVERSES = [  # c = 1 + j / 15
    *(4194304, 3932491, 3701028, 3495403, 3311537, 3145975, 2995600, 2859898),
    *(2735423, 2621386, 2516229, 2420095, 2330500, 2247070, 2169370, 2114819),
]


def inverses_and_logs(units):
    inverses = [i / 2**22 for i in units]
    logs = [0.0 - math.log(inverse) for inverse in inverses]
    return table(inverses, inverses), table(logs, logs)


INVERSE, LOG_AT = inverses_and_logs(INVERSES)
LOG1P_INVERSE, LOG1P_AT = inverses_and_logs(LOG1P_INVERSES)


@device
def exponent_bits(x):
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
def log_near_one(r):
    """log(1 + r) for -1/32 <= r <= 1/16."""
    return muladd(r * r, LOG_NEAR_ONE(r), r)


@device
def log(x):
    """Natural logarithm: k ln 2 + log(m), m = x / 2^k.

    With AVX-512 m is in [3/4, 3/2) and log(m) = log(c) + log(1 + r), c from a table of 16; infinity and what has no
    logarithm need no care.  Else m = 1 + f, f in [-1/3, 1/3).
    At most 1.02 ulp in float32, 1.16 in float64.
    """
    if has_exponents(x):
        m = fraction(x)
        j = as_integers(m) >> LOG_INTERVALS(x)
        near = log_near_one(muladd(m, INVERSE(j), -1.0))
        return muladd(exponent(x) - exponent(m), LN2(x), LOG_AT(j) + near)
    tiny = x < SMALLEST_NORMAL(x)
    y = select(tiny, x * RAISE(x), x)
    k = exponent_bits(y)
    f = as_floats(as_integers(y) - (k << MANTISSA(x))) - 1.0
    result = log_reduced(integral(k) - select(tiny, RAISED(x), 0.0), f)
    result = select(x < INFINITY, result, x)
    return select(x > 0.0, result, select(x == 0.0, -INFINITY, x * NAN))


@device
def log1p(x):
    """log(1 + x): what rounding 1 + x to u loses is added to f, which is x itself where x is small.

    Reduced and evaluated as in `log`.  At most 1.58 ulp in float32, 1.49 in float64.
    """
    u = 1.0 + x
    v = u - 1.0
    lost = (1.0 - (u - v)) + (x - v)
    if has_exponents(x):
        m = fraction(u)
        k = exponent(u) - exponent(m)
        j = as_integers(m) >> LOG_INTERVALS(x)
        r = muladd(scale(lost, -k), INVERSE(j), muladd(m, INVERSE(j), -1.0))
        result = copysign(muladd(k, LN2(x), LOG_AT(j) + log_near_one(r)), x)
    else:
        k = exponent_bits(u)
        shift = k << MANTISSA(x)
        f = as_floats(as_integers(u) - shift) - 1.0
        f = select(x > LARGE(x), f, muladd(lost, as_floats((BIAS(x) << MANTISSA(x)) - shift), f))
        result = copysign(log_reduced(integral(k), f), x)
    result = select(x < INFINITY, result, x)
    return select(x > -1.0, result, select(x == -1.0, -INFINITY, x * NAN))


@device
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e), e = e^-|x|: never overflows.

    At most 1.88 ulp in float32, 1.66 in float64.
    """
    return select(x > 0.0, x, 0.0) + log1p_unit(exp_below_top(-absolute(x)))


@device
def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1."""
    if not has_exponents(e):
        return log1p(e)
    j = as_integers(muladd(e, 15.0, ROUND(e)))
    c = LOG1P_INVERSE(j)
    return LOG1P_AT(j) + log_near_one(muladd(e, c, c - 1.0))
