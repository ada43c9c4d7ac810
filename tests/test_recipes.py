"""The recipes run, resume exactly, join by files, and stop when they must."""

import importlib.util
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.errors import NotStreamable, TrainingCollapsed
from w2v_plugin.folders import save_pretrained
from w2v_plugin.interfaces import Wav2Vec2ASR, Wav2Vec2Encoder
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.quantizer import NearestQuantizer
from w2v_plugin.streaming_asr import Wav2Vec2StreamingASR
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
def test_every_yaml_loads(path: Path, tmp_path: Path) -> None:
    """With placeholders filled; BASE and LARGE are only built as empty shapes."""
    if path.parent.name == "model":
        with torch.device("meta"):
            assert load_hyperpyyaml(f"wav2vec2: !include:{path}\n")["wav2vec2"].config
        return
    needed = re.findall(r"^(\w+): !PLACEHOLDER", path.read_text(), re.M)
    filled = {**dict.fromkeys(needed, "x"), "output_folder": str(tmp_path)}
    if path.parent.name == "transfer":  # what the architecture is taken from
        save_pretrained(tmp_path / "tiny", Wav2Vec2(**yaml.safe_load(SMALL)))
        filled["pretrained"] = str(tmp_path / "tiny")
    real = path.stem == "tiny" or path.parent.name == "transfer"
    with path.open() as file, torch.device("cpu" if real else "meta"):
        assert load_hyperpyyaml(file, filled)["modules"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "hparams/pretrain").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_pretraining_recipe_steps(path: Path, manifest: Path, tmp_path: Path) -> None:
    """Its own losses, optimizers, masks and chunks, on a model of a few thousand parameters."""
    csv = f"{{a: {manifest}, b: {manifest}}}" if path.stem == "multilingual" else str(manifest)
    argv = [
        *(str(path), *QUIET, f"--train_csv={csv}", f"--valid_csv={manifest}"),
        *(f"--output_folder={tmp_path}", f"--wav2vec2={SMALL}", "--num_workers=0"),
        *("--quantizer={channels: 8, codes: 20, dim: 8}", "--updates=2", "--valid_every=2"),
        *("--log_every=1", "--batch_s=3", "--crop_s=1", "--min_s=0.1", "--warm_start_updates=0"),
        *("--grad_accumulation_factor=2", "--activation_checkpointing=True"),
    ]
    recipe("pretrain")(argv)
    assert len(losses(tmp_path)) == 2 and all(map(math.isfinite, losses(tmp_path).values()))
    plan = (tmp_path / "log.txt").read_text()
    assert "Audio per update: 0.001667 h" in plan and "2 updates hear 0.003333 h" in plan


@pytest.mark.parametrize(
    ("name", "processes", "hours", "parameters"),
    [
        ("base_librispeech", 8, 1.556, 95.04),
        ("streaming_base", 8, 1.556, 95.05),
        ("large_librivox", 8, 2.667, 317.39),
        ("multilingual", 8, 2.667, 317.39),
        ("small_gpu", 1, 0.2, 22.65),
        ("tiny", 1, 1 / 300, 1.03),
        ("tiny_gumbel", 1, 1 / 300, 1.12),
    ],
)
def test_published_sizes(
    name: str, processes: int, hours: float, parameters: float, tmp_path: Path
) -> None:
    """Hours of audio per update (1.4 M samples x 64; 1.2 M x 128) and millions of parameters."""
    needed = {"train_csv": "x", "valid_csv": "x", "output_folder": str(tmp_path)}
    with (ROOT / f"hparams/pretrain/{name}.yaml").open() as file, torch.device("meta"):
        h = load_hyperpyyaml(file, needed)
    seconds = h["batch_s"] * h.get("grad_accumulation_factor", 1) * processes
    assert seconds / 3600 == pytest.approx(hours, rel=1e-3)
    count = sum(p.numel() for p in h["model"].parameters())
    assert count / 1e6 == pytest.approx(parameters, abs=0.01)


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


def test_streaming_recipes(manifest: Path, tmp_path: Path) -> None:
    """Validated in chunks and whole; what comes out streams, and says what the masked pass says."""
    train = pretraining(manifest, tmp_path / "a")
    train[0] = str(ROOT / "hparams/pretrain/streaming_tiny.yaml")
    recipe("pretrain")(train)
    valid = json.loads((tmp_path / "a" / "results.json").read_text())
    assert {"valid_accuracy", "valid_accuracy_full", "valid_loss_full"} <= valid.keys()
    tune = tuning(manifest, tmp_path / "b", f"--pretrained={tmp_path}/a/model")
    tune[0] = str(ROOT / "hparams/ctc/streaming_tiny.yaml")
    recipe("finetune_ctc")(tune)
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert set(results["test"]) == {"test", "test_640ms_5120ms", "test_320ms_5120ms"}
    assert {"valid_WER", "valid_WER_full", "valid_CER_full"} <= results["valid"][0].keys()
    asr = Wav2Vec2StreamingASR.from_hparams(source=tmp_path / "b" / "model")
    session, chunk = asr.stream(ChunkConfig(16, 256), rules=None), ChunkConfig(16, 256)
    wav = manifest.parent / "3.wav"
    events = session.feed(torch.from_numpy(soundfile.read(wav, dtype="float32")[0]))
    events += session.finish()
    assert (events[-1].text if events else "") == asr.transcribe_file(wav, chunk=chunk)


