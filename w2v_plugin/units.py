"""Codes -> discrete units: one number for each 20 ms frame, runs of equal ones, and their bitrate.

A product quantizer gives one code of each group. A unit is the code of one group or the *joint*
code, the tuple of all groups as one number: with V codes a group, z0 * V + z1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from w2v_plugin.frames import HOP, RECEPTIVE_FIELD, SAMPLE_RATE

FRAMES_PER_S = SAMPLE_RATE // HOP


def select_group(codes: np.ndarray, sizes: Sequence[int], group: int | None = None) -> np.ndarray:
    """Units from codes.

    Parameters
    ----------
    codes : ndarray
        (frames, groups) int.
    sizes : sequence of int
        How many codes each group has.
    group : int, optional
        One group; None for the joint code.

    Returns
    -------
    ndarray
        (frames,) int64.

    Raises
    ------
    ValueError
        No such group.

    Example
    -------
    >>> codes = np.array([[0, 3], [2, 1]])
    >>> select_group(codes, (5, 5)).tolist(), select_group(codes, (5, 5), 1).tolist()
    ([3, 11], [3, 1])
    """
    check_group(sizes, group)
    if group is None:
        return np.ravel_multi_index(tuple(codes.T), tuple(sizes)).astype(np.int64)
    return codes[:, group].astype(np.int64)


def check_group(sizes: Sequence[int], group: int | None) -> None:
    """ValueError if there is no such group; None, for the joint code, is one."""
    if group is not None and not 0 <= group < len(sizes):
        raise ValueError(
            f"group={group}, but there are {len(sizes)} groups of codes. Expected 0 to "
            f"{len(sizes) - 1}, or the joint code."
        )


def to_seconds(frames: int) -> float:
    """Audio that so many frames hear.

    Example
    -------
    >>> to_seconds(49)
    0.985
    """
    return ((frames - 1) * HOP + RECEPTIVE_FIELD) / SAMPLE_RATE


def runs(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal neighbors as one: units, and how many frames each lasts.

    Example
    -------
    >>> [x.tolist() for x in runs(np.array([7, 7, 7, 2, 7]))]
    [[7, 2, 7], [3, 1, 1]]
    """
    begins = np.flatnonzero(np.diff(units, prepend=-1))
    return units[begins], np.diff(begins, append=len(units))


def entropy(counts: Sequence[int] | np.ndarray) -> float:
    """In bits, of how often each outcome was seen; 0 if nothing was.

    Example
    -------
    >>> entropy([1, 1, 2])
    1.5
    """
    seen = np.array([count for count in counts if count > 0], dtype=np.float64)
    shares = seen / max(seen.sum(), 1.0)
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0


class UnitCounts:
    """How often units occur, for bitrate and usage.

    Bitrates are entropies of single units times units per second, as in the ZeroSpeech challenges
    (Dunbar et al. 2019): of all frames, and with runs as one unit, whose lengths are then *not*
    transmitted. Surprising: n frames cannot show more than log2(n) bits, so that a few minutes
    underestimate the bitrate of a large joint code.

    Parameters
    ----------
    sizes : sequence of int
        Codes of each group that makes up the units; one number for units of a single group.

    Example
    -------
    >>> counts = UnitCounts([2, 2])
    >>> counts.add(np.array([0, 0, 3, 3]))
    >>> counts.bitrate, counts.run_bitrate, counts.used
    (50.0, 25.0, 2)
    >>> print(counts)
    group 0: 2 of 2 codes used, perplexity 2.0
    group 1: 2 of 2 codes used, perplexity 2.0
    units: 2 of 4 used in 4 frames; 50/s x 1.00 bit = 50 bit/s, runs as one 25.0/s x 1.00 bit = \
25 bit/s
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.frames: Counter[int] = Counter()
        self.runs: Counter[int] = Counter()

    def add(self, units: np.ndarray) -> None:
        """Count those of an utterance, (frames,) int; ValueError if there is no such unit."""
        if len(units) and not 0 <= units.min() <= units.max() < math.prod(self.sizes):
            raise ValueError(
                f"units {units.min()} to {units.max()}, expected 0 to {math.prod(self.sizes) - 1}."
            )
        self.frames.update(units.tolist())
        self.runs.update(runs(units)[0].tolist())

    @property
    def used(self) -> int:
        """Units that occur."""
        return len(self.frames)

    @property
    def seconds(self) -> float:
        """Of audio, 20 ms a frame."""
        return self.frames.total() / FRAMES_PER_S

    @property
    def bitrate(self) -> float:
        """Bits per second, a unit every 20 ms."""
        return FRAMES_PER_S * entropy([*self.frames.values()])

    @property
    def run_bitrate(self) -> float:
        """Bits per second, equal neighbors as one unit."""
        return self._runs_per_s * entropy([*self.runs.values()])

    def group(self, number: int) -> np.ndarray:
        """(sizes[number],) frames that have each code of a group."""
        units = np.array([*self.frames.keys()], dtype=np.int64)
        codes = np.unravel_index(units, self.sizes)[number]
        weights = np.array([*self.frames.values()], dtype=np.int64)
        counts = np.zeros(self.sizes[number], dtype=np.int64)
        np.add.at(counts, codes, weights)
        return counts

    @property
    def _runs_per_s(self) -> float:
        return self.runs.total() / max(self.seconds, 1 / FRAMES_PER_S)

    def __str__(self) -> str:
        lines = []
        if len(self.sizes) > 1:
            for number, size in enumerate(self.sizes):
                counts = self.group(number)
                lines.append(
                    f"group {number}: {np.count_nonzero(counts)} of {size} codes used, "
                    f"perplexity {2 ** entropy(counts):.1f}"
                )
        lines.append(
            f"units: {self.used} of {math.prod(self.sizes)} used in {self.frames.total()} frames; "
            f"{FRAMES_PER_S}/s x {entropy([*self.frames.values()]):.2f} bit = "
            f"{self.bitrate:.0f} bit/s, runs as one {self._runs_per_s:.1f}/s x "
            f"{entropy([*self.runs.values()]):.2f} bit = {self.run_bitrate:.0f} bit/s"
        )
        return "\n".join(lines)
