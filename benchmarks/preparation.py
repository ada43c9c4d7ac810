"""Preparing a corpus: the command a user types, against the bare decoding of the same files.

    python benchmarks/preparation.py --data recordings          # close all else first

Writes its table into benchmarks/RESULTS.md. The command is recipes/prepare/folder.py in a fresh
process: imports, lists, decoding and checking of every file, manifest, data card with its picture.
The floor is libsndfile (package soundfile) reading every file once, in as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measure
import soundfile

PREPARE = measure.HERE.parent / "recipes" / "prepare" / "folder.py"
ENDINGS = (".flac", ".opus", ".ogg", ".wav")
FLOOR = "soundfile, decoding alone"


def audio_files(folder: Path) -> list[Path]:
    """Audio below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS)


def prepare(arguments: argparse.Namespace) -> None:
    """Run the whole command, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "train.csv"
        options = ["--data", str(arguments.data), "--out", str(out), "--need-text"]
        command = [sys.executable, str(PREPARE), *options, "--workers", str(arguments.workers)]
        subprocess.run(command, check=True, capture_output=True)


def decode(arguments: argparse.Namespace) -> float:
    """Read every file once, in a fresh process; seconds of audio."""
    options = {"folder": str(arguments.data), "workers": arguments.workers}
    return measure.work(__file__, "decode_all", **options)["seconds"]


def decode_all(folder: str, workers: int) -> dict:
    """Seconds of audio in a folder, known by decoding all of it."""
    with ThreadPoolExecutor(workers) as pool:
        seconds = sum(pool.map(seconds_of, audio_files(Path(folder))))
    return {"seconds": seconds}


def seconds_of(path: Path) -> float:
    samples, rate = soundfile.read(path, dtype="float32")
    return len(samples) / rate


def report(arguments: argparse.Namespace, times: dict[str, list[float]], hours: float) -> None:
    """Put the table into the report."""
    rows = []
    for name, seconds in times.items():
        ratio, low, high = measure.ratios(seconds, times[FLOOR])
        spread = f"{min(seconds):.1f}-{max(seconds):.1f}"
        median = f"{statistics.median(seconds):.1f}"
        rows.append([name, median, spread, f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"])
    files, name = len(audio_files(arguments.data)), arguments.data.name
    options = f"--data {name} --workers {arguments.workers} --rounds {arguments.rounds}"
    measure.write_section(
        f"Preparing a corpus: {name}",
        f"`python benchmarks/preparation.py {options}`. "
        f"{measure.circumstances()} {files} files, {hours:.1f} h, read from the disk's cache. "
        "Ratio: time over that of decoding in the same round, median and range.\n\n"
        + measure.table(["", "median s", "range", "ratio", "range"], rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of recordings with their texts")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5, help="after one round of warm-up")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _, options = arguments.worker
        print(json.dumps(decode_all(**json.loads(options))))
        return
    if not arguments.data or not audio_files(arguments.data):
        parser.error("--data needs to be a folder with audio")
    jobs = {
        FLOOR: lambda: decode(arguments),
        "recipes/prepare/folder.py": lambda: prepare(arguments),
    }
    times = measure.interleaved(jobs, arguments.rounds)
    report(arguments, times, decode(arguments) / 3600)


if __name__ == "__main__":
    main()
