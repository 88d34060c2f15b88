"""What all bodies of the B-spline kernels share: the modes by number, and the poles of the filters."""

from math import sqrt

MODES = ("mirror", "reflect", "periodic", "zero", "constant")
MIRROR, REFLECT, PERIODIC, ZERO, CONSTANT = range(5)
LIMIT = 2.0**30  # coordinates beyond are no numbers: an int32 holds the index of the others
POLES = {  # roots within the unit circle of sum B(k) z^k (Unser, Aldroubi & Eden 1993)
    2: (sqrt(8) - 3,),
    3: (sqrt(3) - 2,),
    4: (
        sqrt(664 - sqrt(438976)) + sqrt(304) - 19,
        sqrt(664 + sqrt(438976)) - sqrt(304) - 19,
    ),
    5: (
        sqrt(67.5 - sqrt(4436.25)) + sqrt(26.25) - 6.5,
        sqrt(67.5 + sqrt(4436.25)) - sqrt(26.25) - 6.5,
    ),
}
# the B-spline at 0, 1 and 2
MIDDLE = {2: (3 / 4, 1 / 8, 0), 3: (2 / 3, 1 / 6, 0), 4: (115 / 192, 19 / 96, 1 / 384), 5: (11 / 20, 13 / 60, 1 / 120)}
