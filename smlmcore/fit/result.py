"""What every fit returns: parameters with their errors, and how each fit ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np

from .. import backend


class Status(IntEnum):
    """How a fit ended.  Nothing that is not finite is ever `converged`."""

    converged = 0
    max_iterations = 1
    at_bound = 2
    singular = 3
    invalid_input = 4


LATER = ("log_likelihood", "chi2")


@dataclass(frozen=True)
class Result:
    """Fitted `parameters` (n, p) in the order of `names`, also as attributes: `result.x`, `result.photons`, ...

    `errors` (n, p): standard errors at the Cramér–Rao bound, NaN for a parameter that is fixed or at its bound and for
    a failed fit; `status` (n,) int8 values of `Status`; `iterations` (n,); `log_likelihood` (n,) in nats;
    `chi2` (n,), the sum of (data - mu)^2 / (mu + v) over the pixels.  `emitters` (n,), only after a fit of several
    emitters: how many there are in each image; the columns of those that are not there are NaN.
    """

    names: tuple[str, ...]
    parameters: Any
    errors: Any
    status: Any
    iterations: Any
    log_likelihood: Any
    chi2: Any
    emitters: Any = None
    measure: InitVar[Callable[[], tuple[Any, Any]] | None] = None

    def __post_init__(self, measure: Callable[[], tuple[Any, Any]] | None) -> None:
        if measure is not None:
            for name in LATER:
                object.__delattr__(self, name)
            object.__setattr__(self, "_measure", measure)

    def __getattr__(self, name: str) -> Any:
        if name in LATER and "_measure" in self.__dict__:
            for field, values in zip(LATER, self.__dict__.pop("_measure")(), strict=True):
                object.__setattr__(self, field, values)
            return getattr(self, name)
        if name in object.__getattribute__(self, "names"):
            return self.parameters[:, self.names.index(name)]
        raise AttributeError(f"fit.Result has no {name!r}; its parameters are {', '.join(self.names)}")

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # a pickle or copy is without the spots

    def __len__(self) -> int:
        return len(self.parameters)

    def to_cpu(self) -> Result:
        """The same result in NumPy arrays."""
        values = (getattr(self, f.name) for f in fields(self)[1:])
        return Result(self.names, *(None if v is None else backend.to_cpu(v) for v in values))

    def table(self) -> np.ndarray:
        """One row for each fit, in the order of the spots, as a structured array in the computer's memory.

        Fields: the parameters by name, their standard errors as NAME_error, status, iterations, log_likelihood, chi2,
        and emitters where several were fitted.

        >>> one = np.ones((2, 1))
        >>> Result(("x",), one, one / 8, *np.zeros((4, 2), int)).table()["x_error"]
        array([0.125, 0.125])
        """
        here = self.to_cpu()
        columns = dict(zip(here.names, here.parameters.T, strict=True))
        columns |= {f"{name}_error": e for name, e in zip(here.names, here.errors.T, strict=True)}
        columns |= {f.name: v for f in fields(self)[3:] if (v := getattr(here, f.name)) is not None}
        table = np.empty(len(self), [(name, values.dtype) for name, values in columns.items()])
        for name, values in columns.items():
            table[name] = values
        return table
