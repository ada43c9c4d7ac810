"""Two processes are one: same losses, one set of files, a clean end when one dies, exact resume."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from w2v_plugin.manifests import Utterance, write_manifest

ROOT = Path(__file__).resolve().parent.parent
SMALL = "{dim: 16, layers: 2, heads: 2, ffn_dim: 32, channels: [8, 8, 8, 8, 8, 8, 8]}"

# A recipe in which rank 1 is killed after update 5: no time to say goodbye.
KILLED = """
import os, runpy, signal, sys
from w2v_plugin.training import StepBrain
original = StepBrain.on_fit_batch_end
def die(self, *args):
    original(self, *args)
    if type(self).__name__ == "PretrainBrain" and self.optimizer_step == 5 and self.rank == 1 \\
            and self.checkpointer is not None:
        os.kill(os.getpid(), signal.SIGKILL)
StepBrain.on_fit_batch_end = die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve utterances of noise with a rhythm, 1-2 s."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    utterances = []
    for i in range(12):
        samples = 16000 + 1400 * i
        rhythm = torch.sin(torch.arange(samples) / (400 + 60 * i)) ** 2
        wav = 0.2 * rhythm * torch.randn(samples, generator=generator)
        path = folder / f"{i}.wav"
        soundfile.write(path, wav.numpy(), 16000)
        utterances.append(Utterance(f"u{i}", path, f"s{i % 2}", "", f"list:{i + 1}"))
    write_manifest(folder / "all.csv", utterances)
    return folder / "all.csv"


def launch(
    processes: int, yaml: str, manifest: Path, out: Path, *more: str, script: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The pretraining recipe under torchrun, or alone."""
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command += [f"--master_port={port}"]
        more = (*more, "--distributed_backend=gloo")
    command += [] if script is None else [str(script)]
    command += [
        str(ROOT / "recipes" / "pretrain.py"),
        str(ROOT / "hparams" / "pretrain" / yaml),
        *("--device=cpu", "--noprogressbar", f"--train_csv={manifest}", f"--valid_csv={manifest}"),
        *(f"--output_folder={out}", f"--wav2vec2={SMALL}", "--batch_s=5", "--updates=8"),
        *("--valid_every=4", "--log_every=1", *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)


def succeeded(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def logged(folder: Path) -> dict[float, dict[str, float]]:
    """What each update reports, times and counts of audio aside."""
    aside = {"seconds", "valid_seconds", "audio_h"}
    found: dict[float, dict[str, float]] = {}
    for record in records(folder):
        values = {k: v for k, v in record.items() if k not in aside}
        found.setdefault(record["step"], {}).update(values)
    return found


def written_once(out: Path) -> None:
    """A line per update and per validation, the best and the latest checkpoint, one plan."""
    steps = [record["step"] for record in records(out)]
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]  # 4 and 8 with their validations
    assert len((out / "train_log.txt").read_text().splitlines()) == 2
    assert 1 <= len(list((out / "save").glob("CKPT*"))) <= 2
    log = (out / "log.txt").read_text()
    assert log.count("Audio per update") == 1 and "x 2 processes" in log


def test_two_ranks_do_what_two_micro_batches_do(manifest: Path, tmp_path: Path) -> None:
    """Same batches, masks, negatives and dropout, hence the same losses and the same model.

    Without the diversity loss: it is that of all ranks together, but of one micro-batch at a time.
    Float32, other orders of summation, eight updates of Adam: 1e-3.
    """
    settings = (
        *("--quantizer={channels: 8, codes: 20, dim: 8}", "--model={diversity_weight: 0.0}"),
        "--warm_start_updates=0",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    both = [
        launch(1, "tiny_gumbel.yaml", manifest, one, "--grad_accumulation_factor=2", *settings),
        launch(2, "tiny_gumbel.yaml", manifest, two, *settings),
    ]
    for done in both:
        succeeded(done)
    alone, together = logged(one), logged(two)
    assert set(alone) == set(together) == set(range(1, 9))
    for step, values in alone.items():
        for name in ("loss", "contrastive", "accuracy", "grad_norm", "valid_loss"):
            if name in values:
                assert together[step][name] == pytest.approx(values[name], rel=1e-3, abs=1e-5), (
                    step,
                    name,
                )
    written_once(two)
    states = [
        torch.load(folder / "model" / "wav2vec2.ckpt", weights_only=True) for folder in (one, two)
    ]
    assert all(
        torch.allclose(value, states[1][name], atol=1e-3) for name, value in states[0].items()
    )


@pytest.mark.slow
def test_killed_rank_clean_end_exact_resume(manifest: Path, tmp_path: Path) -> None:
    """kill -9 of one rank: the other ends with it, and the same command goes on to the same end.

    Nearest codewords with restarts, so that the codebook's own state must survive, too. The same
    processes do the same sums in the same order: no tolerance.
    """
    settings = (
        "--quantizer={channels: 8, codes: 20, dim: 8, restart_every: 3}",
        *("--warm_start_updates=3", "--ckpt_interval_minutes=0", "--ckpt_interval_steps=1"),
    )
    succeeded(launch(2, "tiny.yaml", manifest, tmp_path / "whole", *settings))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    begin = time.monotonic()
    done = launch(2, "tiny.yaml", manifest, tmp_path / "killed", *settings, script=script)
    assert done.returncode != 0
    assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in done.stderr
    assert time.monotonic() - begin < 200  # not a hang; a rank alone would wait for ten minutes
    before = logged(tmp_path / "killed")
    assert 5 in before and 8 not in before
    succeeded(launch(2, "tiny.yaml", manifest, tmp_path / "killed", *settings))
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    assert len(logged(tmp_path / "whole")) == 8
