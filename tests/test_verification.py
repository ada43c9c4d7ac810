"""Error rates against their definitions and SpeechBrain's; intervals that know speakers; lists."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from speechbrain.utils.metric_stats import EER, minDCF

from w2v_plugin.errors import BadManifest
from w2v_plugin.trials import draw_trials, halves, is_same, read_trials, write_trials
from w2v_plugin.verification import (
    DetectionCurve,
    Normalizer,
    cosine,
    eer,
    interval,
    min_dcf,
    resampled_weights,
)


def noisy(same: int, different: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores one standard deviation and a half apart; the better ones are of the same speaker."""
    generator = np.random.default_rng(seed)
    label = np.arange(same + different) < same
    return generator.normal(np.where(label, 1.5, 0.0)), label


@pytest.mark.parametrize("sizes", [(1, 1), (7, 30), (200, 700)])
def test_figures_are_speechbrains(sizes: tuple[int, int]) -> None:
    """Another algorithm, the same figures."""
    scores, same = noisy(*sizes)
    rates = DetectionCurve(scores, same).rates()
    one, two = torch.tensor(scores[same]), torch.tensor(scores[~same])
    # SpeechBrain takes the middle of the two rates at the best threshold, ours is the crossing of
    # the lines between thresholds: they differ by half a step at most
    assert abs(eer(*rates) - EER(one, two)[0]) <= 0.5 / min(sizes) + 1e-6
    for p_target in (0.01, 0.05, 0.5):
        # SpeechBrain's cost is not divided by that of the better constant answer; float32
        theirs = minDCF(one, two, p_target=p_target)[0] / p_target
        assert min_dcf(*rates, p_target) == pytest.approx(theirs, rel=1e-5)


def test_extreme_systems() -> None:
    """Perfect, useless, always wrong."""
    same = np.array([True, True, False, False])
    for scores, rate, cost in (
        ([4.0, 3.0, 2.0, 1.0], 0.0, 0.0),
        ([1.0, 1.0, 1.0, 1.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0, 4.0], 1.0, 1.0),
    ):
        rates = DetectionCurve(np.array(scores), same).rates()
        assert (eer(*rates), min_dcf(*rates)) == (rate, cost)


def test_only_the_order_of_scores_counts() -> None:
    """Any increasing function leaves every figure as it is; ties are not broken."""
    scores, same = noisy(50, 80)
    scores = scores.round(1)
    figures = [eer(*DetectionCurve(f(scores), same).rates()) for f in (np.exp, np.arctan)]
    shuffled = np.random.default_rng(0).permutation(130)
    figures.append(eer(*DetectionCurve(scores[shuffled], same[shuffled]).rates()))
    assert figures == [eer(*DetectionCurve(scores, same).rates())] * 3


def test_weights_are_repetitions() -> None:
    """A weight of 3 is the trial three times, a weight of 0 is none."""
    scores, same = noisy(40, 90)
    weights = np.random.default_rng(1).integers(0, 4, 130)
    weighted = DetectionCurve(scores, same).rates(weights)
    repeated = DetectionCurve(np.repeat(scores, weights), np.repeat(same, weights)).rates()
    # sums of whole numbers: exact, but for the last bit of 1 - x
    assert eer(*weighted) == pytest.approx(eer(*repeated), abs=1e-12)
    assert min_dcf(*weighted) == pytest.approx(min_dcf(*repeated), abs=1e-12)


def population(
    speakers: int, seed: int, repeat: int = 1
) -> tuple[np.ndarray, list[str], list[str]]:
    """Scores that depend on who speaks and on nothing else."""
    generator = np.random.default_rng(seed)
    ease = generator.normal(size=speakers)
    pairs = [(i, j) for i in range(speakers) for j in range(i + 1)] * repeat
    scores = np.array([1.0 + ease[i] if i == j else ease[i] + ease[j] - 1.5 for i, j in pairs])
    first, second = ([f"s{pair[side]}" for pair in pairs] for side in (0, 1))
    return scores, first, second


