"""Strict loading of any module, and files of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.weights import load_state, load_strict, read_weights, without_values


def tiny(**changes) -> Wav2Vec2:
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    return Wav2Vec2(**{**shape, "positions_kernel": 8, "positions_groups": 4, **changes}).eval()


def same_state(x: nn.Module, y: nn.Module) -> bool:
    a, b = x.state_dict(), y.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_many_wrong_keys_are_counted() -> None:
    """Ten names and a number: the message stays readable when everything is wrong."""
    with pytest.raises(CheckpointMismatch, match=r"\d\d missing: (\S+, ){9}\S+ and \d+ more"):
        load_strict(tiny(), {}, "nothing")


def test_a_refused_state_leaves_the_module_as_it_was() -> None:
    model, state = tiny(), tiny().state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state.pop("encoder.norm.bias")
    with pytest.raises(CheckpointMismatch, match=r"encoder\.norm\.bias"):
        load_strict(model, state, "a test")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_folded_tap_of_zeros_stays_zero() -> None:
    """Naively it is 0 * 0 / 0."""
    state = tiny().state_dict()
    stem = "encoder.positions.conv."
    state[stem + "weight"] = torch.ones_like(state.pop(stem + "parametrizations.weight.original1"))
    state[stem + "weight"][..., 3:] = 0.0
    del state[stem + "parametrizations.weight.original0"]
    model = tiny()
    load_strict(model, state, "a test")
    torch.testing.assert_close(model.encoder.positions.conv.weight, state[stem + "weight"])


def test_load_state_reads_our_files_and_names_them(tmp_path: Path) -> None:
    """The hook of SpeechBrain's Pretrainer, which may pass further arguments."""
    model, other, path = tiny(), tiny(), tmp_path / "wav2vec2.ckpt"
    torch.save(model.state_dict(), path)
    load_state(other, path, "cpu")
    assert same_state(model, other)
    with pytest.raises(CheckpointMismatch, match=r"wav2vec2\.ckpt does not fit Linear"):
        load_state(nn.Linear(2, 2), path)
    torch.save({"model": model.state_dict()}, path)
    with pytest.raises(CheckpointMismatch, match=r"Save `module\.state_dict\(\)`"):
        load_state(other, path)
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        load_state(other, tmp_path / "absent.ckpt")


def test_ignored_keys_are_reported_with_the_reason(tmp_path: Path) -> None:
    state = {"weight": torch.eye(2), "bias": torch.ones(2), "_ema": torch.ones(1)}
    layer = nn.Linear(2, 2)
    load_strict(layer, state, "a test", ignored={"_ema": "of training", "absent": "as well"})
    assert layer.load_report.ignored == {"_ema": "of training"} and layer.load_report.read == 2
    assert "ignored _ema: of training" in str(layer.load_report)


def test_taken_over_tensors_are_whole_and_float32() -> None:
    """No second copy where none is needed; but no view that keeps a larger tensor alive."""
    big = torch.arange(8.0).view(4, 2)
    state = {"weight": big[:2], "bias": torch.ones(2, dtype=torch.float64)}
    with without_values():
        layer = nn.Linear(2, 2).requires_grad_(False)
    load_strict(layer, state, "a test", take_over=True)
    assert layer.weight.untyped_storage().nbytes() == 16 and layer.bias.dtype == torch.float32
    assert not layer.weight.requires_grad and torch.equal(layer.weight, big[:2])


@pytest.mark.parametrize("content", [b"", b"half", b"PK\x03\x04 half", b"\x80\x02}q."])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointMismatch, match=rf"weights\.{suffix}: not readable as plain weigh"
    ):
        read_weights(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_half_precision_is_widened(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    path = tmp_path / f"weights.{suffix}"
    state = {"a": torch.randn(3).to(dtype), "n": torch.ones(1, dtype=torch.long)}
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    back = read_weights(path)
    assert torch.equal(back["a"], state["a"].float()) and back["n"].dtype == torch.long
