"""Fine-tuning by its recipe: published settings, resume, averaging, two processes, results."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from w2v_plugin.errors import BadManifest, NotStreamable
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.monitor import Monitor
from w2v_plugin.training import StepBrain

ROOT = Path(__file__).resolve().parent.parent
CTC = ROOT / "hparams" / "ctc"
SMALL = "{dim: 16, layers: 1, heads: 2, ffn_dim: 32, channels: [8, 8, 8, 8, 8, 8, 8]}"

# wav2vec 2.0 as fairseq configures it: updates, rate, frozen, time and channel masks, layer drop
PUBLISHED = {
    "base_10m": (13_000, 5e-5, 10_000, 0.65, 0.25, 0.1),
    "base_1h": (13_000, 5e-5, 10_000, 0.65, 0.25, 0.1),
    "base_10h": (20_000, 5e-5, 10_000, 0.65, 0.5, 0.05),
    "base_100h": (80_000, 3e-5, 0, 0.65, 0.5, 0.1),
    "base_960h": (320_000, 1e-4, 0, 0.5, 0.1, 0.1),
    "large_10m": (13_000, 1e-4, 10_000, 0.65, 0.25, 0.1),
    "large_1h": (13_000, 3e-4, 10_000, 0.75, 0.25, 0.1),
    "large_10h": (20_000, 1e-4, 10_000, 0.75, 0.25, 0.1),
    "large_100h": (80_000, 3e-5, 10_000, 0.5, 0.5, 0.1),
    "large_960h": (320_000, 3e-5, 10_000, 0.5, 0.25, 0.1),
}


def loaded(name: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """A YAML of `hparams/ctc`, its model without weights."""
    needed = ("train_csv: x", "valid_csv: x", "pretrained: x", f"output_folder: {folder}")
    with (CTC / f"{name}.yaml").open() as file, torch.device("meta"):
        return load_hyperpyyaml(file, "\n".join((*needed, *overrides)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str, tmp_path: Path) -> None:
    """Each is one option away; what it says arrives where it is used."""
    size = name.partition("_")[0]
    h = loaded(size, tmp_path, f"published: !include:published/{name}.yaml")
    model = h["model"]
    assert h["encoder_lr"] == h["head_lr"]
    assert PUBLISHED[name] == (
        *(h["updates"], h["encoder_lr"], h["freeze_encoder_updates"]),
        *(model.mask_prob, model.channel_mask_prob, model.wav2vec2.encoder.layer_drop),
    )
    assert (model.mask_length, model.channel_mask_length) == (10, 64)
    seconds = 1920 if name == "large_960h" else 1600  # of audio in an update: 24 GPUs of 80 s
    assert h["batch_s"] * h["grad_accumulation_factor"] == seconds
    rates = [h["schedule"](h["updates"] * share) for share in (0.05, 0.1, 0.4, 0.75, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.525, 0.05], abs=1e-3)
    dropouts = {x.p for x in model.modules() if isinstance(x, torch.nn.Dropout)}
    assert dropouts == {0.0, 0.1} and model.wav2vec2.encoder.layers[0].activation_dropout.p == 0.1


def test_every_published_file_is_tested() -> None:
    assert {path.stem for path in (CTC / "published").glob("*.yaml")} == set(PUBLISHED)


def test_one_key_goes_before_the_published_ones(tmp_path: Path) -> None:
    h = loaded("base", tmp_path, "updates: 500", "encoder_lr: 0.5")
    assert (h["updates"], h["optimizer_step_limit"], h["encoder_lr"]) == (500, 500, 0.5)
    assert h["head_lr"] == 3e-5 and h["schedule"](500) == pytest.approx(0.05)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ten utterances of chirps; one of them has a letter that English does not have."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    utterances = []
    for i in range(10):
        time = torch.arange(12800 + 1600 * i) / 16000
        wav = 0.3 * torch.sin(300 * (i + 2) * (1 + 0.2 * time) * time)
        wav += 0.01 * torch.randn(len(time), generator=generator)
        path = folder / f"{i}.wav"
        soundfile.write(path, wav.numpy(), 16000)
        text = "größe" if i == 3 else "go on"
        utterances.append(Utterance(f"u{i}", path, f"s{i % 2}", text, f"list:{i + 1}"))
    write_manifest(folder / "all.csv", utterances)
    lines = (folder / "all.csv").read_text().splitlines()
    (folder / "test.csv").write_text(
        "\n".join([*lines[:7], f"lost,1.0,{folder}/lost.wav,s0,go on"]) + "\n"
    )
    return {"all": folder / "all.csv", "test": folder / "test.csv"}


def arguments(manifests: dict[str, Path], out: Path, *more: str) -> list[str]:
    return [
        *(str(CTC / "tiny.yaml"), "--device=cpu", "--noprogressbar"),
        *(f"--train_csv={manifests['all']}", f"--valid_csv={manifests['all']}"),
        *(f"--test_csvs={{test: {manifests['test']}}}", f"--output_folder={out}"),
        *(f"--wav2vec2={SMALL}", "--updates=6", "--valid_every=2", "--log_every=1"),
        *("--batch_s=4", *more),
    ]


def recipe() -> Callable[[list[str]], None]:
    path = ROOT / "recipes" / "finetune_ctc.py"
    spec = importlib.util.spec_from_file_location("finetune_ctc", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def losses(folder: Path) -> dict[int, float]:
    records = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in records if "loss" in r}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in ("wav2vec2", "head")
        for key, value in torch.load(folder / "model" / f"{name}.ckpt", weights_only=True).items()
    }


def test_results_say_how_they_came_about(manifests: dict[str, Path], tmp_path: Path) -> None:
    """Nothing is missing from the test set without a word; hypotheses and rates agree."""
    recipe()(arguments(manifests, tmp_path, "--average=2", "--seed=7"))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {"command", "commit", "hardware", "sha256", "torch"} <= results.keys()
    assert set(results["sha256"]) == {str(path) for path in manifests.values()}
    assert results["seed"] == 7 and results["seconds"] > 0 < results["cpu_seconds"]
    assert results["settings"]["updates"] == 6 and results["settings"]["precision"] == "fp32"
    assert [record["step"] for record in results["valid"]] == [2, 4, 6]
    assert set(results["weights"]) == {"average", "best", "mean"}
    scores = results["test"]["test"]
    assert (scores["utterances"], scores["left_out"]) == (6, 1)  # lost.wav is not there
    assert scores["words"] == 11 and scores["characters"] == 5 * 5 + 6  # GO ON, GRÖSSE
    assert scores["WER"] == pytest.approx(100 * scores["word_errors"] / scores["words"])
    assert scores["CER"] == pytest.approx(100 * scores["character_errors"] / scores["characters"])
    with (tmp_path / "hyp_test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ID"] for row in rows] == [f"u{i}" for i in range(6)]
    assert [row["ref"] for row in rows] == ["go on"] * 3 + ["größe"] + ["go on"] * 2
    assert {row["spk_id"] for row in rows} == {"s0", "s1"}
    assert "u3, %WER" in (tmp_path / "wer_test.txt").read_text(encoding="utf-8")
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "Counts as errors: " in log and "u3: characters outside the vocabulary: Ö" in log


def test_a_killed_run_resumes_exactly(
    manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmented, with frozen updates, patience and averaging: the same losses and weights."""
    options = (
        "--augment=!include:augment/speed.yaml",
        *("--freeze_encoder_updates=2", "--patience=2", "--average=2", "--best_by=CER"),
    )
    run = partial(arguments, manifests)
    recipe()(run(tmp_path / "whole", *options))

    class Killed(BaseException):
        pass

    original = StepBrain.on_fit_batch_end

    def kill_after_three(self: StepBrain, *args: Any) -> None:
        original(self, *args)
        if self.optimizer_step == 3:
            raise Killed

    every = ("--ckpt_interval_minutes=0", "--ckpt_interval_steps=1")
    argv = run(tmp_path / "killed", *options, *every)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StepBrain, "on_fit_batch_end", kill_after_three)
        recipe()(argv)
    recipe()(argv)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    reports = [json.loads((tmp_path / x / "results.json").read_text()) for x in ("whole", "killed")]
    assert reports[0]["weights"] == reports[1]["weights"]
    assert reports[0]["test"] == reports[1]["test"]


