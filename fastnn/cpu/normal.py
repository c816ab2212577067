"""The normal distribution on SIMD vectors: gelu, its derivative and erf, built like `fastnn.cpu.vmath`.

All come from one function that has no cancellation, however far out: for z >= 0

    Phi(-z) = e^(-z^2 / 2) R(z),    R(z) = H(t) / (z + k),    t = (z - k) / (z + k) = 1 - 2 k / (z + k),

where H, which varies by a factor of three, is a polynomial in t.
"""

from fastnn.cpu.jit import device
from fastnn.cpu.simd import (
    absolute,
    constant,
    copysign,
    is_fused,
    muladd,
    polynomial,
    select,
    splat,
)
from fastnn.cpu.vmath import EXP_TAIL, LN2_HIGH, LN2_LOW, LOG2_E, ROUND, product, reduce_exp, scaled

Z_TOP = constant(15.0, 39.0)  # Phi(-z) of more is 0
K = constant(2.28564453125, 3.46142578125)
ROOT_TWO = constant(1.4142135623730951, 1.4142135623730951)
DENSITY_AT_ZERO = constant(0.3989422804014327, 0.3989422804014327)  # 1 / sqrt(2 pi)

# H(t) = H_0 + t (H_1 + t MILLS(t)) where -1 <= t and z <= 14.5 (float32), 38.7 (float64): degree 11, to 2^-27.9; degree
# 24, to 2^-57.8.  K is such that H_0 is a float to within 1/50 ulp and that t is not below -1 when rounded.
H_0 = constant(0.6938121914863586, 0.7434173050915014)
H_1 = constant(-0.3935714662075043, -0.5617781054489285)
MILLS = polynomial(
    [
        0.08755359053611755,
        0.025720609351992607,
        -0.01170666329562664,
        -0.00519452104344964,
        0.0011591550428420305,
        0.001324893208220601,
        0.00015538668958470225,
        -0.00021580721659120172,
        -9.572500130161643e-05,
        -8.036634426389355e-06,
    ],
    [
        0.3093308218319069,
        -0.11058491240977714,
        0.014620943158298363,
        0.006984045060963674,
        -0.0029281939897809798,
        -0.0005813761153616143,
        0.000447283617477652,
        9.368139305232255e-05,
        -6.941958150646168e-05,
        -2.380234311502727e-05,
        9.592009458023097e-06,
        6.448001724147505e-06,
        -5.641835974075853e-07,
        -1.523406246240158e-06,
        -3.0222833504193324e-07,
        2.5804536595238477e-07,
        1.53742646720133e-07,
        -1.1191181091803766e-08,
        -3.828763277270163e-08,
        -8.79182571194497e-09,
        4.144458426415527e-09,
        2.0949536952073325e-09,
        1.8972966474719337e-10,
    ],
)

# erf(x) / x - 1 in x^2, |x| <= 1: degree 6, erf to 2^-29.6; degree 11, to 2^-56.9
ERF_NEAR_ZERO = polynomial(
    [
        0.12837916572675476,
        -0.3761262582452654,
        0.1128358515198767,
        -0.02685381207328159,
        0.0051883279321188235,
        -0.0008010195606205847,
        7.853867235357119e-05,
    ],
    [
        0.12837916709551256,
        -0.3761263890318352,
        0.11283791670944185,
        -0.02686617064311153,
        0.00522397760611888,
        -0.000854832592932979,
        0.00012055293577272878,
        -1.4924712308029719e-05,
        1.6447131635680484e-06,
        -1.6206314196309946e-07,
        1.3710982108482451e-08,
        -7.779471406957415e-10,
    ],
)


@device
def muladd_pair(a, b, c):
    """``high, low``: a b + c rounded and, closely, what that takes away; |a b| <= 2 |c|."""
    if is_fused(a):
        high = muladd(a, b, c)
        return high, muladd(a, b, c - high)
    whole, rest = product(a, b)
    high = c + whole
    return high, ((c - high) + whole) + rest


@device
def reciprocal_sum(z, k):
    """``high, low`` of 1 / (z + k)."""
    d = z + k
    part = d - z
    lost = (z - (d - part)) + (k - part)  # by rounding d
    high = 1.0 / d
    if is_fused(z):
        return high, high * (muladd(-high, d, 1.0) - high * lost)
    one, rest = product(high, d)
    return high, high * ((1.0 - one) - rest - high * lost)


@device
def density(z):
    """``n, r, s`` with e^(-z^2 / 2) = 2^n (1 + r + s), s small."""
    square, lost = product(z, 0.5 * z)
    n = muladd(-square, LOG2_E(z), ROUND(z)) - ROUND(z)
    high = muladd(n, -LN2_HIGH(z), -square)
    low = muladd(n, LN2_LOW(z), lost)
    r = high - low
    return n, r, muladd(r * r, EXP_TAIL(r), (high - r) - low)


@device
def mills(z):
    """``v, v_low, h, h_low`` with R(z) = (v + v_low) (h + h_low)."""
    k = K(z)
    v, v_low = reciprocal_sum(z, k)
    t, t_low = muladd_pair(v, -2.0 * k, splat(v, 1.0))
    curve = MILLS(t)
    slope = muladd(t, curve, H_1(t))
    h, h_low = muladd_pair(t, slope, H_0(t))
    # H'(t), which t_low is to be multiplied by, is slope + t curve + t^2 MILLS'(t), of which the last is small.
    return v, v_low, h, muladd(muladd(v_low, -2.0 * k, t_low), muladd(t, curve, slope), h_low)


@device
def gelu(x):
    """x Phi(x) = max(x, 0) - z Phi(-z), z = |x|; the roundings of the large terms are made good.

    At most 1.57 ulp in float32, 1.63 in float64.
    """
    z = absolute(x)
    top = select(z > Z_TOP(x), Z_TOP(x), z)
    n, r, s = density(top)
    v, v_low, h, h_low = mills(top)
    y, y_low = product(v, h)
    y_low = muladd(v_low, h, muladd(v, h_low, y_low))
    high, low = muladd_pair(y, r, y)
    low = low + muladd(y, s, muladd(y_low, r + s, y_low))
    tail = scaled(muladd(top, high, top * low), n)  # z last: what rounding takes away from it may be below all floats
    return copysign(select(x > 0.0, z - tail, tail), x)


@device
def gelu_derivative(x):
    """Phi(x) + x phi(x): q = Phi(-z) - z phi(z) for x < 0, else 1 - q.

    Its zero near -0.7518 costs relative accuracy: at most 1.06 ulp of 1 in float32, 1.45 in float64.
    """
    z = absolute(x)
    z = select(z > Z_TOP(x), Z_TOP(x), z)
    n, r, s = density(z)
    v, _, h, _ = mills(z)
    y = muladd(v, h, z * -DENSITY_AT_ZERO(x))
    q = scaled(y + muladd(y, r, y * s), n)
    return select(x > 0.0, 1.0 - q, q)


@device
def erf(x):
    """The error function: x P(x^2) for |x| < 1, else 1 - 2 Phi(-sqrt(2) |x|), odd.

    At most 1.50 ulp in float32, 1.35 in float64.
    """
    a = absolute(x)
    near = select(a > 1.0, 1.0, a)
    far = select(a > 6.0, 6.0, a)
    n, r = reduce_exp(-far * far)
    v, _, h, _ = mills(far * ROOT_TWO(x))
    tail = scaled(v * h * (2.0 + 2.0 * muladd(r * r, EXP_TAIL(r), r)), n)
    return copysign(select(a < 1.0, muladd(near, ERF_NEAR_ZERO(near * near), near), 1.0 - tail), x)
