"""What units know of phones: mutual information and purities, beside units that know nothing.

From the joint counts of phone y and unit z over frames (Hsu et al. 2021, HuBERT, section IV-C):

    PNMI            I(y; z) / H(y), the share of a phone's uncertainty that its unit removes
    phone purity    sum_z max_y p(y, z), frames whose phone is the commonest one of their unit
    cluster purity  sum_y max_z p(y, z), frames whose unit is the commonest one of their phone

With more units the first two rise and the third falls, also for units that mean nothing: a unit
that occurs once is pure. So figures stand beside those of *shuffled* units, the same ones in random
order, and should only be compared for about as many units. Frames of one phone resemble each other,
which shuffling undoes: what it shows is the least that chance gives.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Purity(NamedTuple):
    """Scores in [0, 1], higher is better."""

    pnmi: float
    phone_purity: float
    cluster_purity: float


class JointCounts(NamedTuple):
    """Frames by phone and unit; only those that occur."""

    counts: np.ndarray  # (phones, units) int64
    phones: np.ndarray  # (phones,) str, sorted
    units: np.ndarray  # (units,) int64, sorted


def joint_counts(phones: np.ndarray, units: np.ndarray) -> JointCounts:
    """Count frames.

    Parameters
    ----------
    phones : ndarray
        (frames,) str.
    units : ndarray
        (frames,) int.

    Raises
    ------
    ValueError
        Not one phone per unit, or none at all.

    Example
    -------
    >>> joint_counts(np.array(["a", "b", "a"]), np.array([5, 9, 5])).counts.tolist()
    [[2, 0], [0, 1]]
    """
    if phones.shape != units.shape or phones.ndim != 1 or not len(phones):
        raise ValueError(
            f"phones {phones.shape} and units {units.shape}: expected one each for every frame, "
            "and at least one frame."
        )
    names, rows = np.unique(phones, return_inverse=True)
    numbers, columns = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), len(numbers)), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    return JointCounts(counts, names, numbers)


def purity(counts: np.ndarray) -> Purity:
    """Scores of joint counts.

    Parameters
    ----------
    counts : ndarray
        (phones, units).

    Returns
    -------
    Purity
        PNMI is 0 where all frames have one phone: there is nothing to know.

    Example
    -------
    >>> purity(np.array([[2, 0, 0], [0, 1, 1]]))
    Purity(pnmi=1.0, phone_purity=1.0, cluster_purity=0.75)
    """
    joint = counts / counts.sum()
    of_phone, of_unit = joint.sum(1), joint.sum(0)
    seen = joint > 0
    independent = np.outer(of_phone, of_unit)[seen]
    information = float((joint[seen] * np.log(joint[seen] / independent)).sum())
    uncertainty = -float((of_phone[of_phone > 0] * np.log(of_phone[of_phone > 0])).sum())
    pnmi = information / uncertainty if uncertainty > 0 else 0.0
    return Purity(pnmi, float(joint.max(0).sum()), float(joint.max(1).sum()))


def shuffled_purity(
    phones: np.ndarray, units: np.ndarray, *, seed: int = 0, repeats: int = 5
) -> Purity:
    """Mean scores of the same units in random order: what small numbers give by themselves.

    Parameters
    ----------
    phones, units
        See `joint_counts`.
    seed : int
        Of the orders.
    repeats : int
        How many of them.

    Example
    -------
    >>> phones, units = np.array(["a", "b"] * 500), np.array([3, 7] * 500)
    >>> purity(joint_counts(phones, units).counts).pnmi
    1.0
    >>> shuffled_purity(phones, units).pnmi < 0.01
    True
    """
    generator = np.random.default_rng(seed)
    scores = [
        purity(joint_counts(phones, generator.permutation(units)).counts) for _ in range(repeats)
    ]
    return Purity(*np.mean(scores, axis=0).tolist())
