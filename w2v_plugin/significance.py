"""How sure are error rates, and is one system better than another?

Two questions, two answers. Intervals come from the bootstrap: what other utterances, or other
speakers, might have brought (Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR
performance evaluation", ICASSP 2004). Systems are drawn together, so a difference is known better
than the rates. The p-value is that of the matched-pairs test on segments (MAPSSWE; Gillick and
Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989),
with segments cut as NIST's scoring tools cut them.

Utterances of one speaker are alike: an interval that draws speakers is the honest one for "how
good on people never heard", and it is wider.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

import numpy as np

from w2v_plugin.scoring import Alignment
from w2v_plugin.verification import interval

Array = np.ndarray
GOOD = 2  # words that both systems have right, one after the other, part two segments
FEWEST = 30  # segments for which a mean is about normally distributed


def resampled_rates(counts: Array, repeats: int = 1000, seed: int = 0) -> Array:
    """Error rates of test sets that might have been drawn instead.

    Parameters
    ----------
    counts : ndarray
        (systems, units, 2): errors, and length of the reference. A unit is what is drawn as a
        whole: an utterance, or a speaker (see `by_group`).
    repeats : int
        Number of draws.
    seed : int
        The same seed, the same draws.

    Returns
    -------
    ndarray
        (draws, systems) percent. Draws whose references are all empty are left out.

    Example
    -------
    >>> resampled_rates(np.array([[[1, 4], [2, 8]]]), repeats=2).tolist()
    [[25.0], [25.0]]
    """
    generator, units = np.random.default_rng(seed), counts.shape[1]
    even = np.full(units, 1 / units)
    draws = (generator.multinomial(units, even) for _ in range(repeats))
    sums = np.stack([np.einsum("sue,u->se", counts, drawn) for drawn in draws])
    sums = sums[(sums[..., 1] > 0).all(1)]
    return 100 * sums[..., 0] / sums[..., 1]


def by_group(counts: Array, groups: Sequence[str]) -> Array:
    """(systems, utterances, 2) -> (systems, groups, 2): added up by speaker.

    Example
    -------
    >>> by_group(np.array([[[1, 4], [2, 8], [0, 3]]]), ["a", "b", "a"]).tolist()
    [[[1, 7], [2, 8]]]
    """
    _, index = np.unique(groups, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    return np.add.reduceat(counts[:, order], starts, axis=1)


def intervals(
    counts: Array, speakers: Sequence[str], repeats: int = 1000, seed: int = 0
) -> dict[str, Array | None]:
    """Draws for the two kinds of interval.

    Parameters
    ----------
    counts : ndarray
        (systems, utterances, 2), see `resampled_rates`.
    speakers : sequence of str
        (utterances,); "" where one is not known.
    repeats, seed : int
        See `resampled_rates`.

    Returns
    -------
    dict
        By the suffix of what is reported: "95" draws utterances, "95_speakers" speakers; None
        where there is nothing to draw from, which needs two, all of them known.

    Example
    -------
    >>> draws = intervals(np.array([[[1, 4], [2, 8]]]), ["a", "a"], repeats=10)
    >>> draws["95"].shape, draws["95_speakers"]
    ((10, 1), None)
    """
    grouped = by_group(counts, speakers)
    known = grouped.shape[1] > 1 and "" not in speakers
    return {
        "95": resampled_rates(counts, repeats, seed) if counts.shape[1] > 1 else None,
        "95_speakers": resampled_rates(grouped, repeats, seed) if known else None,
    }


def ends(draws: Array | None) -> list[float] | None:
    """The interval of 95 %, rounded as it is reported; None where nothing could be drawn.

    Example
    -------
    >>> ends(np.arange(101.0)), ends(None)
    ([2.5, 97.5], None)
    """
    if draws is None or not len(draws):
        return None
    return [round(end, 3) for end in interval(draws)]


def segments(first: Alignment, second: Alignment, good: float = GOOD) -> Iterator[tuple[int, int]]:
    """Errors of both systems in stretches of an utterance that do not touch each other.

    A stretch ends where both systems have enough words right one after the other, and with the
    utterance; those without any error are none.

    Parameters
    ----------
    first, second : Alignment
        With the same reference.
    good : float
        Words that are enough; infinity for whole utterances.

    Yields
    ------
    tuple of int
        Errors of the first and of the second system.

    Example
    -------
    >>> from w2v_plugin.scoring import score
    >>> reference = ["a b c d e"]
    >>> one, two = (score(reference, [said]).alignments[0] for said in ("x b c d", "a b c d e f"))
    >>> list(segments(one, two))
    [(1, 0), (1, 1)]
    """
    errors, right = [0, 0], 0
    pairs = zip(_errors_by_place(first), _errors_by_place(second), strict=True)
    for place, wrong in enumerate(pairs):
        if any(wrong):
            errors = [total + new for total, new in zip(errors, wrong, strict=True)]
            right = 0
            continue
        right += place % 2  # words are at odd places
        if right == good and any(errors):
            yield errors[0], errors[1]
            errors = [0, 0]
    if any(errors):
        yield errors[0], errors[1]


def mapsswe(
    first: Sequence[Alignment], second: Sequence[Alignment], good: float = GOOD
) -> tuple[int, float | None]:
    """Could the difference of two systems be chance? The matched-pairs test, on both sides.

    Parameters
    ----------
    first, second : sequence of Alignment
        (utterances,) of two systems, with the same references.
    good : float
        See `segments`.

    Returns
    -------
    tuple
        Number of segments, and p; None where there are fewer than `FEWEST`, for which the normal
        distribution that the test assumes is no good.

    Example
    -------
    >>> from w2v_plugin.scoring import score
    >>> texts = ["a b c"] * 40
    >>> right, wrong = score(texts, texts), score(texts, ["a b"] * 30 + ["a b c d"] * 10)
    >>> mapsswe(right.alignments, right.alignments), mapsswe(right.alignments, wrong.alignments)
    ((0, None), (40, 0.0))
    """
    pairs = chain.from_iterable(map(segments, first, second, repeat(good)))
    differences = np.array([a - b for a, b in pairs], dtype=np.float64)
    n = len(differences)
    if n < FEWEST:
        return n, None
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0:  # the same difference everywhere
        return n, 1.0 if mean == 0 else 0.0
    return n, math.erfc(abs(mean) / spread * math.sqrt(n / 2))


def _errors_by_place(alignment: Alignment) -> list[int]:
    """Insertions before the first word, errors of the first word, insertions after it, …"""
    places = [0]
    for step in alignment:
        if step.reference is None:
            places[-1] += 1
        else:
            places += [int(step.kind != "hit"), 0]
    return places