@pytest.mark.parametrize("kind", ["pretrain", "finetune_ctc"])
def test_training_in_chunks_needs_a_model_that_can(
    kind: str, manifest: Path, tmp_path: Path
) -> None:
    """Said at the start, not at the first batch that happens to be seen in chunks."""
    train = (pretraining if kind == "pretrain" else tuning)(manifest, tmp_path)
    whole = SMALL.replace("}", ", normalize: True}")
    train = [f"--wav2vec2={whole}" if x.startswith("--wav2vec2") else x for x in train]
    with pytest.raises(NotStreamable, match="normalize=True"):
        recipe(kind)([*train, "--chunkwise_prob=0.01"])
    assert not (tmp_path / "steps.jsonl").exists() or not losses(tmp_path)


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
    """Stopped in the middle of an epoch and started again: the losses of the whole run.

    Some of the batches are seen in chunks, which are drawn anew for each.
    """
    arguments = partial(pretraining if kind == "pretrain" else tuning, manifest)
    chunks = "--chunkwise_prob=0.7"
    recipe(kind)(arguments(tmp_path / "whole", chunks))

    class Killed(BaseException):
        pass

    original = StepBrain.on_fit_batch_end

    def kill_after_five(self: StepBrain, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        if self.optimizer_step == 5:
            raise Killed

    every_step = ("--ckpt_interval_minutes=0", "--ckpt_interval_steps=1")
    argv = arguments(tmp_path / "killed", *every_step, chunks)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StepBrain, "on_fit_batch_end", kill_after_five)
        recipe(kind)(argv)
    recipe(kind)(argv)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6


@pytest.mark.parametrize("done", ["all", "the warm start"])
def test_a_pretraining_of_other_audio_is_refused(done: str, manifest: Path, tmp_path: Path) -> None:
    """It would end as the old model, or begin with a warm start on other audio."""
    run, argv = tmp_path / "run", pretraining(manifest, tmp_path / "run")
    recipe("pretrain")(argv)
    if done == "the warm start":
        for checkpoint in (run / "save").glob("CKPT+*"):
            shutil.rmtree(checkpoint)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"another training \(sha256 of train_csv: "):
        recipe("pretrain")(pretraining(fewer, run))
    with pytest.raises(ValueError, match=r"another training \(start_from: None, now .*run/model\)"):
        recipe("pretrain")([*argv, f"--start_from={run}/model"])
    recipe("pretrain")(argv)


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


def test_dry_run_trains_nothing(manifest: Path, tmp_path: Path) -> None:
    """The plan is in the log, with what was measured; no update was done, no model written."""
    recipe("pretrain")([*pretraining(manifest, tmp_path / "a"), "--dry_run"])
    log = (tmp_path / "a" / "log.txt").read_text()
    assert re.search(
        r"Cost: [\d.e-]+ s per update and [\d,]+ MiB in each process \(cpu, fp32\)", log
    )
    assert "6 updates hear" in log and "3 updates of warm start" in log
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert not left & {"model", "warm_start", "steps.jsonl", "tensorboard"}


@pytest.mark.slow  # minutes in the C++ compiler
def test_compiled_layers_train_alike(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of six updates with and without: no dropout, float32 products in another order."""
    calls: list[bool] = []
    plain = torch.nn.Module.compile
    spy = lambda self, **how: (calls.append(True), plain(self, **how))  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "compile", spy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler uses what PyTorch deprecates
        for name, compiled in (("a", "False"), ("b", "True")):
            argv = pretraining(manifest, tmp_path / name, f"--compile_layers={compiled}")
            argv[argv.index(f"--wav2vec2={SMALL}")] = f"--wav2vec2={SMALL[:-1]}, dropout: 0.0}}"
            recipe("pretrain")(argv)
    assert calls == [True]
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-3)


def test_two_processes_fine_tune_together(manifest: Path, tmp_path: Path) -> None:
    """torchrun with gloo on CPUs; pretraining is in test_distributed.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
            *(f"--master_port={port}", str(ROOT / "recipes" / "finetune_ctc.py")),
            *tuning(manifest, tmp_path, "--distributed_backend=gloo"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(losses(tmp_path)) == 6
    assert (tmp_path / "results.json").is_file()
