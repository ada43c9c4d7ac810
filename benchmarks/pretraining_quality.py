"""What each stack has learned after the same time of one CPU core: accuracy against minutes.

    python benchmarks/pretraining_quality.py --train train.csv --dev dev.csv --minutes 5 --jobs 2

Trains a model of 1 M parameters on the same batches of real audio in five arms: transformers,
SpeechBrain's lobes, fairseq's arithmetic and ours with one recipe, the paper's in small (Gumbel
2 x 160, masks of 10 frames, diversity 0.1, no warm start), and ours as hparams/pretrain/tiny.yaml
has it (nearest codeword, short masks, log-mel warm start, whose time counts). So the last two rows
of the table tell what is arithmetic and what is recipe. A run ends after --minutes of *process
time* in its steps, whatever else the machine does; learning rate and Gumbel temperature are
functions of the share of that time. Evaluation, which does not count, is one function for all: the
same utterances, masks and negatives, codes without noise, chance measured with a random context.

The learning rate of the peers' recipe is chosen for each stack by the accuracy of seed 0 on --dev;
the other seeds follow with it. Manifests are those of recipes/prepare (ID,duration,wav,...).
Every finished run is a file in --out, so that the same command goes on where it was interrupted.
Writes a section of benchmarks/RESULTS.md and benchmarks/pretraining_quality.png.

Time: arms x minutes x (seeds + 1) / jobs, plus a tenth: 19 runs, about an hour for 5 minutes,
3 seeds and 2 jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
from quality_runs import ARMS, RECIPE, prepare, train_arm

LEARNING_RATES = (0.0005, 0.002)
PICTURE = measure.HERE / "pretraining_quality.png"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="manifest of unlabelled audio")
    parser.add_argument("--dev", type=Path, help="manifest of audio to evaluate on")
    parser.add_argument("--minutes", type=float, default=5.0, help="of process time, a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining_quality"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train_arm(**json.loads(arguments.worker))
        return
    if arguments.train is None or arguments.dev is None:
        parser.error("--train and --dev are needed: manifests of audio")
    prepare(arguments.out, arguments.train, arguments.dev)
    first = [(arm, lr, 0) for arm in ARMS for lr in rates(arm)]
    runs = together(arguments, first)
    best = {arm: max(rates(arm), key=lambda lr: final(runs[arm, lr, 0])) for arm in ARMS}
    rest = [(arm, best[arm], seed) for seed in range(1, arguments.seeds) for arm in ARMS]
    runs |= together(arguments, rest)
    chosen = {arm: [runs[arm, best[arm], seed] for seed in range(arguments.seeds)] for arm in ARMS}
    write_report(arguments, chosen, {key: final(runs[key]) for key in first})
    draw(chosen)


def rates(arm: str) -> tuple[float, ...]:
    """Learning rates to try; our recipe has its own."""
    return (0.0,) if arm == RECIPE else LEARNING_RATES


def final(run: dict[str, Any]) -> float:
    """Accuracy at the end, with the paper's masks."""
    return run["curve"][-1]["accuracy"]


def together(
    arguments: argparse.Namespace, keys: list[tuple[str, float, int]]
) -> dict[tuple[str, float, int], dict[str, Any]]:
    """The runs of these (arm, learning rate, seed), `jobs` at a time; finished ones are read."""

    def one(key: tuple[str, float, int]) -> dict[str, Any]:
        arm, lr, seed = key
        slug = "".join(c if c.isalnum() else "_" for c in arm)
        path = arguments.out / f"{slug}.lr{lr:g}.seed{seed}.min{arguments.minutes:g}.json"
        if not path.is_file():
            options = {"arm": arm, "lr": lr, "seed": seed, "budget_s": 60 * arguments.minutes}
            options |= {"data": str(arguments.out), "path": str(path)}
            command = [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(options)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, env=environment, check=True)
        return json.loads(path.read_text())

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return dict(zip(keys, pool.map(one, keys), strict=True))


def write_report(
    arguments: argparse.Namespace,
    chosen: dict[str, list[dict[str, Any]]],
    grid: dict[tuple[str, float, int], float],
) -> None:
    rows = []
    for arm, runs in chosen.items():
        ends = [run["curve"][-1] for run in runs]
        row = [arm, f"{runs[0]['lr']:g}", f"{statistics.mean(run['updates'] for run in runs):.0f}"]
        for what in ("accuracy", "chance", "accuracy_short", "chance_short"):
            row.append(spread([end[what] for end in ends], ".3f"))
        row.append(spread([end["perplexity"] for end in ends], ".0f"))
        rows.append([*row, spread([100 * end["usage"] for end in ends], ".0f") + " %"])
    header = ["arm", "lr", "updates", "accuracy", "chance", "accuracy, short masks", "chance"]
    header += ["code perplexity of 160", "codes used"]
    tried = "; ".join(
        f"{arm} {lr:g}: {accuracy:.3f}" for (arm, lr, _), accuracy in grid.items() if lr
    )
    command = f"`python benchmarks/pretraining_quality.py --minutes {arguments.minutes:g} "
    command += f"--seeds {arguments.seeds} --jobs {arguments.jobs} --train "
    command += f"{arguments.train.name} --dev {arguments.dev.name}`"
    measure.write_section(
        "Pretraining: quality after equal time of one core",
        f"{command}. {measure.circumstances()} Mean and range over {arguments.seeds} seeds after "
        f"{arguments.minutes:g} minutes of process time; dim 128, 4 layers, extractor of 32 to 128 "
        "channels with layer norms. SpeechBrain's model differs where its lobes leave no choice: "
        "sinusoidal positions, no biases in the extractor. Accuracy: the true target scored above "
        "all of 100 negatives that differ from it, evaluation mode, masks of 10 frames at 0.65, "
        "and short ones of 5 frames at 0.45. Chance: the same with a random context. A collapsed "
        "codebook counts as wrong. Accuracy means something beside the perplexity only: with few "
        "codes most negatives equal the target and are left out, and what is left is easy. "
        "All clip at 5. Accuracy of seed 0 by learning rate: "
        f"{tried}. The rate was chosen on the same utterances, which favours the rows that have a "
        f"choice, not ours with its recipe.\n\n{measure.table(header, rows)}\n\n"
        f"![accuracy against minutes]({PICTURE.name})",
    )


def spread(values: list[float], form: str) -> str:
    """Mean (lowest-highest)."""
    low, high = min(values), max(values)
    return f"{statistics.mean(values):{form}} ({low:{form}}-{high:{form}})"


def draw(chosen: dict[str, list[dict[str, Any]]]) -> None:
    """Accuracy against minutes: mean over the seeds, and their range as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for arm, runs in chosen.items():
        points = list(zip(*(run["curve"] for run in runs), strict=True))
        minutes = [statistics.mean(p["seconds"] for p in point) / 60 for point in points]
        values = [[p["accuracy"] for p in point] for point in points]
        line = axes.plot(minutes, [statistics.mean(v) for v in values], marker=".", label=arm)
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(minutes, low, high, alpha=0.2, color=line[0].get_color())
    chance = statistics.mean(run["curve"][-1]["chance"] for runs in chosen.values() for run in runs)
    axes.axhline(chance, color="gray", linestyle=":", label="chance")
    axes.set(xlabel="minutes of one core", ylabel="contrastive accuracy, masks of 10 frames")
    axes.legend()
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