def bootstrap(speakers: int, seed: int, repeats: int, repeat: int = 1) -> np.ndarray:
    scores, first, second = population(speakers, seed, repeat)
    curve = DetectionCurve(scores, np.array(first) == np.array(second))
    return np.array([eer(*curve.rates(w)) for w in resampled_weights(first, second, repeats)])


def test_more_trials_of_the_same_speakers_are_no_news() -> None:
    """Ten times the trials, the same interval. Resampled trials would give a third of it."""
    once, tenfold = bootstrap(12, 0, 50), bootstrap(12, 0, 50, repeat=10)
    np.testing.assert_allclose(once, tenfold, atol=1e-12)  # rates of sums in float64
    assert once.std() > 0.01


def test_the_spread_is_that_of_other_speakers() -> None:
    """Bootstrap of one sample against 200 fresh samples of speakers."""
    fresh = []
    for seed in range(200):
        scores, first, second = population(20, seed)
        fresh.append(eer(*DetectionCurve(scores, np.array(first) == np.array(second)).rates()))
    ratios = [bootstrap(20, seed, 200).std() / np.std(fresh) for seed in range(5)]
    # a standard deviation from 20 speakers is itself uncertain by 1 / sqrt(2 * 20) = 16 %
    assert 0.7 < np.median(ratios) < 1.4