def test_checkpoints_of_another_training_are_refused(
    manifests: dict[str, Path], tmp_path: Path
) -> None:
    """Its weights would load, and pass for those of the new one."""
    vocabularies = []
    for first in ("AB", "BA"):
        symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *first, *"CDEFGHIJKLMNOPQRSTUVWXYZ'"]
        path = tmp_path / f"{first}.json"
        path.write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
        vocabularies.append(f"--vocab={path}")
    run = tmp_path / "run"
    argv = arguments(manifests, run)
    recipe()([*argv, vocabularies[0]])
    with pytest.raises(ValueError, match=r"another training \(symbols: .* A B C.* now .* B A C"):
        recipe()([*argv, vocabularies[1]])
    with pytest.raises(ValueError, match=r"another training \(sha256 of train_csv: "):
        other = arguments({"all": manifests["test"], "test": manifests["test"]}, run)
        recipe()([*other, vocabularies[0]])
    with pytest.raises(ValueError, match=r"another training \(pretrained: None, now .*run/model\)"):
        recipe()([*argv, vocabularies[0], f"--pretrained={run}/model"])
    with pytest.raises(ValueError, match=r"another training \(valid_every: \d+, now 3\)"):
        recipe()([*(x for x in argv if "valid_every" not in x), vocabularies[0], "--valid_every=3"])
    recipe()([*argv, vocabularies[0]])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--test_csvs=test.csv", r"test_csvs='test.csv', expected names and manifests"),
        ("--test_csvs={te/st: test.csv}", "'te/st', expected a name that a file can have"),
        ("--test_csvs={test: none.csv}", "none.csv: no such manifest"),
        ("--average=0", "average=0, expected a number of checkpoints"),
        ("--eval_chunks=16", r"eval_chunks=16, expected a list"),
        ("--eval_chunks=[[1, 2, 3, 4]]", r"eval_chunks=\[\[1, 2, 3, 4\]\], expected a list"),
        ("--eval_chunks=[null, 16]", "chunks mean nothing"),
    ],
)
def test_what_comes_after_the_training_is_looked_at_before(
    option: str, message: str, manifests: dict[str, Path], tmp_path: Path
) -> None:
    """Hours later it would be a traceback, and the scores would be missing."""
    name = option.partition("=")[0]
    argv = [x for x in arguments(manifests, tmp_path) if not x.startswith((name, "--wav2vec2"))]
    body = SMALL.replace("}", ", normalize: True}")
    with pytest.raises((ValueError, BadManifest, NotStreamable), match=message):
        recipe()([*argv, f"--wav2vec2={body}", option])
    assert not (tmp_path / "steps.jsonl").exists()


