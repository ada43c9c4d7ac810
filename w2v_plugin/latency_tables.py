"""What `recipes/evaluate_streaming.py` measured, for people: tables and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def tables(report: dict[str, Any]) -> str:
    """All figures in Markdown, those that are known so far.

    Parameters
    ----------
    report : dict
        As in the recipe's `results.json`.

    Example
    -------
    >>> where = {"model": "m", "precision": "fp32", "hardware": "h", "threads": 1, "commit": "c"}
    >>> what = {"manifest": "t.csv", "utterances": 9, "seconds": 60, "utterances_without_times": 0}
    >>> rates = {"WER": 5.0, "CER": 1.0}
    >>> row = {"chunk": 16, "left": None, "offline": rates, "masked": rates, "streamed": rates}
    >>> row |= {"different": 0, "utterances": 9}
    >>> report = {**where, **what, "error_rates": [row], "latencies": {}}
    >>> tables(report).splitlines()[-1]
    '| 320 ms | all | 5.00 / 1.00 | 5.00 / 1.00 | 5.00 / 1.00 | 0 of 9 |'
    """
    lines = [
        f"{report['model']}, {report['precision']}, {report['hardware']}, {report['threads']} "
        f"thread(s), commit {report['commit']}. {report['utterances']} utterances of "
        f"{report['manifest']}, {report['seconds']:.0f} s; words of "
        f"{report['utterances_without_times']} have no times. WER / CER in percent; *differ*: "
        "utterances that are not streamed as they are masked.",
        "",
        "| chunk | left | offline | masked | streamed | differ |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["error_rates"]:
        chunk = "full" if row["chunk"] is None else f"{row['chunk'] * 20} ms"
        left = "all" if row["left"] is None else f"{row['left'] * 0.02:.2f} s"
        cells = " | ".join(both(row[key]) for key in ("offline", "masked", "streamed"))
        lines.append(f"| {chunk} | {left} | {cells} | {row['different']} of {row['utterances']} |")
    if found := report["latencies"]:
        lines += [
            f"\nLeft context {seconds(report['latency_left'])}, packets of 100 ms, each utterance "
            f"with {report['silence_s']:g} s of silence after it. Times in ms: p50 / p95 / p99.\n",
            f"| | {' | '.join(found)} |",
            "|---" * (len(found) + 1) + "|",
        ]
        columns = [waits(row) for row in found.values()]
        for name in columns[0]:
            lines.append(f"| {name} | {' | '.join(column[name] for column in columns)} |")
    if hour := report.get("one_stream"):
        lines += ["", "| one stream | |", "|---|---|"]
        lines += [
            f"| {key} | {spread(value) if isinstance(value, dict) else value} |"
            for key, value in hour.items()
        ]
    return "\n".join(lines) + "\n"


def waits(row: dict[str, Any]) -> dict[str, str]:
    """What a speaker waits for, at one setting."""
    return {
        "WER / CER, %": both(row),
        "algorithmic, worst": f"{row['algorithmic_ms']:.0f}",
        "compute": spread(row["compute_ms"]),
        "RTF": f"{row['rtf']:.3f}",
        "user-perceived": spread(row["perceived_ms"]),
        "emission": spread(row["emission_ms"]),
        "first text": spread(row["first_text_ms"]),
        "finalization by rules": spread(row["final_ms"]),
        "finalization, known end": spread(row["final_known_end_ms"]),
        "words recognized, so timed": "{timed} of {said}".format(**row["words"]),
        "ends that rules found": "{found} of {said}".format(**row["ends"]),
        "unstable words, %": f"{100 * row['unstable_words']:.1f}",
        "words shown in part, %": f"{100 * row['grown_words']:.1f}",
        "state, MiB": f"{row['state_mib']:.2f}",
    }


def both(rates: dict[str, float]) -> str:
    return f"{rates['WER']:.2f} / {rates['CER']:.2f}"


def spread(values: dict[str, float] | None) -> str:
    if values is None:
        return ""
    return " / ".join(f"{value:.0f}" for name, value in values.items() if name != "n")


def seconds(left: float | None) -> str:
    return "all" if left is None else f"{left:g} s"


def draw(report: dict[str, Any], path: Path) -> None:
    """Word error rate against user-perceived latency, one line for each setting.

    Parameters
    ----------
    report : dict
        As in the recipe's `results.json`, with at least one of the latencies.
    path : Path
        The PNG file.

    Example
    -------
    >>> import tempfile
    >>> rates = {"WER": 5.0, "perceived_ms": {"p50": 200.0, "p95": 400.0}}
    >>> report = {"error_rates": [{"offline": {"WER": 4.0}}], "latencies": {"320 ms": rates}}
    >>> report |= {"latency_left": 5.12, "precision": "fp32"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw(report, Path(folder, "latency.png"))
    ...     Path(folder, "latency.png").stat().st_size > 1000
    True
    """
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, row in report["latencies"].items():
        if row["perceived_ms"] is None:
            continue
        low, high = row["perceived_ms"]["p50"], row["perceived_ms"]["p95"]
        line = ":" if "overlap" in name else "-"
        (drawn,) = axis.plot([low, high], [row["WER"]] * 2, line + "|", ms=10, label=name)
        axis.plot(low, row["WER"], "o", color=drawn.get_color())
    rates = [row["WER"] for row in report["latencies"].values()]
    offline = report["error_rates"][0]["offline"]["WER"]
    axis.axhline(offline, color="gray", linestyle="--", label=f"whole utterance: {offline:.1f} %")
    axis.set_xlabel("from the end of a word until it is shown (ms): median and 95 %")
    axis.set_ylabel("word error rate (%)")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1.2 * max(*rates, offline, 1))
    axis.set_title(f"left context {seconds(report['latency_left'])}, {report['precision']}")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
