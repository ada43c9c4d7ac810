"""LoRA: the arithmetic, where it acts, and that it merges into plain weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from w2v_plugin.adaptation import merged, rebuilt
from w2v_plugin.attention import ChunkConfig, SelfAttention
from w2v_plugin.compression import optimize
from w2v_plugin.hf_checkpoints import hf_name
from w2v_plugin.lora import LowRank
from w2v_plugin.model import Wav2Vec2

SHAPE = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
STREAMS = {"extractor_norm": "layer", "normalize": False}


def learned(model: nn.Module, std: float = 0.3) -> nn.Module:
    """Updates that are not zero any more."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if ".lora." in f".{name}":
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval().requires_grad_(False)


def wavs(*samples: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=generator) for n in samples]


def test_the_formula() -> None:
    update = LowRank(8, rank=2, alpha=6.0).double()
    nn.init.normal_(update.up)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = 3.0 * x @ update.down.T @ update.up.T
    torch.testing.assert_close(update(x), expected)
    torch.testing.assert_close(x @ update.update().T, expected)


def test_a_new_one_is_nothing_and_learns() -> None:
    """The gradient of `up` is there at once, that of `down` from the second update on."""
    torch.manual_seed(0)
    layer = SelfAttention(16, heads=2, lora_rank=4)
    plain = SelfAttention(16, heads=2)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "lora" not in k})
    x = torch.randn(1, 5, 16)
    assert torch.equal(layer(x, None), plain(x, None))
    layer(x, None).square().sum().backward()
    assert all(one.up.grad.abs().sum() > 0 for one in layer.lora.values())
    assert all(one.down.grad.abs().sum() == 0 for one in layer.lora.values())


@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_each_projection_has_its_own(name: str) -> None:
    """An update is that of the projection's weight, of no other one's."""
    torch.manual_seed(0)
    layer = SelfAttention(16, heads=2, lora_rank=3, lora_alpha=5.0).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    before = layer(x, None)
    nn.init.normal_(layer.lora[name].up)
    with_update = layer(x, None)
    assert not torch.allclose(with_update, before)
    getattr(layer, name).weight.data += layer.lora[name].update().detach()
    nn.init.zeros_(layer.lora[name].up)
    torch.testing.assert_close(layer(x, None), with_update)


@pytest.mark.parametrize("norm_first", [True, False])
def test_merged_it_answers_alike(norm_first: bool) -> None:
    torch.manual_seed(0)
    body = learned(Wav2Vec2(**SHAPE, norm_first=norm_first, lora_rank=3)).double()
    before = {name: value.clone() for name, value in body.state_dict().items()}
    plain, [wav] = merged(body), wavs(8000)
    assert plain.config == body.config | {"lora_rank": None}
    assert not [name for name in plain.state_dict() if "lora" in name]
    torch.testing.assert_close(plain(wav[None]).context, body(wav[None]).context)
    without = rebuilt(body, "here", lora_rank=None)
    assert not torch.allclose(without(wav[None]).context, body(wav[None]).context)
    after = body.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_without_there_is_nothing_to_merge() -> None:
    body = Wav2Vec2(**SHAPE)
    assert merged(body) is body


def test_streams_and_packed_batches_have_it() -> None:
    torch.manual_seed(0)
    body = learned(Wav2Vec2(**SHAPE, **STREAMS, lora_rank=3)).double()
    utterances = [wav.double() for wav in wavs(16000, 9000)]
    for out, wav in zip(body.forward_packed(utterances), utterances, strict=True):
        torch.testing.assert_close(out.context, body(wav[None]).context)
    chunk, wav = ChunkConfig(4), utterances[0]
    whole = body(wav[None], chunk=chunk).context
    out, _ = body.step(wav[None], body.init_state(), chunk, last=True)
    torch.testing.assert_close(out.context, whole)
    assert not torch.allclose(merged_away(body)(wav[None], chunk=chunk).context, whole)


def merged_away(body: Wav2Vec2) -> Wav2Vec2:
    return rebuilt(body, "here", lora_rank=None)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("int8", 0.1)])
def test_an_optimized_model_keeps_it_apart(precision: str, limit: float) -> None:
    """The frozen weights are packed or have 8 bits; updates stay float32, to be exchanged.

    1e-5: float32 rounding of other kernels; 0.1: that of 8 bits on random weights.
    """
    torch.manual_seed(0)
    wide = {"dim": 64, "layers": 2, "heads": 2, "ffn_dim": 128, "channels": (32,) * 7}
    body, [wav] = learned(Wav2Vec2(**wide, lora_rank=3), std=0.1), wavs(8000)
    expected, without = body(wav[None]).context, merged_away(body)(wav[None]).context
    names = {name for name, _ in body.named_parameters() if ".lora." in name}
    found = optimize(body, precision)(wav[None]).context
    assert (found - expected).norm() < limit * expected.norm()
    assert (without - expected).norm() > 2 * limit * expected.norm()
    assert {name for name, _ in body.named_parameters() if ".lora." in name} == names


def test_its_names_are_those_of_peft() -> None:
    name = "wav2vec2.encoder.layers.3.attention.lora.{}"
    theirs = "wav2vec2.encoder.layers.3.attention.{}_proj.lora_{}.weight"
    for ours in ("q", "k", "v", "out"):
        assert hf_name(name.format(f"{ours}.down")) == theirs.format(ours, "A")
        assert hf_name(name.format(f"{ours}.up")) == theirs.format(ours, "B")


@pytest.mark.parametrize("rank", [0, -1, 17, 2.0, "4"])
def test_ranks_that_cannot_be(rank: object) -> None:
    with pytest.raises(ValueError, match=r"lora_rank=.* from 1 to dim=16"):
        Wav2Vec2(**SHAPE, lora_rank=rank)


@pytest.mark.parametrize("alpha", [0, -1.0, "x", float("nan")])
def test_strengths_that_cannot_be(alpha: object) -> None:
    with pytest.raises(ValueError, match=r"lora_alpha=.* above 0"):
        Wav2Vec2(**SHAPE, lora_rank=2, lora_alpha=alpha)


def test_conformers_have_none() -> None:
    with pytest.raises(ValueError, match="lora_rank=2: expected norm_first=True, and no adapters"):
        Wav2Vec2(**SHAPE, norm_first=True, conformer="rotary", lora_rank=2)
