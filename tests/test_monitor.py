"""The record of a run: a line per step that survives interruptions, and a picture of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import pytest

from w2v_plugin.monitor import Monitor


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    """Steps 1 to 5, its TensorBoard file closed in the end."""
    monitor = Monitor(tmp_path / "run")
    for step in range(1, 6):
        monitor.write(step, {"loss": 5 - 0.123456789 * step, "lr": 1e-5 * step})
    yield monitor
    if monitor.writer is not None:
        monitor.writer.close()


def lines(monitor: Monitor) -> list[dict[str, float]]:
    return [json.loads(line) for line in monitor.path.read_text().splitlines()]


def test_every_step_is_a_line(monitor: Monitor) -> None:
    """Six digits; also for TensorBoard."""
    assert lines(monitor) == monitor.records
    assert monitor.records[0] == {"step": 1, "loss": 4.87654, "lr": 1e-5}
    assert list((monitor.folder / "tensorboard").glob("events*"))


@pytest.mark.parametrize("step", [0, 3, 5, 99])
def test_resuming_drops_what_will_be_done_again(monitor: Monitor, step: int) -> None:
    """In memory and in the file; what follows is appended."""
    fresh = Monitor(monitor.folder)
    fresh.resume(step)
    kept = [record for record in monitor.records if record["step"] <= step]
    assert fresh.records == kept == lines(fresh)


def test_a_line_cut_by_the_interruption_does_not_stop_the_run(monitor: Monitor) -> None:
    """Killed while writing, or on a full disk: the half line goes, the rest stays."""
    with monitor.path.open("a") as file:
        file.write('{"step": 6, "lo')
    fresh = Monitor(monitor.folder)
    fresh.resume(6)
    assert fresh.records == monitor.records == lines(fresh)


def test_there_is_nothing_to_resume_at_first(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "new")
    monitor.resume(0)
    assert monitor.records == [] and not monitor.folder.exists()


def test_curves_are_a_picture(monitor: Monitor) -> None:
    """Scalars that only some steps have included; more of them make it higher."""
    heights = []
    for extra in ({"valid_loss": 1.0}, {f"more_{i}": float(i) for i in range(4)}):
        monitor.write(6, extra)
        monitor.plot()
        picture = matplotlib.image.imread(monitor.folder / "curves.png")
        assert picture.std() > 0.01  # not blank
        heights.append(picture.shape[0])
    assert heights[1] > heights[0]


def test_nothing_to_draw_is_no_picture(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.plot()
    assert not (tmp_path / "curves.png").exists()
