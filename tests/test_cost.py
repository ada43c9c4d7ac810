"""The trial before a run: measures, leaves no trace, says what to lower when memory is short."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml

from w2v_plugin.brains import PretrainBrain
from w2v_plugin.cost import Cost, duration, measure, plan
from w2v_plugin.errors import DoesNotFit
from w2v_plugin.pretraining import Wav2Vec2Pretraining

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": [8] * 7}


def recipe(tmp_path: Path, *options: str, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Hyperparameters of tiny.yaml with a smaller model, and SpeechBrain's options."""
    path = ROOT / "hparams" / "pretrain" / "tiny.yaml"
    _, run_opts, _ = sb.parse_arguments([str(path), "--device=cpu", *options])
    overrides = {"train_csv": "x", "valid_csv": "x", "output_folder": str(tmp_path / "run")}
    overrides |= {"wav2vec2": SMALL, "quantizer": {"channels": 8, "codes": 20, "dim": 8}, **changes}
    with path.open() as file:
        return load_hyperpyyaml(file, overrides), run_opts


def state(hparams: dict[str, Any]) -> dict[str, Any]:
    """All that a run depends on and a trial could touch."""
    model = hparams["model"]
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict(keep_vars=True).items()},
        "gradients": [p.grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "random": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
        "epoch": hparams["epoch_counter"].current,
        "recoverables": set(hparams["checkpointer"].recoverables),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.mark.parametrize("options", [[], ["--precision=bf16"], ["--grad_accumulation_factor=3"]])
def test_a_trial_leaves_no_trace(options: list[str], tmp_path: Path) -> None:
    """Parameters, buffers, gradients, random numbers, files: as if it had not been."""
    hparams, run_opts = recipe(tmp_path, *options)
    before = state(hparams)
    files = sorted(tmp_path.rglob("*"))
    cost = measure(PretrainBrain, hparams, run_opts)
    after = state(hparams)
    for key, value in before.items():
        assert same(value, after[key]), key
    assert sorted(tmp_path.rglob("*")) == files
    assert cost.update_s > 0 and cost.peak_bytes > 2**20
    assert cost.micro_batches == (3 if "--grad_accumulation_factor=3" in options else 1)
    assert ("bf16" if "--precision=bf16" in options else "fp32") in cost.machine


def test_the_trial_is_the_largest_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows of crop_s as fit into batch_s, in training mode, with an optimizer's step."""
    hparams, run_opts = recipe(tmp_path, batch_s=7.0, crop_s=2.0)
    shapes, trained = [], []
    forward = Wav2Vec2Pretraining.forward

    def watched(self: Wav2Vec2Pretraining, wavs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(wavs.shape))
        trained.append(self.training and torch.is_grad_enabled())
        return forward(self, wavs, *args, **kwargs)

    monkeypatch.setattr(Wav2Vec2Pretraining, "forward", watched)
    cost = measure(PretrainBrain, hparams, run_opts)
    assert shapes == [(3, 32000)] * 4 and all(trained)
    assert cost.batch == "3 x 2 s of audio"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_too_large_says_what_to_lower(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Wav2Vec2Pretraining, "forward", fail)
    hparams, run_opts = recipe(tmp_path)
    with pytest.raises(DoesNotFit, match=r"Lower batch_s \(now 12\).*activation_checkpointing"):
        measure(PretrainBrain, hparams, run_opts)


def test_really_too_large(tmp_path: Path) -> None:
    """A batch that no machine holds: the allocator's own message is understood."""
    hparams, run_opts = recipe(tmp_path, batch_s=1e9, crop_s=1e9)
    with pytest.raises(DoesNotFit, match="does not fit"):
        measure(PretrainBrain, hparams, run_opts)


def test_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Wav2Vec2Pretraining, "forward", fail)
    hparams, run_opts = recipe(tmp_path)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure(PretrainBrain, hparams, run_opts)


def test_the_plan_adds_up(tmp_path: Path) -> None:
    """1.4 M samples x 64, 400 000 updates: 1.6 h an update, 0.6 million hours, 648 passes."""
    hparams, _ = recipe(tmp_path, batch_s=87.5, updates=400_000)
    cost = Cost(1.2, 64, 3 * 2**30, "5 x 15.6 s of audio", "cuda:0, bf16")
    text = plan(hparams, 960.0, cost)
    assert "1.556 h at most = batch_s 87.5 s x 64 micro-batches x 1 processes" in text
    assert "hear 6.222e+05 h; the corpora have 960 h: 648 passes" in text
    assert "1.2 s per update and 3,072 MiB in each process (cuda:0, bf16)" in text
    assert f"about {duration(480_000)}" in text and "5.6 days" in text


@pytest.mark.parametrize("flag", [["--dry_run"], ["--dry_run=True"]])
def test_dry_run_is_only_a_plan(flag: list[str], tmp_path: Path) -> None:
    """The key of the YAML and the bare flag arrive as what the recipe asks for."""
    path = ROOT / "hparams" / "pretrain" / "tiny.yaml"
    _, _, overrides = sb.parse_arguments([str(path), "--train_csv=x", "--valid_csv=x", *flag])
    with path.open() as file:
        overrides += f"\noutput_folder: {tmp_path}"
        assert load_hyperpyyaml(file, overrides)["dry_run"] is not False
