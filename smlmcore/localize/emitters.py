"""What the ways to localize have found in some frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..psf.base import PSF


@dataclass
class Emitters:
    """Emitters sorted by frame: `theta`, `errors` (n, p) in the order of the PSF's names, and what is known of each."""

    frame: np.ndarray
    theta: np.ndarray
    errors: np.ndarray
    status: np.ndarray
    log_likelihood: np.ndarray
    chi2: np.ndarray
    snr: np.ndarray
    crowded: np.ndarray  # others are near, or were fitted together with it

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, index: np.ndarray) -> Emitters:
        """Some of them, by number or mask."""
        index = np.flatnonzero(index) if index.dtype == bool else index
        return Emitters(*(getattr(self, name).take(index, 0) for name in self.__dataclass_fields__))

    def put(self, index: np.ndarray, rows: Emitters) -> None:
        """Put `rows` in the place of those of the numbers `index`."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[index] = getattr(rows, name)

    def join(self, other: Emitters) -> Emitters:
        """Both, sorted by frame."""
        both = Emitters(*(np.concatenate([getattr(s, n) for s in (self, other)]) for n in self.__dataclass_fields__))
        return both.rows(np.argsort(both.frame, kind="stable"))


def as_table(found: Emitters | None, psf: PSF) -> np.ndarray:
    """Emitters as a table with the field's names, sorted by frame, y and x."""
    names = {"z": "z", "sigma": "sigma_x"}
    errors = {"x": "lpx", "y": "lpy", "z": "lpz"}
    columns = ["frame", *(names.get(n, n) for n in psf.names)]
    columns += ["sigma_y"] if "sigma" in psf.names else []
    columns += [errors.get(n, f"{n}_error") for n in psf.names]
    columns += ["log_likelihood", "chi2", "snr", "status", "crowded"]
    kinds = {"frame": np.uint32, "status": np.int8, "crowded": np.int8}
    table = np.empty(0 if found is None else len(found), [(n, kinds.get(n, np.float32)) for n in columns])
    if found is None:
        return table
    for name, values, error in zip(psf.names, found.theta.T, found.errors.T, strict=True):
        table[names.get(name, name)] = values
        table[errors.get(name, f"{name}_error")] = error
    if "sigma" in psf.names:
        table["sigma_y"] = table["sigma_x"]
    for name in ("frame", "log_likelihood", "chi2", "snr", "status", "crowded"):
        table[name] = getattr(found, name)
    # NumPy takes whole rows far faster if it need not know what is in them
    return table.view(f"V{table.itemsize}").take(_order(table)).view(table.dtype)


def _order(table: np.ndarray) -> np.ndarray:
    """What `np.lexsort` by frame, y and x gives, from one key; x is asked only where frame and y are the same."""
    y = np.where(np.isnan(table["y"]), np.float32(np.nan), table["y"] + np.float32(0)).view(np.int32)
    # as integers, positive numbers are sorted already, and NaN comes last; those below 0 have their other bits flipped
    key = (table["frame"].astype(np.int64) << 32) + (y ^ (y >> 31 & 0x7FFFFFFF))
    order = np.argsort(key, kind="stable")
    key = key[order]
    tied = np.flatnonzero(key[1:] == key[:-1])
    tied = np.union1d(tied, tied + 1)
    order[tied] = order[tied][np.lexsort((table["x"][order[tied]], key[tied]))]
    return order
