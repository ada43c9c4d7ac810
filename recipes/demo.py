"""The whole pipeline in under ten minutes on two cores, without network or GPU.

    make demo        or        python recipes/demo.py [--out runs/demo]

Makes a synthetic corpus of spoken commands (espeak-ng, many voices), pretrains the tiny model on
half an hour of it without labels, fine-tunes with CTC on another half hour, and reports word error
rates on voices and sentences that were never heard. Three arms share labels, updates and settings,
so that the table shows what each stage earns:

    pretrained   warm start, contrastive pretraining, CTC
    warm_start   warm start (log-mel regression) only, CTC: the control for the contrastive stage
    scratch      CTC only, everything trained from random weights

Started again, it goes on where it stopped. Results: <out>/results.json, wer_curves.png, and the
model folder <out>/pretrained/model for `w2v transcribe`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tqdm import tqdm

from w2v_plugin.interfaces import Wav2Vec2ASR
from w2v_plugin.manifests import read_manifest

ROOT = Path(__file__).resolve().parent.parent
PRETRAIN_UPDATES, CTC_UPDATES = 1400, 3000
ARMS = ("pretrained", "warm_start", "scratch")
SETTINGS = ("test", "test_640ms", "test_320ms", "odd", "odd_640ms", "odd_320ms")


def run(script: str, *arguments: str, log: Path) -> None:
    """Run a recipe in a process of its own with one thread; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "recipes" / script), *arguments]
    with log.open("a") as file:
        code = subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, **threads}
        ).returncode
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{script} stopped with exit code {code}. The end of {log}:\n{tail}")


def pretrain(out: Path) -> None:
    run(
        "pretrain.py",
        str(ROOT / "hparams/pretrain/tiny.yaml"),
        "--device=cpu",
        "--noprogressbar",
        f"--train_csv={out}/corpus/unlabelled.csv",
        f"--valid_csv={out}/corpus/dev.csv",
        f"--output_folder={out}/pretraining",
        f"--updates={PRETRAIN_UPDATES}",
        "--batch_s=8",
        log=out / "logs" / "pretraining.txt",
    )


def finetune(out: Path, arm: str) -> None:
    start = {
        "pretrained": out / "pretraining" / "model",
        "warm_start": out / "pretraining" / "warm_start",
        "scratch": "null",
    }
    tests = {"test": f"{out}/corpus/test.csv", "odd": f"{out}/corpus/test_odd.csv"}
    run(
        "finetune_ctc.py",
        str(ROOT / "hparams/ctc/tiny.yaml"),
        "--device=cpu",
        "--noprogressbar",
        f"--train_csv={out}/corpus/train.csv",
        f"--valid_csv={out}/corpus/dev.csv",
        f"--test_csvs={json.dumps(tests)}",
        f"--output_folder={out}/{arm}",
        f"--pretrained={start[arm]}",
        f"--updates={CTC_UPDATES}",
        "--valid_every=250",
        "--chunkwise_prob=0.6",
        "--eval_chunks=[null, 32, 16]",
        log=out / "logs" / f"{arm}.txt",
    )


def last_step(folder: Path) -> int:
    path = folder / "steps.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def watch(out: Path, done: threading.Event) -> None:
    """One progress bar per stage, from what the stages write."""
    totals = {"pretraining": PRETRAIN_UPDATES, **dict.fromkeys(ARMS, CTC_UPDATES)}
    quiet = not sys.stderr.isatty()  # a log gets a line every half minute instead
    bars = {
        name: tqdm(total=total, desc=f"{name:<12}", unit="update", position=i, disable=quiet)
        for i, (name, total) in enumerate(totals.items())
    }
    finished = False
    while not finished:
        finished = done.wait(30.0 if quiet else 1.0)
        steps = {name: last_step(out / name) for name in totals}
        if quiet:
            print("updates: " + ", ".join(f"{k} {v}/{totals[k]}" for k, v in steps.items()))
        for name, bar in bars.items():
            bar.n = steps[name]
            bar.refresh()
    for bar in bars.values():
        bar.close()


