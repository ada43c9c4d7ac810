"""Does a start save labels? Error against minutes of labels, for several starts (arms).

Of one language:
    python recipes/label_efficiency.py hparams/ctc/tiny.yaml \\
        --arms pretrained=runs/mine/model warm_start=runs/mine/warm_start scratch= \\
        --train_csv train.csv --valid_csv dev.csv --test_csv test.csv \\
        --minutes 1 3 10 30 60 300 --seeds 1 2 3 --seconds 100 --jobs 2 [--key value ...]
Transfer to another one (what is in front of `scratch` learned from English audio):
    python recipes/label_efficiency.py hparams/ctc/tiny.yaml --vocab de/vocab.json \\
        --arms english=runs/en/model continued=runs/en_de/model warm_start=runs/en/warm_start \\
        scratch= --train_csv de/train.csv --valid_csv de/dev.csv --test_csv de/test.csv \\
        --controls warm_start scratch --minutes 5 15 60 --seconds 150 --jobs 2

An arm is a name and the model folder that it starts from, of which it takes the body; without a
folder it starts from random weights. --heads names arms that take the rows of the head, too, for
symbols that are in both vocabularies (blank and word boundary in any case), as transfer.py does.
Every fine-tuning gets the same compute, --seconds: CPU time of the training steps on a CPU, where
each process has one thread; time by the clock on an accelerator. The learning rate follows the
share that is spent. A seed draws the labels, the same for all arms and each set inside the next,
and the random weights.

Nothing is chosen on the test set. Each arm gets the learning rate, and an extractor that is trained
or frozen, which have the lowest character error rate (CER) on the development set with
--tune_minutes of labels, on average over the first --tune_seeds seeds. In a run, the weights with
the lowest development CER are tested, out of --validations in equal parts of the budget.

Further options override keys of the YAML or are SpeechBrain's (--device cuda, --precision bf16).
Started again with the same output folder, finished runs are kept; more sizes, seeds and arms can be
asked for. Writes after each seed: results.json, table.md, curve.png; beside them labels/ (the label
sets) and runs/ (every fine-tuning).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import speechbrain as sb
import torch
import yaml
from speechbrain.utils.epoch_loop import EpochCounter

from w2v_plugin.budget import WHOLE, BudgetBrain
from w2v_plugin.circumstances import circumstances
from w2v_plugin.data import by_length, durations, speech_dataset
from w2v_plugin.folders import load_pretrained
from w2v_plugin.label_curves import compare, label_order, nearest_prefix
from w2v_plugin.label_tables import plot, rows, table
from w2v_plugin.launch import read_hparams
from w2v_plugin.manifests import COLUMNS
from w2v_plugin.transfer import known_rows

METRICS = ("CER", "WER")


@dataclass(frozen=True)
class Job:
    """One fine-tuning, kept under its name."""

    arm: str
    minutes: float
    seed: int
    learning_rate: float
    extractor: str  # trained or frozen

    @property
    def labels(self) -> str:
        return f"seed{self.seed}_{self.minutes:g}min"

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.labels}_lr{self.learning_rate:g}_{self.extractor}"


Results = dict[Job, dict[str, Any]]


def build(job: Job, options: argparse.Namespace, folder: Path) -> BudgetBrain:
    """What the YAML says, but for what this study decides; with the weights of the arm."""
    decided = {
        "seed": job.seed,
        "train_csv": str(options.output_folder / "labels" / f"{job.labels}.csv"),
        "valid_csv": str(options.valid_csv),
        "output_folder": str(folder),
        "encoder_lr": job.learning_rate,
        "head_lr": job.learning_rate,
        "best_by": "CER",
    }
    hparams = read_hparams(options.hparams, options.overrides + "\n" + yaml.safe_dump(decided))
    if folder_of_arm := options.arms[job.arm]:
        load_pretrained(folder_of_arm, hparams["wav2vec2"])
    if job.arm in options.heads:
        known_rows(folder_of_arm, hparams["model"], hparams["vocabulary"])
    if job.extractor == "frozen":
        hparams["wav2vec2"].freeze_extractor()
    hparams |= {
        "seconds": options.seconds,
        "schedule": partial(hparams["schedule"], total=WHOLE),
        "epoch_counter": EpochCounter(options.validations),
        "optimizer_step_limit": None,
    }
    return BudgetBrain(hparams["modules"], hparams["opt_class"], hparams, options.run_opts)


def finetune(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Train and test; the result is written last, so that its presence means finished."""
    path = result_path(options.output_folder, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    brain = build(job, options, path.parent)
    how = {"vocabulary": brain.hparams.vocabulary, "max_s": brain.hparams.max_s}
    manifests = (brain.hparams.train_csv, options.valid_csv, options.test_csv)
    train, valid, test = (
        speech_dataset(path, keep_audio=True, evaluation=i > 0, **how)
        for i, path in enumerate(manifests)
    )
    brain.fit_on(train, valid)
    brain.evaluate(test, test_loader_kwargs=by_length(test, brain.hparams.batch_s))
    result = {
        **asdict(job),
        "labels_s": sum(durations(train)),
        "seconds": brain.spent,
        "updates": brain.optimizer_step,
        "valid_CER": [r["valid_CER"] for r in brain.monitor.records if "valid_CER" in r],
        **{metric: brain.test_scores[metric] for metric in METRICS},
        "utterances": [score["key"] for score in brain.wer.scores],
    }
    for metric, stats in zip(METRICS, (brain.cer, brain.wer), strict=True):
        counts = [[score["num_edits"], score["num_ref_tokens"]] for score in stats.scores]
        result[f"{metric}_counts"] = counts
    write(path, json.dumps(result))
    return result


def result_path(folder: Path, job: Job) -> Path:
    return folder / "runs" / job.name / "result.json"


def write(path: Path, text: str) -> None:
    """All of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read_arms(options: argparse.Namespace) -> None:
    """`--arms` and `--controls` as they are used: names in the order given, folders that exist."""
    pairs = [arm.partition("=") for arm in options.arms]
    for name, equals, folder in pairs:
        if not (name and equals) or (folder and not Path(folder, "wav2vec2.ckpt").is_file()):
            raise ValueError(
                f"--arms {name}{equals}{folder}: expected NAME=FOLDER, a model folder that "
                "training wrote, or NAME= for random weights."
            )
    options.arms = {name: folder for name, _, folder in pairs}
    if len(options.arms) < len(pairs):
        raise ValueError("--arms: a name is given twice. Give each start its own.")
    if len(options.arms) < 2:
        raise ValueError("--arms: one start alone. Give those that it shall be compared with, too.")
    options.controls = options.controls or [pairs[-1][0]]
    for option in ("controls", "heads"):
        if unknown := set(getattr(options, option)) - set(options.arms):
            raise ValueError(f"--{option} {' '.join(unknown)}: not among {[*options.arms]}.")
    for arm in options.heads:
        if not Path(options.arms[arm], "head.ckpt").is_file():
            raise ValueError(f"--heads {arm}: its folder has no head.ckpt, no head was trained.")


def check_settings(options: argparse.Namespace) -> None:
    """Refuse an output folder whose runs cannot be compared with those to come."""
    names = ("hparams", "train_csv", "valid_csv", "test_csv")
    files = {name: getattr(options, name) for name in names}
    files |= {arm: Path(f, "wav2vec2.ckpt") for arm, f in options.arms.items() if f}
    settings = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    settings |= {name: getattr(options, name) for name in ("overrides", "seconds", "validations")}
    settings |= {f"head of {arm}": arm in options.heads for arm in options.arms}
    path = options.output_folder / "settings.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    if differ := [name for name in settings if found.get(name, settings[name]) != settings[name]]:
        raise ValueError(
            f"{options.output_folder} holds runs with another {', '.join(differ)}. Give another "
            "--output_folder, or all that was given when it was begun."
        )
    options.output_folder.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(found | settings, indent=2) + "\n")  # arms may be added


def write_labels(options: argparse.Namespace) -> None:
    """Manifests labels/seed<s>_<m>min.csv; those of a seed begin alike."""
    hparams = read_hparams(options.hparams, f"{options.overrides}\ntrain_csv: ''\nvalid_csv: ''")
    how = {"vocabulary": hparams["vocabulary"], "max_s": hparams["max_s"]}
    rows = list(speech_dataset(options.train_csv, **how).data.items())
    folder = options.output_folder / "labels"
    folder.mkdir(exist_ok=True)
    for seed in options.seeds:
        order = [rows[i] for i in label_order([row["spk_id"] for _, row in rows], seed)]
        for minutes in {*options.minutes, options.tune_minutes}:
            count = nearest_prefix([row["duration"] for _, row in order], 60 * minutes)
            path = folder / f"{Job('', minutes, seed, 0.0, '').labels}.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                writer.writerows(
                    [name, *(row[key] for key in COLUMNS[1:])] for name, row in order[:count]
                )


def prepare_process() -> None:
    """One thread, because what counts is CPU time; and no work for a study that was killed."""
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.disable(logging.INFO)


def end_with_parent() -> None:
    """Wait for the end of the process that gives out the work, and end, too."""
    parent = parent_process()
    assert parent is not None, "this runs in workers only"
    parent.join()
    os._exit(1)


def run_all(pool: ProcessPoolExecutor, jobs: Sequence[Job], options: argparse.Namespace) -> Results:
    """Results of all jobs; what an earlier start finished is read."""
    paths = {job: result_path(options.output_folder, job) for job in jobs}
    results = {job: json.loads(path.read_text()) for job, path in paths.items() if path.is_file()}
    running = {pool.submit(finetune, job, options): job for job in jobs if job not in results}
    try:
        for future in as_completed(running):
            job = running[future]
            results[job] = found = future.result()
            print(
                f"{time.strftime('%H:%M:%S')} {len(results)}/{len(jobs)} {job.name}: "
                f"{found['updates']} updates, dev CER {min(found['valid_CER']):.2f}, "
                f"test CER {found['CER']:.2f}, WER {found['WER']:.2f}",
                flush=True,
            )
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return {job: results[job] for job in jobs}


def tune(pool: ProcessPoolExecutor, options: argparse.Namespace) -> tuple[dict[str, Job], Results]:
    """The best job of each arm by development CER, and all that were tried."""
    grid = [
        Job(arm, options.tune_minutes, seed, rate, extractor)
        for seed, (arm, folder) in product(tuning_seeds(options), options.arms.items())
        for rate, extractor in product(
            options.learning_rates, options.extractors if folder else ["trained"]
        )
    ]
    results = run_all(pool, grid, options)
    found = defaultdict(list)
    for job in grid:
        found[replace(job, seed=options.seeds[0])].append(min(results[job]["valid_CER"]))
    best = {}
    for arm in options.arms:
        best[arm] = min((job for job in found if job.arm == arm), key=lambda job: sum(found[job]))
        print(f"{arm}: {best[arm].learning_rate:g}, extractor {best[arm].extractor}", flush=True)
    return best, results


def tuning_seeds(options: argparse.Namespace) -> list[int]:
    return options.seeds[: options.tune_seeds]


def updates(results: Results) -> dict[tuple[str, float], str]:
    """What the same compute paid for."""
    found = defaultdict(list)
    for job, result in results.items():
        found[job.arm, job.minutes].append(result["updates"])
    return {key: f"{sum(some) / len(some):.0f}" for key, some in found.items()}


def report(
    options: argparse.Namespace, best: dict[str, Job], tried: Results, results: Results
) -> None:
    """Write what is known after so many seeds; `results` run over seeds, sizes, arms."""
    if len({tuple(result["utterances"]) for result in results.values()}) > 1:
        raise ValueError("Runs were tested on different utterances: was audio out of reach?")
    reports = {}
    for metric in METRICS:
        counts = np.array([result[f"{metric}_counts"] for result in results.values()])
        counts = counts.reshape(-1, len(options.minutes), len(options.arms), *counts.shape[1:])
        counts = counts.transpose(2, 1, 0, 3, 4)
        reports[metric] = compare([*options.arms], options.minutes, counts, options.bootstrap)
    long = {"utterances", *(f"{metric}_counts" for metric in METRICS)}  # stay in runs/
    runs = [
        {key: value for key, value in result.items() if key not in long}
        for result in {**tried, **results}.values()
    ]
    chosen = {arm: f"{job.learning_rate:g}, extractor {job.extractor}" for arm, job in best.items()}
    everything = how(options) | {"chosen": chosen, **reports, "runs": runs}
    folder = options.output_folder
    write(folder / "results.json", json.dumps(everything, indent=1) + "\n")
    tables = [
        line
        for metric, compared in reports.items()
        for line in table(metric, compared, options.controls)
    ]
    text = "\n".join([*tables, *rows("Updates, mean over seeds", updates(results))])
    write(folder / "table.md", text)
    plot(options.minutes, reports, folder / "curve.png")
    print(text, flush=True)


def how(options: argparse.Namespace) -> dict[str, Any]:
    """What it takes to get the figures again."""
    settings = json.loads((options.output_folder / "settings.json").read_text(encoding="utf-8"))
    return circumstances(options.run_opts.device or "cpu") | {
        "jobs": options.jobs,
        "settings": settings,
        "grid": [options.learning_rates, options.extractors],
        "tuned_with": f"{options.tune_minutes:g} minutes, seeds {tuning_seeds(options)}",
    }


def study(options: argparse.Namespace) -> None:
    """Tune, then fine-tune seed by seed."""
    check_settings(options)
    write_labels(options)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), prepare_process) as pool:
        best, tried = tune(pool, options)
        for count in range(1, len(options.seeds) + 1):
            # arms last: those that are compared run at about the same time, under the same load
            cells = product(options.seeds[:count], options.minutes, options.arms)
            jobs = [replace(best[arm], minutes=size, seed=seed) for seed, size, arm in cells]
            report(options, best, tried, run_all(pool, jobs, options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the rest belongs to the YAML: --seed is not --seeds
    )
    add = options.add_argument
    add("hparams", type=Path, help="YAML for recipes/finetune_ctc.py")
    add("--arms", nargs="+", required=True, metavar="NAME=FOLDER", help="starts; NAME= is random")
    add("--controls", nargs="+", metavar="NAME", help="what the tables compare with (the last arm)")
    add("--heads", nargs="+", default=[], metavar="NAME", help="arms whose heads go on (none)")
    for name in ("train", "valid", "test"):
        add(f"--{name}_csv", type=Path, required=True)
    add("--output_folder", type=Path, default=Path("runs/label_efficiency"))
    add("--minutes", type=float, nargs="+", default=[1, 3, 10, 30, 60, 300], help="of labels")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of labels and random weights")
    add("--seconds", type=float, default=100.0, help="of compute per fine-tuning (default 100)")
    add("--validations", type=int, default=3, help="per fine-tuning (default 3)")
    add("--learning_rates", type=float, nargs="+", default=[0.001, 0.002, 0.004])
    add(
        "--extractors",
        nargs="+",
        choices=("trained", "frozen"),
        default=["trained", "frozen"],
        help="tried for starts with a folder (both); random ones are always trained",
    )
    add("--tune_minutes", type=float, default=30.0, help="labels for tuning (default 30)")
    add("--tune_seeds", type=int, default=1, help="how many tune: one may be lucky (default 1)")
    add("--jobs", type=int, default=1, help="fine-tunings at a time (default 1)")
    add("--bootstrap", type=int, default=1000, help="draws for intervals (default 1000)")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where it cannot be done."""
    options, rest = parser().parse_known_args(argv)
    _, options.run_opts, options.overrides = sb.parse_arguments(
        [str(options.hparams), "--noprogressbar", *rest]
    )
    options.minutes = sorted(set(options.minutes))
    try:
        read_arms(options)
        study(options)
    except (ValueError, OSError) as error:  # BadManifest is a ValueError
        print(f"label_efficiency.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
