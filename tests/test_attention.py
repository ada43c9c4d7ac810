"""Attention: who sees whom, and the fused kernel against softmax written out."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_plugin.attention import (
    LONG,
    ChunkConfig,
    SelfAttention,
    attend_by_heads,
    attention_mask,
)
from w2v_plugin.frames import valid_frames
from w2v_plugin.linear import keep_mask

CPU = torch.device("cpu")
GRID = [(1, None), (1, 0), (1, 3), (4, None), (4, 0), (4, 2), (4, 100), (5, 7), (12, 0), (99, 0)]


def attention(dim: int = 12, heads: int = 3) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(dim, heads).double()


def naive(module: SelfAttention, x: Tensor, seen: Tensor) -> Tensor:
    """Loop over rows, heads and queries; softmax over the visible keys only."""
    y = torch.zeros_like(x)
    d = x.shape[2] // module.heads
    q, k, v = module.q(x), module.k(x), module.v(x)
    for b, h, t in itertools.product(range(len(x)), range(module.heads), range(x.shape[1])):
        part, keys = slice(h * d, h * d + d), seen[b, t]
        weights = (k[b, keys, part] @ q[b, t, part] / d**0.5).exp()
        y[b, t, part] = (weights / weights.sum()) @ v[b, keys, part]
    return module.out(y)


@pytest.mark.parametrize(("chunk", "left"), GRID)
def test_mask_is_the_closed_form(chunk: int, left: int | None) -> None:
    """Query t sees key s if s is before the end of t's chunk and `left` or less before its begin.

    Brute force over all pairs; 12 frames, so that most last chunks are ragged.
    """
    mask = attention_mask(None, 12, ChunkConfig(chunk, left), CPU)
    assert mask is not None and mask.shape == (1, 1, 12, 12)
    for t, s in itertools.product(range(12), range(12)):
        begin = t // chunk * chunk
        expected = s < begin + chunk and (left is None or s >= begin - left)
        assert bool(mask[0, 0, t, s]) == expected


@pytest.mark.parametrize(("chunk", "left"), GRID)
def test_padding_is_no_key_and_every_query_has_one(chunk: int, left: int | None) -> None:
    """Real queries see the real keys of the chunk mask; padded ones at least themselves."""
    lengths = torch.tensor([12, 5, 1, 0])
    valid = valid_frames(lengths, 12)
    free = attention_mask(None, 12, ChunkConfig(chunk, left), CPU)
    mask = attention_mask(valid, 12, ChunkConfig(chunk, left), CPU)
    assert free is not None and mask is not None and mask.shape == (4, 1, 12, 12)
    for b, length in enumerate(lengths.tolist()):
        expected = free[0, 0, :length].clone()
        expected[:, length:] = False
        assert torch.equal(mask[b, 0, :length], expected)
    assert bool(mask.any(-1).all())


def test_without_chunks_only_padding_is_hidden() -> None:
    """No mask at all when there is nothing to hide: the fastest kernel."""
    valid = valid_frames(torch.tensor([4, 2]), 4)
    assert attention_mask(None, 4, None, CPU) is None
    mask = attention_mask(valid, 4, None, CPU)
    assert mask is not None and torch.equal(mask, valid[:, None, None, :])


@pytest.mark.parametrize("heads", [1, 3, 12])
@pytest.mark.parametrize("lengths", [None, [7, 4, 1]])
@pytest.mark.parametrize("chunk", [None, ChunkConfig(3), ChunkConfig(2, 1)])
def test_fused_attention_is_softmax_written_out(
    chunk: ChunkConfig | None, lengths: list[int] | None, heads: int
) -> None:
    """Values at all real queries, and the gradient of the input."""
    module = attention(heads=heads)
    x = torch.randn(3, 7, 12, dtype=torch.float64, requires_grad=True)
    valid = valid_frames(torch.tensor(lengths or [7, 7, 7]), 7)
    mask = attention_mask(None if lengths is None else valid, 7, chunk, CPU)
    seen = torch.ones(3, 7, 7, dtype=torch.bool) if mask is None else mask[:, 0].expand(3, 7, 7)
    ours, theirs = module(x, mask)[valid], naive(module, x, seen)[valid]
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-12)  # float64, another order
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0.0, atol=1e-11)  # sums over queries


@pytest.mark.parametrize("chunk", [None, ChunkConfig(3), ChunkConfig(2, 0)])
def test_padded_queries_are_finite(chunk: ChunkConfig | None) -> None:
    """Forward and backward, even for a row without a single frame: NaN * 0 would be NaN."""
    module = SelfAttention(12, 3)
    x = torch.randn(3, 9, 12, requires_grad=True)
    mask = attention_mask(valid_frames(torch.tensor([9, 2, 0]), 9), 9, chunk, CPU)
    y = module(x, mask)
    y[0].sum().backward()
    assert bool(y.isfinite().all()) and x.grad is not None and bool(x.grad.isfinite().all())


def test_dropout_acts_in_training_only() -> None:
    module = SelfAttention(12, 3, dropout=0.5)
    x = torch.randn(1, 9, 12)
    assert not torch.equal(module.train()(x, None), module(x, None))
    assert torch.equal(module.eval()(x, None), module(x, None))


@pytest.mark.parametrize(("chunk", "left"), [(0, None), (-1, 4), (4, -1)])
def test_impossible_chunks_are_refused(chunk: int, left: int | None) -> None:
    with pytest.raises(ValueError, match=rf"chunk={chunk}, left={left}: expected chunk >= 1"):
        ChunkConfig(chunk, left)


def test_chunks_know_their_milliseconds_and_do_not_change() -> None:
    """20 ms a frame; frozen, so that it can be a key and a default."""
    assert ChunkConfig(16).ms == 320 and hash(ChunkConfig(16, 2)) == hash(ChunkConfig(16, 2))
    with pytest.raises(AttributeError):
        ChunkConfig(16).chunk = 3  # type: ignore[misc]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim=10 is not divisible by heads=4"):
        SelfAttention(10, 4)


# --- head by head --------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunk", [None, ChunkConfig(5, 7)])
def test_head_by_head_is_the_fused_kernel(padded: bool, chunk: ChunkConfig | None) -> None:
    """Values and gradients without dropout, with every kind of mask."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 37, 8, requires_grad=True) for _ in range(3))
    valid = torch.arange(37) < torch.tensor([[37], [20]]) if padded else None
    mask = attention_mask(valid, 37, chunk, q.device)
    pair = attend_by_heads(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(*pair, rtol=0, atol=1e-6)  # float32, values of order 1
    direction = torch.randn(2, 3, 37, 8)
    gradients = (torch.autograd.grad(y, (q, k, v), direction) for y in pair)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)  # of order 1, sums over 37 frames


