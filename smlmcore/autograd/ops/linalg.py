"""Products and linear systems, over leading batch axes that broadcast."""

from __future__ import annotations

from ...backend import Array, module
from ..op import op


def _h(a: Array) -> Array:
    """Conjugate transpose of the last two axes."""
    return a.swapaxes(-1, -2).conj()


@op
def matmul(a: Array, b: Array) -> Array:
    """a @ b, as in NumPy: matrices in the last two axes, 1-D arrays are vectors.

    >>> import numpy as np
    >>> matmul(np.ones((2, 3)), np.ones((3, 4))).shape
    (2, 4)
    """
    module(a, b, name="matmul")
    return a @ b, (a, b)


@matmul.vjp
def _(saved: tuple, g: Array) -> tuple:
    a, b = saved
    row, column = a.ndim == 1, b.ndim == 1
    a, b = a[None, :] if row else a, b[:, None] if column else b
    g = g[..., None] if column else g
    g = g[..., None, :] if row else g

    def left() -> Array:
        out = g @ _h(b)
        return out[..., 0, :] if row else out

    def right() -> Array:
        flat = b.ndim == 2  # then one product sums over the batch
        out = _h(a.reshape(-1, a.shape[-1])) @ g.reshape(-1, g.shape[-1]) if flat else _h(a) @ g
        return out[..., 0] if column else out

    return left, right


@op
def solve(a: Array, b: Array) -> Array:
    """x of a x = b for square matrices a (..., n, n); b is (..., n) if it has one axis less than a, else (..., n, m).

    >>> import numpy as np
    >>> solve(np.array([[2.0, 0.0], [0.0, 4.0]]), np.ones(2))
    array([0.5 , 0.25])
    """
    xp = module(a, b, name="solve")
    vector = b.ndim == a.ndim - 1
    x = xp.linalg.solve(a, b[..., None] if vector else b)
    return (x[..., 0] if vector else x), (xp, a, x, vector)


@solve.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, a, x, vector = saved
    gb = xp.linalg.solve(_h(a), g[..., None] if vector else g)
    return lambda: -gb @ _h(x), gb[..., 0] if vector else gb


@op
def einsum(subscripts: str, *operands: Array) -> Array:
    """Einstein sum, such as "nij,nj->ni"; write every index and the arrow, use none twice in one operand.

    >>> import numpy as np
    >>> einsum("ij,j->i", np.ones((2, 3)), np.arange(3.0))
    array([3., 3.])
    """
    left, arrow, target = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(t)) < len(t) for t in terms) or len(terms) != len(operands):
        raise ValueError(
            f"einsum got {subscripts!r} for {len(operands)} operands; write one term for each, all indices and the "
            "arrow, as in 'ij,jk->ik', no ellipsis and no index twice in one term"
        )
    xp = module(*operands, name="einsum")
    return xp.einsum(subscripts, *operands, optimize=len(operands) > 2), (xp, terms, target, operands)


@einsum.vjp
def _(saved: tuple, g: Array) -> tuple:
    xp, terms, target, operands = saved

    def gradient(i: int) -> Array:
        rest = [target, *terms[:i], *terms[i + 1 :]]
        others = [o.conj() for o in (*operands[:i], *operands[i + 1 :])]
        known = set("".join(rest))  # an index of this operand alone was summed: broadcast it back
        kept = "".join(c for c in terms[i] if c in known)
        out = xp.einsum(",".join(rest) + "->" + kept, g, *others)
        shape = [n if c in known else 1 for c, n in zip(terms[i], operands[i].shape, strict=True)]
        return xp.broadcast_to(out.reshape(shape), operands[i].shape)

    return (None, *(lambda i=i: gradient(i) for i in range(len(operands))))
