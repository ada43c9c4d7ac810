"""Are two recordings of the same speaker? Scores, error rates, and how sure those are.

    vectors ─ Normalizer ─ cosine ─► scores ─ DetectionCurve.rates ─► eer, min_dcf
                                                     ▲ weights
                                      resampled_weights (speakers, for intervals)

SpeechBrain's `EER` and `minDCF` (speechbrain.utils.metric_stats) give the same numbers, but visit
every threshold in a Python loop, or all of them in one (trials, thresholds) matrix, and know no
weights; thousands of trials resampled a thousand times need a curve that is sorted once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

Array = np.ndarray


class Normalizer:
    """Zero mean and unit variance per dimension, learned from *other* speakers than are tested.

    Vectors of one model share a large common part, which makes all cosines alike; dimensions of
    different size let the largest decide. Every speaker counts the same, however much was recorded.

    Parameters
    ----------
    vectors : ndarray
        (utterances, dim).
    speakers : sequence of str
        (utterances,).
    scale : bool
        False subtracts the mean only.

    Example
    -------
    >>> norm = Normalizer(np.array([[1.0, 5.0], [1.0, 5.0], [3.0, 5.0]]), ["a", "a", "b"])
    >>> norm(np.array([[3.0, 5.0]])).tolist()  # what never varied stays 0
    [[1.0, 0.0]]
    """

    def __init__(self, vectors: Array, speakers: Sequence[str], *, scale: bool = True) -> None:
        _, speaker, counts = np.unique(speakers, return_inverse=True, return_counts=True)
        weights = 1.0 / (counts[speaker] * len(counts))
        vectors = vectors.astype(np.float64)
        self.mean = weights @ vectors
        std = np.sqrt(weights @ np.square(vectors - self.mean))
        varies = std > 1e-6 * np.abs(self.mean)  # the rest is rounding of float32
        self.scale = np.where(varies, std, np.inf) if scale else np.ones_like(std)

    def __call__(self, vectors: Array) -> Array:
        """(utterances, dim) -> the same shape."""
        return (vectors - self.mean) / self.scale


def cosine(first: Array, second: Array) -> Array:
    """Cosine of the angle between corresponding rows; 0 where a row is zero.

    Example
    -------
    >>> cosine(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])).tolist()
    [1.0, 0.0]
    """
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("nd,nd->n", first, second) / np.where(norms > 0, norms, np.inf)


class DetectionCurve:
    """Both kinds of error at every threshold.

    Parameters
    ----------
    scores : ndarray
        (trials,), higher for more alike.
    same : ndarray
        (trials,) bool, True where the speaker is the same.

    Raises
    ------
    ValueError
        A score is not finite, or one of the two kinds of trial is missing.

    Example
    -------
    >>> curve = DetectionCurve(np.array([0.9, 0.4, 0.6, 0.1]), np.array([1, 1, 0, 0], bool))
    >>> eer(*curve.rates()), min_dcf(*curve.rates())
    (0.5, 0.5)
    """

    def __init__(self, scores: Array, same: Array) -> None:
        same = np.asarray(same, dtype=bool)
        if scores.shape != same.shape or scores.ndim != 1 or not np.isfinite(scores).all():
            raise ValueError(
                f"scores {scores.shape} and same {same.shape}: expected one finite score per trial."
            )
        if same.all() or not same.any():
            raise ValueError(
                f"{same.sum()} trials of the same speaker, {(~same).sum()} of different speakers: "
                "error rates need both."
            )
        self.order = np.argsort(scores, kind="stable")
        self.same = same[self.order]
        # equal scores are rejected together: thresholds lie after the last of them
        self.ends = np.flatnonzero(np.diff(scores[self.order], append=np.inf) > 0)

    def rates(self, weights: Array | None = None) -> tuple[Array, Array]:
        """Miss and false-alarm rates, threshold by threshold, from accept-all to reject-all.

        Parameters
        ----------
        weights : ndarray, optional
            (trials,) how often each trial counts; both kinds need a positive sum.

        Returns
        -------
        tuple of ndarray
            Two of (distinct scores + 1,): 0 to 1 and 1 to 0.
        """
        w = np.ones(len(self.order)) if weights is None else weights[self.order]
        missed = np.cumsum(np.where(self.same, w, 0.0))[self.ends]
        rejected = np.cumsum(np.where(self.same, 0.0, w))[self.ends]
        start = np.zeros(1)
        return (
            np.concatenate([start, missed / missed[-1]]),
            1.0 - np.concatenate([start, rejected / rejected[-1]]),
        )


def eer(miss: Array, false_alarm: Array) -> float:
    """Equal error rate, 0 to 1: where the curve, drawn with straight lines, has miss = false alarm.

    Example
    -------
    >>> eer(np.array([0.0, 0.1, 1.0]), np.array([1.0, 0.1, 0.0]))
    0.1
    """
    right = int(np.argmax(miss >= false_alarm))  # never 0: the first point accepts all
    left = right - 1
    before, after = false_alarm[left] - miss[left], miss[right] - false_alarm[right]
    part = before / (before + after)
    return float(miss[left] + part * (miss[right] - miss[left]))


def min_dcf(
    miss: Array,
    false_alarm: Array,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_false_alarm: float = 1.0,
) -> float:
    """Smallest detection cost over all thresholds (NIST SRE 2008 and later, VoxSRC).

    Parameters
    ----------
    miss, false_alarm : ndarray
        From `DetectionCurve.rates`.
    p_target : float
        Assumed share of same-speaker trials.
    c_miss, c_false_alarm : float
        Cost of each error.

    Returns
    -------
    float
        Divided by the cost of answering the same to every trial: 1 is a useless system, and no
        system is worse.

    Example
    -------
    >>> min_dcf(np.array([0.0, 0.25, 1.0]), np.array([1.0, 0.0, 0.0]), p_target=0.5)
    0.25
    """
    cost = c_miss * p_target * miss + c_false_alarm * (1.0 - p_target) * false_alarm
    return float(np.min(cost) / min(c_miss * p_target, c_false_alarm * (1.0 - p_target)))


def resampled_weights(
    first: Sequence[str], second: Sequence[str], repeats: int = 1000, seed: int = 0
) -> Iterator[Array]:
    """Weights of trials when *speakers* are drawn again, with replacement.

    Trials are not independent: a speaker who sounds like everybody spoils every trial of theirs.
    Drawing trials would treat them as so many new facts, and intervals would come out far too
    narrow; what the next test set brings is other speakers. A trial of two speakers counts as
    often as both were drawn (the product), one of a single speaker as often as that one was. It is
    the vertex bootstrap (Snijders and Borgatti, Connections 22(2), 1999) with trials as edges, less
    the edges between copies of one vertex. Weights are the same for every system, so that
    differences of systems get intervals, too.

    Parameters
    ----------
    first, second : sequence of str
        (trials,) speakers of both sides.
    repeats : int
        Number of draws.
    seed : int
        The same seed draws the same speakers.

    Yields
    ------
    ndarray
        (trials,) float64. Draws that leave one of the two kinds of trial empty are drawn again.

    Raises
    ------
    ValueError
        There are less than two same-speaker speakers to draw, or less than three in all.

    Example
    -------
    >>> [w.tolist() for w in resampled_weights("aabc", "abbb", repeats=2)]
    [[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 1.0, 0.0]]
    """
    names, index = np.unique([*first, *second], return_inverse=True)
    one, two = np.split(index.ravel(), 2)
    same = one == two
    if len(names) < 3 or len(np.unique(one[same])) < 2:
        raise ValueError(
            f"{len(names)} speakers, {len(np.unique(one[same]))} of them with trials of their own: "
            "too few to draw from. Intervals need three and two."
        )
    generator = np.random.default_rng(seed)
    done = 0
    while done < repeats:
        times = generator.multinomial(len(names), np.full(len(names), 1.0 / len(names)))
        weights = np.where(same, times[one], times[one] * times[two]).astype(np.float64)
        if weights[same].any() and weights[~same].any():
            done += 1
            yield weights


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap results.

    Example
    -------
    >>> interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
