"""How many labels does a start save? Nested label sets, error curves, labels for equal error.

durations, speakers ─ label_order ─► prefixes: 1 min lies inside 3 min, inside 10 min, …
errors and words of every utterance, by arm, label size and seed
    ─ error_curves ─► error rates ─ labels_needed ─► minutes that another arm takes
          ▲ resampled (utterances and seeds, for intervals)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np

from w2v_plugin.verification import interval

Array = np.ndarray


def label_order(speakers: Sequence[str], seed: int) -> list[int]:
    """An order of utterances whose beginnings hear as many speakers as they can.

    Speakers take turns, in an order that the seed draws anew for every round; each gives its
    utterances in a random order.

    Parameters
    ----------
    speakers : sequence of str
        (utterances,).
    seed : int
        Another seed, another order.

    Returns
    -------
    list of int
        All places, each once.

    Example
    -------
    >>> ["aaab"[i] for i in label_order("aaab", seed=0)][2:]  # after a round of both
    ['a', 'a']
    """
    generator = np.random.default_rng(seed)
    waiting: dict[str, list[int]] = defaultdict(list)
    for place in generator.permutation(len(speakers)).tolist():
        waiting[speakers[place]].append(place)
    order: list[int] = []
    while waiting:
        for name in generator.permutation(sorted(waiting)).tolist():
            order.append(waiting[name].pop())
            if not waiting[name]:
                del waiting[name]
    return order


def nearest_prefix(durations: Sequence[float], seconds: float) -> int:
    """How many of the first utterances come nearest to a wanted total, at least one.

    Parameters
    ----------
    durations : sequence of float
        (utterances,) seconds, in order.
    seconds : float
        The wanted total.

    Raises
    ------
    ValueError
        All of them together are shorter than that, by more than half the last one.

    Example
    -------
    >>> nearest_prefix([10.0, 10.0, 15.0, 10.0], 26.0)
    2
    """
    totals = np.cumsum(durations)
    if totals[-1] + durations[-1] / 2 < seconds:
        raise ValueError(
            f"{totals[-1] / 60:.1f} minutes of labelled audio, {seconds / 60:g} are asked for. "
            "Ask for less, or give a larger manifest."
        )
    return int(np.argmin(np.abs(totals - seconds))) + 1


def error_curves(
    counts: Array, utterances: Array | None = None, seeds: Array | None = None
) -> Array:
    """Error rates in percent, the mean over seeds.

    Parameters
    ----------
    counts : ndarray
        (arms, sizes, seeds, utterances, 2): errors, and words (or characters) of the reference.
    utterances : ndarray, optional
        (utterances,) how often each counts.
    seeds : ndarray, optional
        (seeds,) how often each counts.

    Returns
    -------
    ndarray
        (arms, sizes).

    Example
    -------
    >>> error_curves(np.array([[[[[1, 4], [1, 4]], [[2, 4], [4, 4]]]]])).tolist()
    [[50.0]]
    """
    sums = counts.sum(3) if utterances is None else np.einsum("asrue,u->asre", counts, utterances)
    return 100 * np.average(sums[..., 0] / sums[..., 1], axis=2, weights=seeds)


def resampled(counts: Array, repeats: int = 1000, seed: int = 0) -> Iterator[Array]:
    """`error_curves` of what another draw of test utterances and of seeds might have brought.

    Both are drawn with replacement, the same for all arms and sizes: they were tested on the same
    utterances, and arms of one seed share their labels, so that differences are known better than
    the curves. Speakers are not drawn again: intervals speak of these speakers. Few seeds know
    little of their own spread, so look at the seeds themselves, too.

    Parameters
    ----------
    counts : ndarray
        (arms, sizes, seeds, utterances, 2), see `error_curves`.
    repeats : int
        Number of draws.
    seed : int
        The same seed, the same draws.

    Yields
    ------
    ndarray
        (arms, sizes).

    Example
    -------
    >>> same = np.tile([1, 4], (1, 1, 3, 5, 1))
    >>> [curve.tolist() for curve in resampled(same, repeats=2)]
    [[[25.0]], [[25.0]]]
    """
    generator = np.random.default_rng(seed)
    runs, utterances = counts.shape[2:4]
    for _ in range(repeats):
        drawn = generator.multinomial(utterances, np.full(utterances, 1 / utterances))
        yield error_curves(counts, drawn, generator.multinomial(runs, np.full(runs, 1 / runs)))


def labels_needed(
    minutes: Sequence[float], errors: Sequence[float] | Array, target: float
) -> float:
    """Minutes of labels at which a curve first comes down to an error, never extrapolated.

    Between two sizes the error falls linearly in the logarithm of the minutes.

    Parameters
    ----------
    minutes : sequence of float
        (sizes,) rising.
    errors : sequence of float
        (sizes,).
    target : float
        The error to reach.

    Returns
    -------
    float
        Inside the range of `minutes`; 0 if the smallest size is already better than the target,
        infinity if no size reaches it.

    Example
    -------
    >>> [labels_needed([1, 10, 100], [80, 60, 50], target) for target in (81, 70, 50, 49)]
    [0.0, 3.1622776601683795, 100.0, inf]
    """
    if errors[0] < target:
        return 0.0
    if errors[0] == target:
        return float(minutes[0])
    for i in range(1, len(errors)):
        if errors[i] <= target:  # and the one before is not
            part = (errors[i - 1] - target) / (errors[i - 1] - errors[i])
            return float(minutes[i - 1] * math.pow(minutes[i] / minutes[i - 1], part))
    return math.inf


def order_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws that can be infinite: its ends are draws, not means of two.

    Example
    -------
    >>> order_interval([1.0, 2.0, 3.0, math.inf], 0.5)
    (1.0, 3.0)
    """
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(values, ends, method="inverted_cdf")
    return float(low), float(high)


