"""The transformer: both layouts against PyTorch's own layers, chunks, skipped layers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.encoder import ContextEncoder, EncoderLayer
from w2v_plugin.frames import valid_frames

NORMS = pytest.mark.parametrize("norm_first", [False, True])


def encoder(norm_first: bool, layers: int = 3, **kwargs: float) -> ContextEncoder:
    """Float64, every parameter scattered so that no two norms can be confused."""
    torch.manual_seed(0)
    shape = {"positions_kernel": 8, "positions_groups": 4}
    module = ContextEncoder(12, layers, 3, 24, norm_first=norm_first, **shape, **kwargs)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.double().eval()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def twin(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the same weights."""
    module = nn.TransformerEncoderLayer(
        12, 3, 24, 0.0, "gelu", batch_first=True, norm_first=layer.norm_first, dtype=torch.float64
    )
    attention = layer.attention
    names = {"linear1": layer.ffn_in, "linear2": layer.ffn_out, "norm1": layer.attention_norm}
    names |= {"norm2": layer.ffn_norm, "self_attn.out_proj": attention.out}
    state = {f"{k}.{n}": p for k, v in names.items() for n, p in v.named_parameters()}
    qkv = (attention.q, attention.k, attention.v)
    state["self_attn.in_proj_weight"] = torch.cat([m.weight for m in qkv])
    state["self_attn.in_proj_bias"] = torch.cat([m.bias for m in qkv])
    module.load_state_dict(state)
    return module


@NORMS
@pytest.mark.parametrize("lengths", [None, [9, 4]])
def test_encoder_is_pytorchs_stack(norm_first: bool, lengths: list[int] | None) -> None:
    """Positions, norm (post-norm: before the layers, pre-norm: after), layers; and gradients."""
    module = encoder(norm_first)
    x = randn(2, 9, 12).requires_grad_()
    valid = valid_frames(torch.tensor(lengths or [9, 9]), 9)
    y = x.masked_fill(~valid[..., None], 0.0)
    y = y + module.positions(y)
    y = y if norm_first else module.norm(y)
    for layer in module.layers:
        y = twin(layer).train()(y, src_key_padding_mask=~valid)  # train: no inference fast path
    y = module.norm(y) if norm_first else y
    ours, _ = module(x, None if lengths is None else valid)
    torch.testing.assert_close(ours[valid], y[valid], rtol=0.0, atol=1e-11)  # three layers deep
    gradients = [torch.autograd.grad(out[valid].square().sum(), x)[0] for out in (ours, y)]
    torch.testing.assert_close(*gradients, rtol=0.0, atol=1e-9)  # gradients are of order 10 to 100


@NORMS
@torch.no_grad()
def test_hidden_states_are_those_between_the_layers(norm_first: bool) -> None:
    """layers + 1 of them; each layer maps one to the next; the last is before the final norm."""
    module, x = encoder(norm_first), randn(2, 9, 12)
    context, hidden = module(x, output_hidden_states=True)
    assert hidden is not None and len(hidden) == len(module.layers) + 1
    for layer, before, after in zip(module.layers, hidden, hidden[1:], strict=False):
        assert torch.equal(layer(before, None), after)
    assert torch.equal(context, module.norm(hidden[-1]) if norm_first else hidden[-1])
    assert module(x)[1] is None


@NORMS
@torch.no_grad()
def test_padding_is_not_read(norm_first: bool) -> None:
    """Garbage behind an utterance changes nothing in it, in chunks or not."""
    module, x = encoder(norm_first), randn(1, 11, 12)
    valid = valid_frames(torch.tensor([6]), 11)
    dirty = torch.where(valid[..., None], x, 1e3 * randn(1, 11, 12))
    for chunk in (None, ChunkConfig(4), ChunkConfig(4, 3)):
        first, second = (module(y, valid, chunk=chunk)[0] for y in (x, dirty))
        assert torch.equal(first[:, :6], second[:, :6])


@NORMS
@pytest.mark.parametrize("frames", [1, 16, 23])
@torch.no_grad()
def test_an_infinite_chunk_is_no_chunk(norm_first: bool, frames: int) -> None:
    """Bit for bit: same positions, all keys visible."""
    module, x = encoder(norm_first), randn(2, frames, 12)
    for size in (frames, 10**6):
        chunked, _ = module(x, chunk=ChunkConfig(size))
        assert torch.equal(chunked, module(x)[0])


@NORMS
@pytest.mark.parametrize("chunk", [ChunkConfig(1), ChunkConfig(5), ChunkConfig(5, 3)])
@torch.no_grad()
def test_the_future_never_reaches_back(norm_first: bool, chunk: ChunkConfig) -> None:
    """Change everything from a chunk on: exactly 0.0 difference before it, some within it."""
    module, x = encoder(norm_first), randn(2, 18, 12)
    y, _ = module(x, chunk=chunk)
    for begin in range(chunk.chunk, 18, chunk.chunk):
        later = x.clone()
        later[:, begin:] = randn(2, 18 - begin, 12)
        moved = (module(later, chunk=chunk)[0] - y).abs()
        assert float(moved[:, :begin].max()) == 0.0
        assert float(moved[:, begin:].min(-1).values.min()) > 0.0


@NORMS
@torch.no_grad()
def test_left_context_adds_up_and_then_ends(norm_first: bool) -> None:
    """A frame reads at most `left` per layer and half a positional kernel into the past."""
    module, chunk = encoder(norm_first, layers=2), ChunkConfig(4, 4)
    x = randn(1, 40, 12)
    y, _ = module(x, chunk=chunk)
    reach = 2 * chunk.left + 8 // 2  # two layers, kernel of 8
    x[:, : 36 - reach] = randn(1, 36 - reach, 12)
    assert torch.equal(module(x, chunk=chunk)[0][:, 36:], y[:, 36:])
    x[:, 36 - reach] += 1.0
    assert not torch.equal(module(x, chunk=chunk)[0][:, 36:], y[:, 36:])


@NORMS
def test_dropped_layers_are_skipped_but_have_gradients(norm_first: bool) -> None:
    """All layers dropped: only positions and norm act; every gradient is there, zero if unused."""
    module, x = encoder(norm_first, layer_drop=1.0).train(), randn(2, 9, 12)
    y, _ = module(x)
    torch.testing.assert_close(y, module.norm(x + module.positions(x)), rtol=0.0, atol=0.0)
    (y * randn(*y.shape)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert not any(p.grad.any() for p in module.layers.parameters())
    assert all(p.grad.any() for p in module.positions.parameters())


def test_layers_are_dropped_at_their_rate_and_never_in_evaluation() -> None:
    """30 % of the layers repeat their input during training."""
    module, x = encoder(False, layers=4, layer_drop=0.3), randn(1, 2, 12)
    torch.manual_seed(0)

    def skipped() -> int:
        _, hidden = module(x, output_hidden_states=True)
        return sum(torch.equal(a, b) for a, b in pairwise(hidden))

    with torch.no_grad():
        assert skipped() == 0
        module.train()
        assert abs(sum(skipped() for _ in range(150)) / 600 - 0.3) < 0.08  # standard error 0.02


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "activation_dropout"])
@torch.no_grad()
def test_dropouts_act_in_training_only(kind: str) -> None:
    module, x = encoder(False, **{kind: 0.5}), randn(1, 9, 12)
    assert torch.equal(module(x)[0], module(x)[0])
    module.train()
    assert not torch.equal(module(x)[0], module(x)[0])
