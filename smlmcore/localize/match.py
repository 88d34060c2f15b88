"""Pair found localizations with true ones."""

from __future__ import annotations

import numpy as np
import scipy

from .detect import spread


def match(found: np.ndarray, truth: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (i, j) of the pairs found[i], truth[j] of the same frame, at most `radius` pixels apart.

    Each row is used once.  Of all assignments the one with the most pairs, and among these with the least sum of
    squared distances, is taken (Kuhn-Munkres), so errors computed from the pairs hide neither bias nor swaps.
    Both tables need the fields frame, x, y; rows with a NaN stay unpaired.  Pairs are sorted by i.
    Raises `ValueError` for a `radius` that is not positive.

    >>> rows = [("frame", int), ("x", float), ("y", float)]
    >>> match(np.array([(0, 1.0, 1.0), (0, 2.2, 1.0)], rows), np.array([(0, 2.0, 1.0)], rows), radius=1.5)
    (array([1]), array([0]))
    """
    if not 0 < radius < np.inf:
        raise ValueError(f"match got radius {radius}; expected a number of pixels above 0")
    points = [spread(table, radius) for table in (found, truth)]
    rows = [np.flatnonzero(np.isfinite(p).all(1)) for p in points]
    trees = [scipy.spatial.cKDTree(p[r]) for p, r in zip(points, rows, strict=True)]
    near = trees[0].sparse_distance_matrix(trees[1], radius, output_type="ndarray")
    i, j = rows[0][near["i"]], rows[1][near["j"]]
    # Pairs that share no row, directly or through others, are assigned apart: most groups are a single pair.
    n = len(found) + len(truth)
    graph = scipy.sparse.coo_array((np.ones(len(i)), (i, len(found) + j)), (n, n))
    label = scipy.sparse.csgraph.connected_components(graph, directed=False)[1][i]
    order = np.argsort(label, kind="stable")
    i, j, squared = i[order], j[order], near["v"][order] ** 2
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    ends = np.append(starts[1:], len(i))
    keep = np.zeros(len(i), bool)
    keep[starts[ends - starts == 1]] = True
    for a, b in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        left, row = np.unique(i[a:b], return_inverse=True)
        right, column = np.unique(j[a:b], return_inverse=True)
        # A pair too far apart costs more than all allowed ones together, so it is taken only where there is no other.
        cost = np.full((len(left), len(right)), radius**2 * (min(len(left), len(right)) + 1.0))
        cost[row, column] = squared[a:b]
        chosen = np.zeros(cost.shape, bool)
        chosen[scipy.optimize.linear_sum_assignment(cost)] = True
        keep[a:b] = chosen[row, column]
    i, j = i[keep], j[keep]
    order = np.argsort(i)
    return i[order], j[order]
