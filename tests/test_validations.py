"""Validations tell when a fine-tuning is over and what goes wrong, once, and else nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from w2v_plugin.validations import ALIKE, advice, exhausted, rank, spread


def validations(
    cer: Sequence[float], wer: Sequence[float] | None = None, spreads: Sequence[float] | None = None
) -> list[dict[str, float]]:
    """One every 500 updates."""
    wer = [100.0] * len(cer) if wer is None else wer
    records = [
        {"step": 500 * i, "valid_CER": c, "valid_WER": w}
        for i, (c, w) in enumerate(zip(cer, wer, strict=True), start=1)
    ]
    for record, value in zip(records, spreads or [], strict=False):
        record["valid_spread"] = value
    return records


def said(records: list[dict[str, float]], **settings: object) -> list[str]:
    """First words of all advice of a run, validation by validation."""
    texts = [
        text
        for end in range(1, len(records) + 1)
        for text in advice(records[:end], **settings)  # type: ignore[arg-type]
    ]
    return [" ".join(text.split()[:3]) for text in texts]


def test_patience_counts_where_all_words_are_wrong() -> None:
    """As a WER above 100 is, for long, while characters are right."""
    records = validations([80, 70, 71, 72, 73], [104, 102, 104, 103, 105])
    assert [exhausted(records[:end], "WER", 2) for end in (3, 4)] == [False, True]
    assert not exhausted(validations([100] * 5, [100] * 5), "WER", 2)


def test_letters_that_come_while_no_word_is_right_are_no_reason_to_stop() -> None:
    """Who begins to speak has a WER above that of silence, and gets better all the same."""
    records = validations([99, 92, 85, 78, 70, 71, 72], [100, 100, 101, 102, 103, 103, 103])
    assert [exhausted(records[:end], "WER", 2) for end in range(1, 8)] == [False] * 6 + [True]
    elsewhere = [{**r, "valid_WER_full": r["valid_WER"], "valid_CER_full": 60.0} for r in records]
    assert exhausted(elsewhere[:3], "WER_full", 2)  # by its own CER
    found = validations([60, 61, 62, 50], [102, 99, 100, 100])  # a word was right
    assert [exhausted(found[:end], "WER", 2) for end in (3, 4)] == [False, True]


def test_any_word_is_better_than_none_and_then_characters_decide() -> None:
    """As patience does, so do the checkpoints that are kept."""
    pairs = [(50, 80), (50, 70), (99.9, 98), (130, 40), (100, 41), (100, 99), (101, 150)]
    ranks = [rank({"WER": wer, "CER": cer}, "WER") for wer, cer in pairs]
    assert ranks == sorted(ranks) and ranks[0] == ranks[1]
    assert rank({"WER": 50.0, "CER": 120.0}, "CER") == 120.0
    assert rank({"WER_full": 120.0, "CER_full": 7.0, "CER": 5.0}, "WER_full") == 107.0
    assert rank({}, "WER") == rank({}, "CER") == float("inf")


def test_a_healthy_run_hears_no_advice() -> None:
    """Blanks at the first validation are normal; so is a WER that comes down."""
    assert said(validations([100, 70, 50, 30], [100, 98, 80, 60])) == []
    assert said(validations([30, 31, 29], [60, 61, 60], [0.1, 0.09, 0.1])) == []
    assert advice([]) == []


def test_blanks_are_explained_once_and_not_while_frozen() -> None:
    """From the second validation on; those in which only the head learned do not count."""
    records = validations([100, 100, 100, 100, 100])
    assert said(records) == ["Nothing but blanks"]
    assert "after 1000 updates" in advice(records[:2])[0]
    assert said(records[:3], frozen_updates=1000) == []
    assert "after 2000 updates" in advice(records[:4], frozen_updates=1000)[0]
    assert said(validations([100, 101.3, 99.9])) == []  # says something, all of it wrong


def test_a_dead_extractor_is_named_once_and_before_blanks() -> None:
    """Frames alike and nothing recognized; one of both alone is no reason."""
    dead, alive = ALIKE / 2, 2 * ALIKE
    found = said(validations([100, 100, 100], spreads=[alive, dead, dead]))
    assert found == ["The extractor died:"]
    (text,) = advice(validations([97], spreads=[dead]))
    assert "update 500" in text and "97 %" in text and "freeze_extractor: True" in text
    assert said(validations([40, 30], [80, 70], [dead, dead])) == []


def test_a_deaf_model_is_named_once_and_after_two_validations() -> None:
    """The same logits at every frame, twice; a group-norm extractor that died shows so alone."""
    records = validations([97.0] * 4)
    for record, share in zip(records, [0.1, 1e-14, 1e-14, 1e-14], strict=True):
        record["valid_logit_spread"] = share
    assert said(records[:2]) == []
    assert said(records) == ["The model hears"]
    (text,) = advice(records[:3])
    assert "update 1500" in text and "97 %" in text and "lower encoder_lr" in text
    assert said([{**record, "valid_CER": 50.0} for record in records]) == []


def test_words_all_wrong_while_characters_improve() -> None:
    """`best_by: CER` is advised once, only to those who pick by words."""
    records = validations([95, 70, 50, 40], [100, 100, 99.5, 99.2])
    assert said(records) == ["100.0 % of"]
    assert "--best_by CER" in advice(records[:2])[0]
    assert said(records, best_by="CER") == []
    assert said(validations([95, 93])) == []


def test_a_plateau_is_named_once() -> None:
    """Letters are guessed, validation after validation; blanks and progress are something else."""
    records = validations([100, 92, 88, 88, 87, 60])
    assert said(records[:3]) == [] and said(records, best_by="CER") == ["88 % of"]
    assert "after 2000 updates" in advice(records[:4])[0]
    assert said(validations([95, 88, 80, 74]), best_by="CER") == []
    assert said(validations([90, 89, 88, 87]), frozen_updates=1000) == []


@pytest.mark.parametrize(
    ("scores", "patience", "stops"),
    [
        ([60, 50, 40], 1, False),
        ([60, 50, 50], 1, True),  # as good is not better
        ([60, 50, 51, 49], 2, False),
        ([60, 50, 51, 50], 2, True),
        ([100, 100, 100, 100], 2, False),  # nothing was recognized yet
        ([100, 100, 100, 90], 2, False),
        ([100, 90, 100, 100], 2, True),
        ([0, 0], 1, True),
    ],
)
def test_patience_ends(scores: list[float], patience: int, stops: bool) -> None:
    records = validations(scores, scores)
    assert exhausted(records, "WER", patience) is stops


def test_patience_does_not_count_what_the_head_did_alone() -> None:
    records = validations([50.0] * 4, [80, 81, 81, 79])
    assert exhausted(records[:3], "WER", 2)
    assert not exhausted(records[:3], "WER", 2, since=1000)
    assert not exhausted([], "WER", 1)


def test_spread_is_the_share_of_energy_around_the_mean_of_valid_frames() -> None:
    """As variance over mean square tells; padding does not count; no frames, no spread."""
    torch.manual_seed(0)
    x = torch.randn(2, 50, 8, dtype=torch.float64) + 2.0
    lengths = torch.tensor([50, 20])
    rows = [x[0], x[1, :20]]
    varying = sum(float(row.var(0, unbiased=False).sum() * len(row)) for row in rows)
    energy = sum(float(row.square().sum()) for row in rows)
    x[1, 20:] = 1e3
    assert spread(x, lengths) == pytest.approx(varying / energy, rel=1e-12)  # float64 sums
    assert spread(torch.zeros(1, 4, 2)) == 1.0  # silence through dead channels: nothing to say
