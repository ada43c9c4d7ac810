"""Tables and picture of error against minutes of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def table(metric: str, compared: dict[str, Any], controls: Sequence[str]) -> list[str]:
    """Markdown of a metric: curves of all arms; differences, ratios and labels for equal error
    against the controls.

    Parameters
    ----------
    metric : str
        Its name, CER or WER.
    compared : dict
        From `compare`.
    controls : sequence of str
        Arms that the others are compared with, and each with those after it.
    """

    def shown(row: dict[str, Any]) -> bool:
        arm, other = ([*controls, name].index(name) for name in (row["arm"], row["other"]))
        return other < len(controls) and (arm < other or arm == len(controls))

    curves, gaps, ratios, needed = {}, {}, {}, {}
    for row in compared["curves"]:
        cell = f"{row['error']:.1f} {ends(row['error_95'], '.1f')} ("
        cell += " ".join(f"{error:.1f}" for error in row["by_seed"]) + ")"
        curves[row["arm"], row["minutes"]] = cell
    for row in compared["differences"]:
        if not shown(row):
            continue
        cell = f"{row['points']:+.1f} {ends(row['points_95'], '+.1f')}"
        gaps[f"{row['arm']} - {row['other']}", row["minutes"]] = cell
        cell = f"{row['ratio']:.2f} {ends(row['ratio_95'], '.2f')}"
        ratios[f"{row['arm']} / {row['other']}", row["minutes"]] = cell
    for row in compared["labels_needed"]:
        if not shown(row):
            continue
        cell = f"{row['other_minutes']} {ends(row['other_minutes_95'], '')}"
        needed[f"{row['other']} as good as {row['arm']}", row["minutes"]] = cell
    return [
        *rows(f"{metric}, % [95 %] (each seed)", curves),
        *rows(f"Difference in {metric}, points [95 %]", gaps),
        *rows(f"Ratio of {metric} [95 %]", ratios),
        *rows(f"Minutes of labels for equal {metric} [95 %]", needed),
    ]


def ends(interval: Sequence[Any], form: str) -> str:
    return f"[{', '.join(format(end, form) for end in interval)}]"


def rows(title: str, cells: dict[tuple[str, float], str]) -> list[str]:
    """Columns and minutes of labels, in the order in which they come."""
    if not cells:  # the control alone, so far
        return []
    heads, sizes = (list(dict.fromkeys(some)) for some in zip(*cells, strict=True))
    lines = [title, "", f"| minutes | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for size in sizes:
        lines.append(f"| {size:g} | {' | '.join(cells[head, size] for head in heads)} |")
    return [*lines, ""]


def plot(minutes: Sequence[float], reports: dict[str, Any], path: Path) -> None:
    """Error against minutes of labels; bars are intervals, dots are seeds."""
    figure, axes = plt.subplots(1, len(reports), figsize=(11, 4.2), layout="constrained")
    for axis, (metric, report) in zip(axes, reports.items(), strict=True):
        for arm in dict.fromkeys(point["arm"] for point in report["curves"]):
            points = [point for point in report["curves"] if point["arm"] == arm]
            line = axis.plot(minutes, [p["error"] for p in points], marker="o", label=arm)
            color = line[0].get_color()
            low, high = np.array([p["error_95"] for p in points]).T
            axis.fill_between(minutes, low, high, color=color, alpha=0.15)
            for size, point in zip(minutes, points, strict=True):
                each = point["by_seed"]
                axis.plot([size] * len(each), each, ".", color=color, alpha=0.5, markersize=4)
        axis.set(xscale="log", xlabel="labels, minutes", ylabel=f"{metric} on the test set, %")
        axis.set_xticks(minutes, [f"{size:g}" for size in minutes], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
