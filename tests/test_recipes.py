"""The recipes run, resume exactly, join by files, and stop when they must."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from w2v_plugin.errors import TrainingCollapsed
from w2v_plugin.interfaces import Wav2Vec2ASR, Wav2Vec2Encoder
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.quantizer import NearestQuantizer
from w2v_plugin.training import StepBrain

ROOT = Path(__file__).resolve().parent.parent
SMALL = "{dim: 16, layers: 1, heads: 2, ffn_dim: 32, channels: [8, 8, 8, 8, 8, 8, 8]}"
QUIET = ["--device=cpu", "--noprogressbar"]
YAMLS = sorted((ROOT / "hparams").glob("*/*.yaml"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten utterances of chirps, 0.8-1.7 s."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    utterances = []
    for i in range(10):
        time = torch.arange(12800 + 1600 * i) / 16000
        wav = 0.3 * torch.sin(300 * (i + 2) * (1 + 0.2 * time) * time)
        wav += 0.01 * torch.randn(len(time), generator=generator)
        path = folder / f"{i}.wav"
        soundfile.write(path, wav.numpy(), 16000)
        utterances.append(Utterance(f"u{i}", path, f"s{i % 2}", "go on", f"list:{i + 1}"))
    write_manifest(folder / "all.csv", utterances)
    return folder / "all.csv"


def recipe(name: str) -> Callable[[list[str]], None]:
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def pretraining(manifest: Path, out: Path, *more: str) -> list[str]:
    return [
        str(ROOT / "hparams/pretrain/tiny.yaml"),
        *QUIET,
        f"--train_csv={manifest}",
        f"--valid_csv={manifest}",
        f"--output_folder={out}",
        f"--wav2vec2={SMALL}",
        "--quantizer={channels: 8, codes: 20, dim: 8}",
        "--updates=6",
        "--valid_every=3",
        "--log_every=1",
        "--batch_s=4",
        "--warm_start_updates=3",
        *more,
    ]


def tuning(manifest: Path, out: Path, *more: str) -> list[str]:
    return [
        str(ROOT / "hparams/ctc/tiny.yaml"),
        *QUIET,
        f"--train_csv={manifest}",
        f"--valid_csv={manifest}",
        f"--test_csvs={{test: {manifest}}}",
        f"--output_folder={out}",
        f"--wav2vec2={SMALL}",
        "--updates=6",
        "--valid_every=3",
        "--log_every=1",
        "--batch_s=4",
        *more,
    ]


def losses(folder: Path) -> dict[int, float]:
    records = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in records if "loss" in r}


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_yaml_loads(path: Path) -> None:
    """With placeholders filled; BASE and LARGE are only built as empty shapes."""
    if path.parent.name == "model":
        with torch.device("meta"):
            assert load_hyperpyyaml(f"wav2vec2: !include:{path}\n")["wav2vec2"].config
        return
    needed = re.findall(r"^(\w+): !PLACEHOLDER", path.read_text(), re.M)
    with path.open() as file, torch.device("cpu" if path.stem == "tiny" else "meta"):
        assert load_hyperpyyaml(file, dict.fromkeys(needed, "x"))["modules"]


def test_files_join_the_steps(manifest: Path, tmp_path: Path) -> None:
    """Pretraining -> fine-tuning -> text and vectors, without touching a file in between."""
    recipe("pretrain")(pretraining(manifest, tmp_path / "a"))
    tune = tuning(manifest, tmp_path / "b", f"--pretrained={tmp_path}/a/model")
    recipe("finetune_ctc")([*tune, "--eval_chunks=[null, 16]", "--chunkwise_prob=0.5"])
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert set(results["test"]) == {"test", "test_320ms"}
    for name in ("steps.jsonl", "curves.png", "train_log.txt", "wer_test.txt", "tensorboard"):
        assert (tmp_path / "b" / name).exists()
    wav = str(manifest.parent / "3.wav")
    asr = Wav2Vec2ASR.from_hparams(source=tmp_path / "b" / "model")
    assert isinstance(asr.transcribe_file(wav), str)
    for folder in (tmp_path / "a" / "model", tmp_path / "a" / "warm_start", tmp_path / "b/model"):
        assert Wav2Vec2Encoder.from_hparams(source=folder).encode_file(wav).shape[1] == 16


def test_frozen_extractor_stays_and_the_rest_moves(manifest: Path, tmp_path: Path) -> None:
    """Fine-tuning with freeze_extractor changes no convolution."""
    recipe("pretrain")(pretraining(manifest, tmp_path / "a"))
    tune = tuning(manifest, tmp_path / "b", f"--pretrained={tmp_path}/a/model")
    recipe("finetune_ctc")(tune)
    before = torch.load(tmp_path / "a/model/wav2vec2.ckpt", weights_only=True)
    after = torch.load(tmp_path / "b/model/wav2vec2.ckpt", weights_only=True)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name in same for name in before if name.startswith("extractor."))
    assert "encoder.layers.0.ffn_in.weight" not in same


@pytest.mark.parametrize("kind", ["pretrain", "finetune_ctc"])
def test_bf16_autocast_trains(kind: str, manifest: Path, tmp_path: Path) -> None:
    """--precision bf16 on this machine's processor; losses are finite."""
    arguments = pretraining if kind == "pretrain" else tuning
    recipe(kind)(arguments(manifest, tmp_path, "--precision=bf16"))
    assert all(math.isfinite(value) for value in losses(tmp_path).values())


