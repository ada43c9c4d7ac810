"""Multi-head self-attention, full or in chunks, on PyTorch's fused kernels.

A chunked query sees every key of its own chunk, `left` frames before the chunk, and nothing
after it. Look-ahead does not add up over layers, because all layers share one chunk grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases on all four projections.

    The projections see frames and do not care whose; attention itself runs within an utterance.

    Example
    -------
    >>> SelfAttention(16, heads=4)(torch.randn(2, 5, 16), None).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}.")
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | Sequence[Part] | None) -> Tensor:
        """x (batch, frames, dim); mask as from `attention_mask`, or the utterances in one row."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, frames, d)
            for proj in (self.q, self.k, self.v)
        )
        if mask is None or isinstance(mask, Tensor):
            y = self.attend(q, k, v, mask)
        else:
            utterances = [
                self.attend(q[:, :, one.frames], k[:, :, one.frames], v[:, :, one.frames], one.mask)
                for one in mask
            ]
            y = torch.cat(utterances, dim=2)
        return self.out(y.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k / sqrt(d)) v of (batch, heads, frames, d)."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