@pytest.mark.parametrize("frames", [LONG - 1, LONG])
@pytest.mark.parametrize("chunk", [None, ChunkConfig(64, 128)])
def test_long_rows_in_training_are_attended_alike(frames, chunk) -> None:
    """By the fused kernel or head by head: what float64 gives, gradients too."""
    torch.manual_seed(0)
    attention, x = SelfAttention(16, heads=2), torch.randn(2, frames, 16)
    valid = torch.arange(frames) < torch.tensor([[frames], [frames // 3]])
    mask = attention_mask(valid, frames, chunk, x.device)
    answers = []
    for module, at in ((attention, x), (copy.deepcopy(attention).double(), x.double())):
        at = at.clone().requires_grad_()
        y = module(at, mask)
        answers.append((y, *torch.autograd.grad(y[valid].square().sum(), [at, module.q.weight])))
    for got, expected in zip(*answers, strict=True):
        # float32 rounding of sums over frames, relative to the largest
        atol = 1e-5 * float(expected.detach().abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0.0, atol=atol)


def test_head_by_head_dropout_is_dropout_on_the_weights() -> None:
    """The same mask in plain PyTorch gives the same values and gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 37, 8, requires_grad=True) for _ in range(3))
    torch.manual_seed(3)
    ours = attend_by_heads(q, k, v, None, 0.3)
    torch.manual_seed(3)
    keep, scale = keep_mask((2, 3, 37, 37), 0.3)
    theirs = ((q @ k.mT / 8**0.5).softmax(-1) * keep * scale) @ v
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)  # float32, values of order 1
    direction = torch.randn(2, 3, 37, 8)
    gradients = (torch.autograd.grad(y, (q, k, v), direction) for y in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "expected", "name"),
    [
        (None, None, None),
        (16, ChunkConfig(16), "320ms"),
        ([32, 256], ChunkConfig(32, 256), "640ms_5120ms"),
        ([16, None], ChunkConfig(16), "320ms"),
        ([1, 0], ChunkConfig(1, 0), "20ms_0ms"),
    ],
)
def test_chunks_as_recipes_write_them(setting, expected, name) -> None:
    found = ChunkConfig.read(setting)
    assert found == expected and (found is None or found.name == name)