@pytest.mark.parametrize("kind", ["pretrain", "finetune_ctc"])
def test_a_killed_run_resumes_exactly(
    kind: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch and started again: the losses of the whole run."""
    arguments = pretraining if kind == "pretrain" else tuning
    recipe(kind)(arguments(manifest, tmp_path / "whole"))

    class Killed(BaseException):
        pass

    original = StepBrain.on_fit_batch_end

    def kill_after_five(self: StepBrain, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        if self.optimizer_step == 5:
            raise Killed

    every_step = ("--ckpt_interval_minutes=0", "--ckpt_interval_steps=1")
    argv = arguments(manifest, tmp_path / "killed", *every_step)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StepBrain, "on_fit_batch_end", kill_after_five)
        recipe(kind)(argv)
    recipe(kind)(argv)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6


def test_a_collapsed_codebook_stops_the_run(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One code for everything has loss 0.000: the run ends with an explanation."""

    def collapse(self: NearestQuantizer, *_: object) -> None:
        with torch.no_grad():
            self.codebook.fill_(1e6)
            self.codebook[:, 0] = 0.0
            self.restart_every = 0

    monkeypatch.setattr(NearestQuantizer, "init_from_data", collapse)
    with pytest.raises(TrainingCollapsed, match="single code"):
        recipe("pretrain")(pretraining(manifest, tmp_path / "a"))


def test_a_lost_file_does_not_end_the_run(manifest: Path, tmp_path: Path) -> None:
    """A listed file that is not there is named with its line; the others are used."""
    lines = manifest.read_text().splitlines()
    broken = tmp_path / "broken.csv"
    lines[2] = lines[2].replace("1.wav", "gone.wav")
    broken.write_text("\n".join(lines) + "\n")
    recipe("pretrain")(pretraining(broken, tmp_path / "a"))
    log = (tmp_path / "a" / "log.txt").read_text()
    assert f"{broken}:3: u1: no such file" in log
    assert "9 utterances, 0.00 h; 1 left out" in log


def test_two_processes_train_together(manifest: Path, tmp_path: Path) -> None:
    """torchrun with gloo on CPUs, both stages."""
    port = 29500 + os.getpid() % 1000
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launcher += [f"--master_port={port}"]
    backend = "--distributed_backend=gloo"
    for name, argv in (
        ("pretrain", pretraining(manifest, tmp_path / "a", backend)),
        (
            "finetune_ctc",
            tuning(manifest, tmp_path / "b", backend, f"--pretrained={tmp_path}/a/model"),
        ),
    ):
        done = subprocess.run(
            [*launcher, str(ROOT / "recipes" / f"{name}.py"), *argv],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path / "a")) == 6
    assert (tmp_path / "b" / "results.json").is_file()
