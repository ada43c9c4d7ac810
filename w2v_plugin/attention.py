"""Multi-head self-attention, full or in chunks.

A chunked query sees every key of its own chunk, `left` frames before the chunk, and nothing
after it. Look-ahead does not add up over layers, because all layers share one chunk grid.

Attention itself is PyTorch's fused kernel. In training on a CPU, that kernel knows no dropout (what
takes its place stores every weight several times), and is slow at length. There `attend_by_heads`
goes head by head, while the weights of a head are in the cache, and computes them again for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from w2v_plugin.linear import Linear, fast, keep_mask
from w2v_plugin.lora import LowRank
from w2v_plugin.products import product

LONG = 320  # frames from which `attend_by_heads` is faster than PyTorch's kernel


@dataclass(frozen=True)
class ChunkConfig:
    """How much of the utterance a frame may see.

    Parameters
    ----------
    chunk : int
        Frames (20 ms) per chunk; a frame sees its chunk to the end.
    left : int, optional
        Frames before the chunk that it sees; None for all of them.

    Example
    -------
    >>> ChunkConfig(chunk=32).ms  # 640 ms
    640
    """

    chunk: int
    left: int | None = None

    def __post_init__(self) -> None:
        if self.chunk < 1 or (self.left is not None and self.left < 0):
            raise ValueError(
                f"chunk={self.chunk}, left={self.left}: expected chunk >= 1 frame and "
                "left >= 0 frames (or None)."
            )

    @property
    def ms(self) -> int:
        """Length of a chunk in milliseconds."""
        return self.chunk * 20

    @property
    def name(self) -> str:
        """As it is called in tables: "640ms", or "640ms_5120ms" with limited left context."""
        return f"{self.ms}ms" + ("" if self.left is None else f"_{self.left * 20}ms")

    @classmethod
    def read(cls, setting: int | Sequence[Any] | None) -> ChunkConfig | None:
        """What a recipe says: null for the whole utterance, a chunk, or [chunk, left], in frames.

        Example
        -------
        >>> ChunkConfig.read([32, 256]).name
        '640ms_5120ms'
        """
        if setting is None:
            return None
        return cls(setting) if isinstance(setting, int) else cls(*setting)


def attention_mask(
    valid: Tensor | None, size: int, chunk: ChunkConfig | None, device: torch.device
) -> Tensor | None:
    """Which keys a query may see: (batch | 1, 1, size | 1, size) bool, or None for all.

    `valid` is (batch, size), True for real frames, or None when there is no padding.
    """
    mask = None if valid is None else valid[:, None, None, :]
    if chunk is None:
        return mask
    frame = torch.arange(size, device=device)
    begin = frame - frame % chunk.chunk
    seen = frame < (begin + chunk.chunk)[:, None]  # (queries, keys)
    if chunk.left is not None:
        seen = seen & (frame >= (begin - chunk.left)[:, None])
    if mask is None:
        return seen[None, None]
    # a padded query may have no real key: let it see itself, or softmax gives NaN
    return (mask & seen) | torch.eye(size, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Part:
    """One utterance in a row of several, packed without padding: its frames, and its mask."""

    frames: slice
    mask: Tensor | None  # as from `attention_mask`


def packed_parts(
    lengths: Sequence[int], chunk: ChunkConfig | None, device: torch.device
) -> list[Part]:
    """Utterances of `lengths` frames, one after the other."""
    parts, start = [], 0
    for size in lengths:
        parts.append(Part(slice(start, start + size), attention_mask(None, size, chunk, device)))
        start += size
    return parts


@dataclass
class Memory:
    """Keys and values of frames that went by, for one layer and one chunk.

    Attention adds those of the chunk: afterwards `keys` and `values` hold both.
    """

    keys: Tensor  # (batch, heads, frames, d)
    values: Tensor
    mask: Tensor | None = None  # (batch, 1, 1, frames, those of the chunk included) bool

    def extend(self, keys: Tensor, values: Tensor) -> None:
        """Add those of the chunk, (batch, heads, chunk, d)."""
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)


class _AttendByHeads(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        y = torch.empty_like(q)
        keep, scale = None, 1.0
        if dropout > 0:
            keep, scale = keep_mask((*q.shape[:3], k.shape[2]), dropout)
        for at in heads_of(q):
            weights = attention_weights(one(q, at), one(k, at), mask, at)
            if keep is not None:
                weights.mul_(keep[at])
            y[at] = product(weights, one(v, at).t())
        ctx.save_for_backward(q, k, v, mask, keep)  # type: ignore[arg-type]
        ctx.scale = scale  # type: ignore[attr-defined]
        return y.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, mask, keep = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for at in heads_of(q):
            query, key, value = (one(x, at) for x in (q, k, v))
            coming = one(grad, at) * ctx.scale  # type: ignore[attr-defined]
            weights = attention_weights(query, key, mask, at)
            grad_weights = product(coming, value)
            kept = weights
            if keep is not None:
                grad_weights.mul_(keep[at])
                kept = weights * keep[at]
            grad_v[at] = product(coming.t(), kept.t()).t()
            scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_q[at] = product(scores, key.t())
            grad_k[at] = product(query.t(), scores.t()).t()
        factor = q.shape[-1] ** -0.5
        return grad_q.mul_(factor), grad_k.mul_(factor), grad_v, None, None


def heads_of(q: Tensor) -> list[tuple[int, int]]:
    """Indices of all heads of (batch, heads, frames, d)."""
    return [(row, head) for row in range(q.shape[0]) for head in range(q.shape[1])]


def one(x: Tensor, at: tuple[int, int]) -> Tensor:
    """A head of (batch, heads, frames, d): (frames, d) without gaps, which make products slow."""
    return x[at].contiguous()


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, at: tuple[int, int]) -> Tensor:
    """softmax(q k^T / sqrt(d)) of one head, (frames, d) each; `mask` is that of the batch."""
    scores = product(q * q.shape[-1] ** -0.5, k)
    if mask is not None:
        hidden = ~mask[at[0] if len(mask) > 1 else 0, 0]
        scores += scores.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1)


def attend_by_heads(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with dropout on the weights, for training on a CPU.

    Parameters
    ----------
    q, k, v : Tensor
        (batch, heads, frames, d), float32.
    mask : Tensor or None
        As from `attention_mask`.
    dropout : float
        Share of the weights that are set to zero.

    Example
    -------
    >>> q, k, v = torch.randn(3, 2, 4, 7, 8)
    >>> expected = F.scaled_dot_product_attention(q, k, v)
    >>> torch.allclose(attend_by_heads(q, k, v, None), expected, atol=1e-5)
    True
    """
    return _AttendByHeads.apply(q, k, v, mask, dropout)