def test_patience_ends_a_run_and_stays_ended(
    manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No better score in one validation: four updates of six, also when started again."""
    scores = {2: 50.0, 4: 60.0}  # after so many updates
    monkeypatch.setattr(
        "w2v_plugin.brains.CTCBrain.score",
        lambda self, _: {"loss": 1.0, "WER": scores[self.optimizer_step], "CER": 50.0},
    )
    argv = arguments(manifests, tmp_path, "--patience=1")
    recipe()(argv)
    assert set(losses(tmp_path)) == {1, 2, 3, 4}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["weights"]["best"] == {"WER": 50.0}
    recipe()(argv)
    assert set(losses(tmp_path)) == {1, 2, 3, 4}


def test_a_validation_that_was_not_saved_counts_once(
    manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its checkpoint, it is done again, from the one of the last update."""

    class Killed(BaseException):
        pass

    scores = {2: 50.0, 4: 60.0, 6: 40.0}  # after so many updates
    monkeypatch.setattr(
        "w2v_plugin.brains.CTCBrain.score",
        lambda self, _: {"loss": 1.0, "WER": scores[self.optimizer_step], "CER": 50.0},
    )
    every = ("--ckpt_interval_minutes=0", "--ckpt_interval_steps=1")
    argv = arguments(manifests, tmp_path, "--patience=2", *every)
    write = Monitor.write

    def write_the_second(self: Monitor, step: int, scalars: dict[str, float]) -> None:
        write(self, step, scalars)
        if step == 4 and "valid_WER" in scalars:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Monitor, "write", write_the_second)
        recipe()(argv)
    recipe()(argv)
    assert set(losses(tmp_path)) == {1, 2, 3, 4, 5, 6}
    results = json.loads((tmp_path / "results.json").read_text())
    assert [record["step"] for record in results["valid"]] == [2, 4, 6]


def test_two_processes_do_what_two_micro_batches_do(
    manifests: dict[str, Path], tmp_path: Path
) -> None:
    """First with the head alone, which DDP does not see, then with everything.

    Float32, other orders of summation, six updates of Adam: 1e-3.
    """
    options = "--freeze_encoder_updates=3"
    recipe()(arguments(manifests, tmp_path / "one", "--grad_accumulation_factor=2", options))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
        *(f"--master_port={port}", str(ROOT / "recipes" / "finetune_ctc.py")),
        *arguments(manifests, tmp_path / "two", "--distributed_backend=gloo", options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(value, two[name], atol=1e-3) for name, value in one.items())
