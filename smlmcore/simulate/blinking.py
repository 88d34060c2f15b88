"""When molecules are lit: a Markov process of dark, bright and bleached, in continuous time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blinking:
    """Rates per frame: dark → bright `on_rate`, bright → dark `off_rate`, bright → bleached `bleach_rate`.

    A molecule emits `photons` a frame while it is bright, times its own log-normal factor of logarithmic standard
    deviation `spread`; a frame in which it is bright for part of the time shows that part.  At frame 0 all are dark, or
    bright with the chance of equilibrium where `equilibrium`.

    >>> Blinking(on_rate=0.01).events(3, 0).next.shape
    (3,)
    """

    on_rate: float = 0.005
    off_rate: float = 0.5
    bleach_rate: float = 0.0
    photons: float = 2000.0
    spread: float = 0.3
    equilibrium: bool = True

    def __post_init__(self) -> None:
        rates = (self.on_rate, self.off_rate, self.bleach_rate, self.spread)
        if not (all(0 <= r < np.inf for r in rates) and 0 < self.photons < np.inf and self.off_rate > 0):
            raise ValueError(f"{self} is not possible; expected rates of 0 or more, off_rate and photons above 0")

    def events(self, molecules: int, seed: int | np.random.Generator) -> Events:
        """The process of `molecules` molecules, from frame 0 on."""
        return Events(self, molecules, np.random.default_rng(seed))


class Events:
    """The running process: `advance` gives what is lit until a frame, and remembers where each molecule is."""

    def __init__(self, law: Blinking, molecules: int, rng: np.random.Generator) -> None:
        self.law, self.rng, self.time = law, rng, 0
        chance = law.on_rate / (law.on_rate + law.off_rate) if law.equilibrium else 0.0
        self.bright = rng.random(molecules) < chance
        self.brightness = law.photons * np.exp(law.spread * rng.standard_normal(molecules))
        self.next = np.empty(molecules)
        self._wait(np.arange(molecules), np.zeros(molecules))

    def _wait(self, which: np.ndarray, since: np.ndarray) -> None:
        """Draw when the molecules `which` leave the state that they entered at `since`."""
        rate = np.where(self.bright[which], self.law.off_rate + self.law.bleach_rate, self.law.on_rate)
        with np.errstate(divide="ignore"):
            self.next[which] = since + self.rng.standard_exponential(len(which)) / rate

    def advance(self, until: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Molecule, frame and expected photons of all that is lit from the last frame to `until` (excluded)."""
        lit = [(np.empty(0, int), np.empty(0), np.empty(0))]
        begin = np.full(len(self.next), float(self.time))
        active = np.arange(len(self.next))
        while len(active):
            end = np.minimum(self.next[active], until)
            shown = self.bright[active] & (end > begin[active])
            lit.append((active[shown], begin[active][shown], end[shown]))
            begin[active] = end
            active = active[self.next[active] < until]
            total = self.law.off_rate + self.law.bleach_rate
            bleached = self.bright[active] & (self.rng.random(len(active)) < self.law.bleach_rate / total)
            self.bright[active] = ~self.bright[active]
            self._wait(active, begin[active])
            self.next[active[bleached]] = np.inf
            active = active[~bleached]
        first = self.time
        self.time = until
        molecule, start, stop = (np.concatenate([part[k] for part in lit]) for k in range(3))
        # one row for every frame that an interval touches
        low = np.minimum(np.floor(start).astype(int), until - 1)
        count = np.maximum(np.ceil(stop).astype(int) - low, 1)
        row = np.repeat(np.arange(len(molecule)), count)
        frame = low[row] + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        part = np.minimum(stop[row], frame + 1) - np.maximum(start[row], frame)
        # a molecule that is lit twice in a frame is one emitter there
        key = (frame - first) * len(self.next) + molecule[row]
        unique, where = np.unique(key, return_inverse=True)
        photons = np.bincount(where, part, len(unique)) if len(unique) else np.zeros(0)
        found = unique % max(len(self.next), 1)
        return found, unique // max(len(self.next), 1) + first, photons * self.brightness[found]
