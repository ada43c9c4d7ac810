"""What happens during training: a line per logged step in `steps.jsonl`, TensorBoard, PNG curves.

`steps.jsonl` is the source; the picture is drawn from it, so that it survives interruptions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from speechbrain.utils.distributed import if_main_process
from torch.utils.tensorboard import SummaryWriter


class Monitor:
    """Writes scalars of a run.

    Parameters
    ----------
    folder : str or Path
        Where `steps.jsonl`, `tensorboard/` and `curves.png` go.

    Example
    -------
    >>> import tempfile
    >>> monitor = Monitor(tempfile.mkdtemp())
    >>> monitor.write(1, {"loss": 4.6})
    >>> monitor.records
    [{'step': 1, 'loss': 4.6}]
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "steps.jsonl"
        self.records: list[dict[str, Any]] = []
        self.writer: SummaryWriter | None = None

    def resume(self, step: int) -> None:
        """Keep what was written up to `step`; later lines belong to work that is done again."""
        if self.path.is_file():
            lines = self.path.read_text().splitlines()
            records = [json.loads(line) for line in lines if line.endswith("}")]  # last: cut?
            self.records = [r for r in records if r["step"] <= step]
            if if_main_process():  # by a new file: a kill in this moment must not lose the old one
                new = self.path.with_suffix(".new")
                new.write_text("".join(json.dumps(r) + "\n" for r in self.records))
                new.replace(self.path)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Append one line; only the main process writes."""
        record = {"step": step, **{k: float(f"{v:.6g}") for k, v in scalars.items()}}
        self.records.append(record)
        if not if_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder / "tensorboard"))
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def plot(self) -> None:
        """Draw the scalars against the step into `curves.png`, training and validation together."""
        names = {name.removeprefix("valid_") for record in self.records for name in record}
        panels = sorted(names - {"step", "seconds", "audio_h", "chance"})
        if not panels or not if_main_process():
            return
        columns = 4
        rows = -(-len(panels) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, panels, strict=False):
            self.curve(axis, name, "training", alpha=0.6)
            self.curve(axis, f"valid_{name}", "validation", marker=".")
            if name == "accuracy":
                self.curve(axis, "chance", "chance, measured", linestyle="--", color="gray")
            axis.set_title(name)
            axis.grid(alpha=0.3)
        axes.flat[0].legend(fontsize="small")
        figure.savefig(self.folder / "curves.png", dpi=110)
        plt.close(figure)

    def curve(self, axis: Any, name: str, label: str, **style: Any) -> None:
        """One line, if there is anything to draw."""
        points = [(r["step"], r[name]) for r in self.records if name in r]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, **style)