def compare(
    arms: Sequence[str], minutes: Sequence[float], counts: Array, repeats: int = 1000
) -> dict[str, list[dict[str, Any]]]:
    """Curves, differences of arms, and labels for equal error, with intervals of 95 %.

    Parameters
    ----------
    arms : sequence of str
        Their names.
    minutes : sequence of float
        (sizes,) rising.
    counts : ndarray
        (arms, sizes, seeds, utterances, 2), see `error_curves`.
    repeats : int
        Draws for the intervals.

    Returns
    -------
    dict of str to list of dict
        "curves": `error` in percent, `by_seed`. "differences", of every arm to every other:
        `points` of percent, `arm` less `other`, and `ratio`, `arm` by `other`. "labels_needed", of
        the same pairs: `other_minutes` until `other` has the error that `arm` has, as text, since
        it can lie outside of the curve. Intervals end in `_95`.

    Example
    -------
    >>> report = compare(["a", "b"], [1, 4], np.array([[[[[4, 8]]], [[[2, 8]]]],
    ...                                                [[[[6, 8]]], [[[2, 8]]]]]))
    >>> [(row["minutes"], row["other_minutes"]) for row in report["labels_needed"]]
    [(1, '2'), (4, '4'), (1, '< 1'), (4, '4')]
    """
    curves, draws = error_curves(counts), np.array(list(resampled(counts, repeats)))
    by_seed = np.stack([error_curves(counts[:, :, [seed]]) for seed in range(counts.shape[2])], -1)
    report: dict[str, list[dict[str, Any]]] = {"curves": [], "differences": [], "labels_needed": []}
    for (a, arm), (i, size) in product(enumerate(arms), enumerate(minutes)):
        point = {"arm": arm, "minutes": size, "by_seed": by_seed[a, i].tolist()}
        point |= {"error": float(curves[a, i]), "error_95": interval(draws[:, a, i])}
        report["curves"].append(point)
    pairs = permutations(range(len(arms)), 2)
    for (a, b), (i, size) in product(pairs, enumerate(minutes)):
        pair = {"arm": arms[a], "other": arms[b], "minutes": size}
        gap, gap_95 = float(curves[a, i] - curves[b, i]), interval(draws[:, a, i] - draws[:, b, i])
        with np.errstate(divide="ignore", invalid="ignore"):  # by an error of 0: inf or nan
            ratio = float(curves[a, i] / curves[b, i])
            ratio_95 = interval(draws[:, a, i] / draws[:, b, i])
        both = {"points": gap, "points_95": gap_95, "ratio": ratio, "ratio_95": ratio_95}
        report["differences"].append(pair | both)
        middle = labels_needed(minutes, curves[b], curves[a, i])
        ends = order_interval([labels_needed(minutes, draw[b], draw[a, i]) for draw in draws])
        needed, *needed_95 = (minutes_text(x, minutes) for x in (middle, *ends))
        both = {"other_minutes": needed, "other_minutes_95": needed_95}
        report["labels_needed"].append(pair | both)
    return report


def minutes_text(needed: float, minutes: Sequence[float]) -> str:
    """What `labels_needed` found, in words where it lies outside of the curve.

    Example
    -------
    >>> [minutes_text(needed, [1, 300]) for needed in (0, 17.25, math.inf)]
    ['< 1', '17.2', '> 300']
    """
    if needed == 0:
        return f"< {minutes[0]:g}"
    return f"> {minutes[-1]:g}" if math.isinf(needed) else f"{needed:.3g}"