PROJECTIONS = ("q", "k", "v", "out")


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases on all four projections.

    The projections see frames and do not care whose; attention itself runs within an utterance.
    With `lora_rank`, each of them has a `LowRank` update beside it.

    Example
    -------
    >>> SelfAttention(16, heads=4)(torch.randn(2, 5, 16), None).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        *,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}.")
        self.heads, self.dropout = heads, dropout
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.out = Linear(dim, dim)
        self.lora: nn.ModuleDict | None = None
        if lora_rank is not None:
            updates = {name: LowRank(dim, lora_rank, lora_alpha) for name in PROJECTIONS}
            self.lora = nn.ModuleDict(updates)

    def project(self, name: str, x: Tensor) -> Tensor:
        """x through one of the projections, and what a language adds to it."""
        y = getattr(self, name)(x)
        return y if self.lora is None else y + self.lora[name](x)

    def forward(self, x: Tensor, mask: Tensor | Sequence[Part] | Memory | None) -> Tensor:
        """x (batch, frames, dim); mask as from `attention_mask`, or the utterances in one row, or
        what is known of the frames before."""
        q, k, v = (
            self.project(name, x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in PROJECTIONS[:3]  # (batch, heads, frames, d) each
        )
        if mask is None or isinstance(mask, Tensor):
            y = self.attend(q, k, v, mask)
        elif isinstance(mask, Memory):
            mask.extend(k, v)
            y = self.attend(q, mask.keys, mask.values, mask.mask)
        else:
            utterances = [
                self.attend(q[:, :, one.frames], k[:, :, one.frames], v[:, :, one.frames], one.mask)
                for one in mask
            ]
            y = torch.cat(utterances, dim=2)
        return self.project("out", y.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k / sqrt(d)) v of (batch, heads, frames, d)."""
        dropout = self.dropout if self.training else 0.0
        wanted = dropout > 0 or q.shape[2] >= LONG
        wanted &= mask is None or mask.dtype == torch.bool  # not scores, which have gradients
        if wanted and torch.is_grad_enabled() and fast(q):
            return attend_by_heads(q, k, v, mask, dropout)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
