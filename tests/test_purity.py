"""Scores of units against values by hand and against scikit-learn."""

import numpy as np
import pytest

from w2v_plugin.purity import Purity, joint_counts, purity, shuffled_purity


def test_by_hand() -> None:
    """Four phones of 2 frames; units that tell two pairs apart: 1 of 2 bits."""
    phones = np.array(list("aabbccdd"))
    units = np.array([0, 0, 0, 0, 7, 7, 7, 7])
    joint = joint_counts(phones, units)
    assert joint.counts.tolist() == [[2, 0], [2, 0], [0, 2], [0, 2]]
    assert joint.phones.tolist() == list("abcd") and joint.units.tolist() == [0, 7]
    assert purity(joint.counts) == pytest.approx((0.5, 0.5, 1.0), abs=1e-12)


def test_the_extremes() -> None:
    """A unit per frame is pure and says everything; one unit says nothing; one phone neither."""
    phones = np.array(list("abab"))
    assert purity(joint_counts(phones, np.arange(4)).counts) == pytest.approx((1.0, 1.0, 0.5))
    assert purity(joint_counts(phones, np.zeros(4, int)).counts) == pytest.approx((0.0, 0.5, 1.0))
    one = purity(joint_counts(np.array(list("aaaa")), np.arange(4)).counts)
    assert one == Purity(0.0, 1.0, 0.25)


@pytest.mark.parametrize("shape", [(5, 7), (40, 100), (3, 300)])
def test_equal_to_scikit_learn(shape: tuple[int, int]) -> None:
    """Mutual information and entropy in float64; 1e-12 is its rounding."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    generator = np.random.default_rng(0)
    y = generator.integers(0, shape[0], 2000)
    z = (y * generator.integers(1, 4, 2000) + generator.integers(0, shape[1], 2000)) % shape[1]
    joint = joint_counts(y.astype(str), z)
    found = purity(joint.counts)
    information = metrics.mutual_info_score(y, z)
    assert found.pnmi == pytest.approx(information / metrics.mutual_info_score(y, y), abs=1e-12)
    table = metrics.cluster.contingency_matrix(y.astype(str), z)
    assert (table == joint.counts).all()
    assert found.phone_purity == pytest.approx(table.max(0).sum() / 2000, abs=1e-12)
    assert found.cluster_purity == pytest.approx(table.max(1).sum() / 2000, abs=1e-12)


def test_shuffling_shows_what_small_numbers_give() -> None:
    """Units that know everything know nothing when shuffled; the bias falls with more frames.

    Expected information of independent counts is about (P - 1)(Z - 1) / 2n nats.
    """
    for frames, bias in ((2000, 99 * 9 / 4000), (20000, 99 * 9 / 40000)):
        phones = np.arange(frames) % 10
        units = np.arange(frames) % 100
        assert purity(joint_counts(phones.astype(str), units).counts).pnmi == pytest.approx(1.0)
        shuffled = shuffled_purity(phones.astype(str), units)
        # a quarter: the formula is the first term of a series, and five orders are a small sample
        assert shuffled.pnmi == pytest.approx(bias / np.log(10), rel=0.25)
    again = shuffled_purity(phones.astype(str), units)
    assert again == shuffled != shuffled_purity(phones.astype(str), units, seed=1)


def test_frames_must_belong_together() -> None:
    for phones, units in ((np.array(["a"]), np.array([1, 2])), (np.array([]), np.array([]))):
        with pytest.raises(ValueError, match="one each for every frame"):
            joint_counts(phones, units)
