"""Training in updates: the learning rate is a function of the step, progress is saved."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from w2v_plugin.training import Progress, tri_stage


@pytest.mark.parametrize("total", [1, 10, 400, 100_000])
@pytest.mark.parametrize(("warmup", "hold"), [(0.1, 0.4), (0.0, 0.0), (0.08, 0.0), (0.5, 0.5)])
def test_tri_stage_rises_holds_and_falls(total: int, warmup: float, hold: float) -> None:
    """Within (0, 1], rising until `warmup`, 1 until `hold`, falling to `final`; no jump."""
    values = [tri_stage(s, total, warmup=warmup, hold=hold, final=0.05) for s in range(total + 1)]
    assert all(0 < value <= 1 for value in values)
    begin, end = max(warmup * total, 1), (warmup + hold) * total
    steps = list(zip(range(total), values, values[1:], strict=False))
    assert all(b >= a for step, a, b in steps if step + 1 < begin)
    assert all(value == 1 for step, value in enumerate(values) if begin <= step < end)
    assert all(b <= a for step, a, b in steps if step >= max(begin, end))
    largest = max(1 / begin, 0.95 / max(total - end, 1))
    assert all(abs(b - a) <= largest + 1e-9 for _, a, b in steps)


@pytest.mark.parametrize("final", [0.0, 0.05, 0.5])
def test_tri_stage_ends_at_final_and_stays(final: float) -> None:
    """Also beyond the last update, where a run that was extended may come."""
    for step in (1000, 1001, 5000):
        assert tri_stage(step, 1000, final=final) == pytest.approx(final)
    assert tri_stage(750, 1000, final=final) == pytest.approx((1 + final) / 2)  # halfway


def test_the_first_update_already_learns() -> None:
    """Step 0 is not wasted on a rate of zero; warm-up is linear in step + 1."""
    assert [tri_stage(step, 100) for step in range(10)] == pytest.approx(
        [(step + 1) / 10 for step in range(10)]
    )


def test_progress_survives_a_checkpoint(tmp_path: Path) -> None:
    """By SpeechBrain's Checkpointer, as any other recoverable."""
    progress = Progress()
    assert (progress.audio_s, progress.seconds) == (0.0, 0.0)
    progress.samples, progress.seconds = torch.tensor(1_976_000), 7.25
    assert progress.audio_s == 123.5
    Checkpointer(tmp_path, {"progress": progress}).save_checkpoint()
    fresh = Progress()
    Checkpointer(tmp_path, {"progress": fresh}).recover_if_possible()
    assert (fresh.audio_s, fresh.seconds) == (123.5, 7.25)


def test_progress_is_read_without_running_code(tmp_path: Path) -> None:
    """A pickle with anything but numbers is refused."""
    torch.save({"audio_s": Path("x"), "seconds": 0.0}, tmp_path / "progress")
    with pytest.raises(pickle.UnpicklingError):
        Progress().load(tmp_path / "progress")