def test_draws_follow_the_seed_and_the_speakers() -> None:
    """Same seed, same weights; own trials count once per draw, others with the product."""
    first, second = list("aabbccab"), list("abbcccba")
    one, two, other = (list(resampled_weights(first, second, 20, seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    for a, ab, b, bc, c, *_ in one:
        assert (ab, bc, a + b + c) == (a * b, b * c, 3)


def test_too_few_speakers_and_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        next(resampled_weights(["a", "b", "a"], ["a", "b", "b"]))
    with pytest.raises(ValueError, match="too few"):
        next(resampled_weights(["a", "a", "b"], ["a", "b", "c"]))
    with pytest.raises(ValueError, match="finite"):
        DetectionCurve(np.array([0.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="2 trials of the same speaker, 0 of different"):
        DetectionCurve(np.array([0.0, 1.0]), np.array([True, True]))


def test_normalizer_gives_every_speaker_the_same_weight() -> None:
    """Mean 0 and variance 1 over speakers; a recording more of one changes nothing."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(5.0, 3.0, size=(4, 6)).astype(np.float32)
    done = Normalizer(vectors, list("abcd"))(vectors)
    np.testing.assert_allclose(done.mean(0), 0.0, atol=1e-12)  # float64
    np.testing.assert_allclose(done.std(0), 1.0, atol=1e-12)
    again = Normalizer(np.concatenate([vectors, vectors[:1]]), list("abcda"))
    np.testing.assert_allclose(again(vectors), done, atol=1e-12)
    shifted = Normalizer(vectors, list("abcd"), scale=False)(vectors)
    np.testing.assert_allclose(shifted, vectors - vectors.mean(0, dtype=np.float64), atol=1e-12)


def test_cosine_and_interval() -> None:
    """Against torch; zero vectors give 0; quantiles."""
    one, two = np.random.default_rng(0).normal(size=(2, 5, 7))
    one[0] = 0.0
    wanted = torch.nn.functional.cosine_similarity(*map(torch.from_numpy, (one, two)))
    np.testing.assert_allclose(cosine(one, two), wanted.numpy(), atol=1e-12)  # float64
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


# --- lists ----------------------------------------------------------------------------------------


def recordings(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"ID": f"{speaker}-{i // 2}-{i}", "spk_id": speaker, "wav": f"/data/{speaker}/{i}.wav"}
        for speaker, count in counts.items()
        for i in range(count)
    ]


MANY = {"a": 30, "b": 6, "c": 3, "d": 1, "e": 4}


def test_lists_are_balanced_and_reproducible() -> None:
    """Pairs are capped per speaker, differ, and do not depend on the order of the manifest."""
    rows = recordings(MANY)
    trials = draw_trials(rows, 10, 3)
    own = Counter(t[0]["spk_id"] for t in trials if is_same(t))
    assert own == {"a": 10, "b": 10, "c": 3, "e": 6}  # as many pairs as there are, 10 at most
    assert len({(t[0]["ID"], t[1]["ID"]) for t in trials}) == len(trials)
    assert all(t[0]["ID"] != t[1]["ID"] for t in trials)
    assert len(trials) - own.total() <= 3 * own.total()
    mixed = random.Random(0).sample(rows, len(rows))
    assert draw_trials(mixed, 10, 3) == trials != draw_trials(rows, 10, 3, seed=1)


def test_others_are_chosen_by_speaker_not_by_recording() -> None:
    """One speaker has 40 of 60 recordings and is met no more often than the ten others."""
    trials = draw_trials(recordings({"x": 40, **dict.fromkeys("abcdefghij", 2)}), 1, 20)
    against = Counter(t[1]["spk_id"] for t in trials if not is_same(t))
    assert against["x"] < 0.25 * against.total()  # 1 in 10, and more since pairs are listed once


def test_sessions_differ_within_a_speaker() -> None:
    trials = draw_trials(recordings(MANY), session=r"^\w-\d+")
    pairs = [(t[0]["ID"][:-2], t[1]["ID"][:-2]) for t in trials if is_same(t)]
    assert pairs and all(one != two for one, two in pairs)


def test_halves_share_no_speaker_and_both_have_pairs() -> None:
    rows = recordings({"a": 2, "b": 1, "c": 1, "d": 2})
    for seed in range(10):
        one, two = halves(rows, seed)
        assert len(one) + len(two) == 6
        assert not {row["spk_id"] for row in one} & {row["spk_id"] for row in two}
        assert any(map(is_same, draw_trials(one))) and any(map(is_same, draw_trials(two)))


def test_lists_come_back_from_disk(tmp_path: Path) -> None:
    """Written and read; IDs with blanks; VoxCeleb's paths."""
    rows = recordings(MANY)
    rows[0]["ID"] = "with a blank"
    trials = draw_trials(rows)
    write_trials(tmp_path / "trials.txt", trials)
    assert read_trials(tmp_path / "trials.txt", rows) == trials
    (tmp_path / "vox.txt").write_text("1 a/1.wav a/2.wav\n0 a/1.wav data/b/0.wav\n")
    ids = [[row["ID"] for row in trial] for trial in read_trials(tmp_path / "vox.txt", rows)]
    assert ids == [["a-0-1", "a-1-2"], ["a-0-1", "b-0-0"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 a/1.wav", "expected 1 or 0 and two recordings"),
        ("2 a/1.wav a/2.wav", "expected 1 or 0 and two recordings"),
        ("1 a/1.wav gone.wav", "'gone.wav' is the ID or the end of the path of 0"),
        ("1 a/1.wav 1.wav", "'1.wav' is the ID or the end of the path of 4"),
        ("0 a/1.wav a/2.wav", "names the speakers 'a' and 'a'"),
        ("1 a/1.wav b/2.wav", "names the speakers 'a' and 'b'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trials.txt"
    path.write_text(f"1 a/1.wav a/2.wav\n\n{line}\n")
    with pytest.raises(BadManifest, match=message) as error:
        read_trials(path, recordings(MANY))
    assert str(error.value).startswith(f"{path}:3: ")


def test_lists_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="from 1 speakers"):
        draw_trials(recordings({"a": 5}))
    with pytest.raises(BadManifest, match="two recordings"):
        draw_trials(recordings({"a": 1, "b": 1}))
    with pytest.raises(BadManifest, match="of different sessions"):
        draw_trials(recordings({"a": 2, "b": 2}), session=r"^\w-\d+")
    with pytest.raises(BadManifest, match="not found in the ID 'a-0-0'"):
        draw_trials(recordings({"a": 2, "b": 2}), session="x")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(BadManifest, match="no lines"):
        read_trials(tmp_path / "empty.txt", recordings(MANY))