def train_all(out: Path) -> None:
    """Two lanes, one core each; the warm start is long done when the second lane needs it."""
    failures: list[BaseException] = []

    def lane(*stages: tuple) -> None:
        try:
            for stage, *arguments in stages:
                stage(out, *arguments)
        except BaseException as error:
            failures.append(error)

    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(out, done))
    lanes = [
        threading.Thread(target=lane, args=((pretrain,), (finetune, "pretrained"))),
        threading.Thread(target=lane, args=((finetune, "scratch"), (finetune, "warm_start"))),
    ]
    for thread in (watcher, *lanes):
        thread.start()
    try:
        for thread in lanes:
            thread.join()
    finally:
        done.set()
        watcher.join()
    if failures:
        raise failures[0]


def plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Word error rate on the development voice against seconds of CTC training."""
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for arm, records in curves.items():
        seconds = [r["valid_seconds"] for r in records]
        axis.plot(seconds, [r["valid_WER"] for r in records], marker=".", label=arm)
    axis.set(xlabel="seconds of CTC training (one core)", ylabel="WER on dev, %", ylim=(0, 105))
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """WER / CER in percent, one row per arm."""
    lines = [f"{'WER / CER, %':<14}" + "".join(f"{name:>16}" for name in SETTINGS)]
    for arm in ARMS:
        cells = [f"{scores[arm][s]['WER']:.1f} / {scores[arm][s]['CER']:.1f}" for s in SETTINGS]
        lines.append(f"{arm:<14}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def transcribe_some(out: Path, count: int = 5) -> None:
    """Show what the model says about a few unheard files."""
    asr = Wav2Vec2ASR.from_hparams(source=str(out / "pretrained" / "model"))
    rows = read_manifest(out / "corpus" / "test.csv")
    for row in rows[:: max(len(rows) // count, 1)][:count]:
        print(f"\n{Path(row['wav']).name}\n  said   {row['wrd']}")
        print(f"  heard  {asr.transcribe_file(row['wav']).lower()}")


def report(out: Path, seconds: float) -> None:
    """results.json, the table and the picture."""
    found = {arm: json.loads((out / arm / "results.json").read_text()) for arm in ARMS}
    scores = {arm: found[arm]["test"] for arm in ARMS}
    plot({arm: found[arm]["valid"] for arm in ARMS}, out / "wer_curves.png")
    pretraining = json.loads((out / "pretraining" / "results.json").read_text())
    results = {
        "wer": {arm: scores[arm]["test"]["WER"] for arm in ARMS},
        "seconds": seconds,
        "scores": scores,
        "training_seconds": {arm: found[arm]["seconds"] for arm in ARMS},
        "pretraining": pretraining,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{table(scores)}\n")
    print(
        "test: unseen voices m5, f4, linda. odd: unseen voices m8, Mike, klatt5. 640ms, 320ms: the"
    )
    print("same model, seeing 640 or 320 ms at a time and the past (masked offline decoding).")
    print(
        f"Pretraining: accuracy {pretraining['valid_accuracy']:.3f} against a measured chance of "
        f"{pretraining['valid_chance']:.3f}, code perplexity "
        f"{pretraining['valid_code_perplexity']:.0f} of 160.\n"
        "One synthesizer, 29 words, one seed: this shows that the pipeline works from end to end.\n"
        "It does not show that contrastive pretraining saves labels: compare the first two rows."
    )
    print(f"\n{seconds:.0f} s in all. {out}/results.json, {out}/wer_curves.png")
    model = shlex.quote(str(out / "pretrained" / "model"))
    wavs = shlex.quote(str(out / "corpus" / "wavs" / "test"))
    print(f"Try: .venv/bin/w2v transcribe {wavs} --model {model}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="output folder")
    out = parser.parse_args().out.resolve()
    clock = out / "seconds.json"  # a run that was interrupted adds up
    spent = json.loads(clock.read_text()) if clock.is_file() else 0.0
    started = time.perf_counter()
    try:
        print("Making the corpus ...", flush=True)
        run("prepare/commands.py", f"--out={out}/corpus", log=out / "logs" / "corpus.txt")
        if not all((out / arm / "results.json").is_file() for arm in ARMS):
            train_all(out)
            spent += time.perf_counter() - started
    except KeyboardInterrupt:
        spent += time.perf_counter() - started
        sys.exit("Interrupted. Run the same command again to go on.")
    finally:
        clock.parent.mkdir(parents=True, exist_ok=True)
        clock.write_text(json.dumps(spent))
    transcribe_some(out)
    report(out, spent)


if __name__ == "__main__":
    main()
