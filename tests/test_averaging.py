"""Which weights a fine-tuning ends with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.averaging import choose_weights, mean_of_states
from w2v_plugin.brains import CTCBrain
from w2v_plugin.whole_checkpoints import WholeCheckpointer

SCORES = {1.0: 30.0, 2.0: 10.0, 3.0: 20.0, 4.0: 12.0}  # weight -> WER


def test_what_does_not_change_stays_bit_for_bit() -> None:
    """A frozen extractor is the same after averaging any number; integers stay integers."""
    torch.manual_seed(0)
    state = {"x": torch.randn(1000), "half": torch.randn(9).half(), "n": torch.tensor(7)}
    for count in (2, 3, 7, 10):
        mean = mean_of_states([state] * count)
        for name, value in state.items():
            assert torch.equal(mean[name], value) and mean[name].dtype == value.dtype


class Scored(CTCBrain):
    """Knows the score of the mean already."""

    mean_score = 0.0

    def evaluate(self, *_: Any, **__: Any) -> None:  # type: ignore[override]
        assert self.checkpointer is None and self.eval_chunk is None
        self.test_scores = {"WER": self.mean_score}


def brain_after_training(
    folder: Path, average: int, scores: dict[float, Any] = SCORES, **more: Any
) -> Scored:
    """Its checkpoints hold one weight each, with the score of it."""
    model = nn.Linear(1, 1, bias=False)
    checkpointer = WholeCheckpointer(folder / "save", {"model": model})
    hparams = {"output_folder": str(folder), "best_by": "WER", "batch_s": 1.0, "average": average}
    hparams |= more
    options = {"device": "cpu"}
    brain = Scored({"model": model}, None, hparams, run_opts=options, checkpointer=checkpointer)
    for weight, score in scores.items():
        nn.init.constant_(model.weight, weight)
        brain.save(score if isinstance(score, dict) else {"WER": score})
    return brain


@pytest.mark.parametrize(
    ("average", "mean_score", "weight", "report"),
    [
        (1, 0.0, 2.0, {"average": 1, "best": {"WER": 10.0}}),
        (2, 10.0, 3.0, {"average": 2, "best": {"WER": 10.0}, "mean": {"WER": 10.0}}),
        (3, 9.0, 3.0, {"average": 3, "best": {"WER": 10.0}, "mean": {"WER": 9.0}}),
        (3, 10.1, 2.0, {"average": 1, "best": {"WER": 10.0}, "mean": {"WER": 10.1}}),
        (9, 9.0, 2.5, {"average": 4, "best": {"WER": 10.0}, "mean": {"WER": 9.0}}),
    ],
)
def test_the_mean_is_kept_if_it_is_not_worse(
    average: int,
    mean_score: float,
    weight: float,
    report: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the best ones, not of the last ones; else the best one alone."""
    brain = brain_after_training(tmp_path, average)
    brain.mean_score = mean_score
    monkeypatch.setattr("w2v_plugin.averaging.by_length", lambda *_: {})
    assert choose_weights(brain, None) == report  # type: ignore[arg-type]
    assert brain.model.weight.item() == weight


def test_the_best_of_those_that_get_no_word_right_has_most_characters_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent model has a WER of 100, and no character. The mean is compared likewise."""
    monkeypatch.setattr("w2v_plugin.averaging.by_length", lambda *_: {})
    scores = {
        1.0: {"WER": 100.0, "CER": 99.0},
        2.0: {"WER": 104.0, "CER": 60.0},
        3.0: {"WER": 103.0, "CER": 70.0},
    }
    for cer, weight in ((59.0, 2.5), (61.0, 2.0)):
        brain = brain_after_training(tmp_path / str(cer), 2, scores)

        def evaluate(*_: Any, brain: Scored = brain, cer: float = cer, **__: Any) -> None:
            brain.test_scores = {"WER": 105.0, "CER": cer}

        monkeypatch.setattr(brain, "evaluate", evaluate)
        assert choose_weights(brain, None)["best"] == {"WER": 104.0}  # type: ignore[arg-type]
        assert brain.model.weight.item() == weight
    brain = brain_after_training(tmp_path / "1", 1, {**scores, 4.0: {"WER": 99.0, "CER": 98.0}})
    choose_weights(brain, None)  # type: ignore[arg-type]
    assert brain.model.weight.item() == 4.0


def test_the_mean_is_scored_at_the_chunk_that_best_by_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate` looks at one chunk, whose scores have plain names."""
    monkeypatch.setattr("w2v_plugin.averaging.by_length", lambda *_: {})
    scores = {1.0: {"WER": 1.0, "WER_160ms": 30.0}, 2.0: {"WER": 2.0, "WER_160ms": 10.0}}
    more = {"best_by": "WER_160ms", "valid_chunks": [None, 8]}
    brain = brain_after_training(tmp_path, 2, scores, **more)
    seen = []

    def evaluate(*_: Any, **__: Any) -> None:
        seen.append(brain.eval_chunk)
        brain.test_scores = {"WER": 9.0}

    monkeypatch.setattr(brain, "evaluate", evaluate)
    report = {"average": 2, "best": {"WER_160ms": 10.0}, "mean": {"WER_160ms": 9.0}}
    assert choose_weights(brain, None) == report  # type: ignore[arg-type]
    assert seen == [ChunkConfig(8)] and brain.eval_chunk is None


def test_a_compiled_model_is_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints are of the model itself; the wrapper calls its parameters otherwise."""
    monkeypatch.setattr("w2v_plugin.averaging.by_length", lambda *_: {})
    brain = brain_after_training(tmp_path, 3)
    brain.modules["model"] = torch.compile(brain.modules.model, backend="eager")
    assert choose_weights(brain, None)["average"] == 3  # type: ignore[arg-type]
    assert brain.model.weight.item() == 3.0


def test_nothing_trained_is_told(tmp_path: Path) -> None:
    """As after `--updates 0`."""
    brain = brain_after_training(tmp_path, 1)
    brain.hparams.best_by = "CER"  # no checkpoint has it
    brain.hparams.valid_every, brain.hparams.epoch_counter = 500, SimpleNamespace(limit=0)
    with pytest.raises(ValueError, match=r"nothing was trained .* got epochs of 500 updates, 0 of"):
        choose_weights(brain, None)  # type: ignore[arg-type]
