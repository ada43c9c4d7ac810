"""Real LibriSpeech recordings, from an optional local speech folder (W2V_SPEECH)."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEECH = Path(os.environ.get("W2V_SPEECH", ROOT.parent / "shared" / "speech"))

pytestmark = pytest.mark.skipif(
    not (SPEECH / "LibriSpeech").is_dir(),
    reason="needs real speech: set W2V_SPEECH to a folder that holds LibriSpeech/",
)


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "recipes" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_twenty_utterances_are_learned_by_heart(tmp_path: Path) -> None:
    """hparams/ctc/overfit.yaml reaches WER <= 5 % on 20 real utterances, from scratch."""
    every, twenty = tmp_path / "all.csv", tmp_path / "twenty.csv"
    data = f"--data={SPEECH / 'LibriSpeech'}"
    run("prepare/librispeech.py", data, "--split=train-clean-5", f"--out={every}")
    with every.open(newline="") as file:
        rows = list(csv.reader(file))
    with twenty.open("w", newline="") as file:
        shortest = sorted(rows[1:], key=lambda row: float(row[1]))[:20]
        csv.writer(file).writerows([rows[0], *shortest])
    run(
        "finetune_ctc.py",
        str(ROOT / "hparams/ctc/overfit.yaml"),
        "--device=cpu",
        "--noprogressbar",
        f"--train_csv={twenty}",
        f"--output_folder={tmp_path}/out",
    )
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["test"]["train"]
    assert scores["WER"] <= 5.0
