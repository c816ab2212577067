"""The normal distribution on SIMD vectors: gelu, its derivative and erf, built like `fastnn.cpu.vmath`.

All come from one function that has no cancellation, however far out: for z >= 0

    Phi(-z) = e^(-z^2 / 2) R(z),    R(z) = H(t) / (z + k),    t = (z - k) / (z + k) = 1 - 2 k / (z + k),

where H, which varies by a factor of ten, is a polynomial in t.
"""

from fastnn.cpu.jit import device
from fastnn.cpu.simd import absolute, as_floats, as_integers, constant, copysign, is_fused, muladd, polynomial, select
from fastnn.cpu.vmath import EXP_TAIL, reduce_exp, scaled

Z_TOP = constant(15.0, 39.0)  # Phi(-z) of more is 0
K = constant(3.0, 4.0)
HIGH_HALF = constant(-(1 << 12), -(1 << 27))  # the bits of the first half of a mantissa, and the exponent
ROOT_HALF = constant(0.7071067811865476, 0.7071067811865476)
DENSITY_AT_ZERO = constant(0.3989422804014327, 0.3989422804014327)  # 1 / sqrt(2 pi)

# H(t) with k = 3, t <= (14.5 - k) / (14.5 + k): degree 10, to 2^-30.0; with k = 4, t <= (38.7 - k) / (38.7 + k): degree
# 23, to 2^-59.4
MILLS = polynomial(
    [
        0.7290836903699819,
        -0.5093319914063373,
        0.23001769995739338,
        -0.0472626876185756,
        -0.010462520353301967,
        0.0069693023633950295,
        0.0010247840194545367,
        -0.0010325243093767496,
        -0.00024475466303266097,
        0.00013125404412658281,
        5.4455143150344205e-05,
    ],
    [
        0.7552851304157515,
        -0.6078966419718921,
        0.3871374007422148,
        -0.18652185795965856,
        0.060396574890920374,
        -0.007540188966685326,
        -0.0034796923670362048,
        0.0016308184570101875,
        0.00013334430833819238,
        -0.00023109493093175933,
        -1.9082312390264034e-06,
        3.514466878078507e-05,
        7.165519228882399e-07,
        -5.920136110805087e-06,
        -6.293859818458335e-07,
        1.021528923758242e-06,
        2.7125961108345146e-07,
        -1.5502874163297983e-07,
        -8.481155247050665e-08,
        1.3447647826687663e-08,
        1.9248435753527436e-08,
        1.7647113750465083e-09,
        -2.422030115518491e-09,
        -6.736987962419072e-10,
    ],
)

# erf(x) / x in x^2, |x| <= 1: degree 6, to 2^-29.6; degree 11, to 2^-56.9
ERF_NEAR_ZERO = polynomial(
    [
        1.1283791657267548,
        -0.3761262582452654,
        0.1128358515198767,
        -0.02685381207328159,
        0.0051883279321188235,
        -0.0008010195606205847,
        7.853867235357119e-05,
    ],
    [
        1.1283791670955126,
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
def reciprocal_sum(z, k):
    """``high, low`` of 1 / (z + k)."""
    d = z + k
    high = 1.0 / d
    if is_fused(z):
        return high, high * muladd(-high, z, muladd(-high, k, 1.0))
    part = d - z
    lost = (z - (d - part)) + (k - part)  # by rounding d
    one, rest = product(high, d)
    return high, high * ((1.0 - one) - rest - high * lost)


@device
def density(z):
    """``n, p`` with e^(-z^2 / 2) = 2^n (1 + p)."""
    square, lost = product(z, 0.5 * z)
    n, r = reduce_exp(-square)
    r = r - lost
    return n, muladd(r * r, EXP_TAIL(r), r)


@device
def mills(z):
    """``v, low, h`` with R(z) = (v + low) h."""
    k = K(z)
    v, low = reciprocal_sum(z, k)
    t = muladd(low, -2.0 * k, muladd(v, -2.0 * k, 1.0))
    return v, low, MILLS(t)


@device
def gelu(x):
    """x Phi(x) = max(x, 0) - z Phi(-z), z = |x|; every rounding but those of H, p and the sum is made good.

    At most UNMEASURED ulp in float32, UNMEASURED in float64.
    """
    z = absolute(x)
    top = select(z > Z_TOP(x), Z_TOP(x), z)
    n, p = density(top)
    v, v_low, h = mills(top)
    w, w_low = product(top, v)
    y, y_low = product(w, h)
    y_low = muladd(muladd(top, v_low, w_low), h, y_low)
    tail = scaled(y + muladd(y, p, y_low), n)
    return copysign(select(x > 0.0, z - tail, tail), x)


@device
def gelu_derivative(x):
    """Phi(x) + x phi(x): q = Phi(-z) - z phi(z) for x < 0, else 1 - q.

    Its zero near -0.7518 costs relative accuracy: at most UNMEASURED ulp of max(|y|, 1/2) in float32, UNMEASURED in float64.
    """
    z = absolute(x)
    z = select(z > Z_TOP(x), Z_TOP(x), z)
    n, p = density(z)
    v, v_low, h = mills(z)
    y = muladd(v, h, muladd(v_low, h, z * -DENSITY_AT_ZERO(x)))
    q = scaled(muladd(y, p, y), n)
    return select(x > 0.0, 1.0 - q, q)


@device
def erf(x):
    """The error function: x P(x^2) for |x| < 1, else 1 - 2 Phi(-sqrt(2) |x|), odd.

    At most UNMEASURED ulp in float32, UNMEASURED in float64.
    """
    a = absolute(x)
    near = select(a > 1.0, 1.0, a)
    far = select(a > 6.0, 6.0, a)
    n, r = reduce_exp(-far * far)
    p = muladd(r * r, EXP_TAIL(r), r)
    v, _, h = mills(far / ROOT_HALF(x))
    tail = scaled((v * h) * (1.0 + p), n)
    return copysign(select(a < 1.0, near * ERF_NEAR_ZERO(near * near), 1.0 - (tail + tail)), x)
