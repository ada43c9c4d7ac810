"""Conformer layers (Gulati et al. 2020) in the place of transformer layers, as published.

    x ─ half ffn ─ attention ─ convolution ─ half ffn ─ norm ─►    each with norm and residual

Positions enter the attention, in one of two ways: "relative" (Transformer-XL, Dai et al. 2019) adds
a learned function of the distance to every score; "rotary" (Su et al. 2021) turns what queries and
keys are made of. Surprising in the published rotary models: the *input* of the two projections is
turned, not their result, so the scores depend on more than distances.

The convolution hears 15 frames to either side. What it hears in the padding is zero here, so that
an utterance gives the same alone and in a batch; fairseq and transformers let it hear whatever the
layers before made of padded frames (`leak`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.attention import Part, SelfAttention

KINDS = ("relative", "rotary")
BASE = 10_000  # of the wavelengths: 2 pi to 2 pi times this many frames


@dataclass(frozen=True)
class Surroundings:
    """What a layer must know about the frames that it gets."""

    parts: Sequence[Part]  # utterances in one row, or a padded batch as a whole
    positions: Tensor  # from `distances` or `turns`
    silent: Tensor | None  # (batch, frames) bool: what the convolution must not hear


def distances(frames: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances `frames` to -(frames - 1), in this order: (2 * frames, dim).

    In float32 whatever the type of `like`, as in training: the frequencies are rounded, which is
    worth 1e-3 at a distance of a minute.

    Example
    -------
    >>> distances(3, 2, torch.zeros(1))[:, 0].arcsin()[1:].round(decimals=2)
    tensor([ 1.1400,  1.0000,  0.0000, -1.0000, -1.1400])
    """
    distance = torch.arange(frames, -frames, -1, device=like.device, dtype=torch.float32)
    step = torch.arange(0, dim, 2, device=like.device, dtype=torch.float32)
    angles = distance[:, None] * torch.exp(step * -(math.log(BASE) / dim))
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).to(like.dtype)


class RotaryFrequencies(nn.Module):
    """How fast each pair of channels turns; not learned, but published with the weights."""

    values: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        step = torch.arange(0, head_dim, 2, dtype=torch.float32)
        self.register_buffer("values", 1.0 / BASE ** (step / head_dim))  # (head_dim / 2,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move it, but never to half precision: angles would be off by many degrees."""
        precise = self.values
        super()._apply(fn, recurse)
        if self.values.itemsize < 4:
            self.values = precise.to(self.values.device)
        return self

    def forward(self, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Cosines and sines for utterances in one row: (2, frames of all, 1, head_dim)."""
        time = [torch.arange(n, device=self.values.device) for n in lengths]
        angles = torch.cat(time).to(self.values.dtype)[:, None] * self.values
        angles = torch.cat((angles, angles), -1)[:, None]
        return torch.stack((angles.cos(), angles.sin())).to(dtype)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate channel i of each head with channel i + head_dim / 2: (batch, frames, dim), same."""
    cos, sin = turns
    heads = x.unflatten(-1, (-1, cos.shape[-1]))  # (batch, frames, heads, head_dim)
    first, second = heads.chunk(2, -1)
    return (heads * cos + torch.cat((-second, first), -1) * sin).flatten(2)


class ConformerAttention(SelfAttention):
    """Self-attention with rotary positions."""

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:  # type: ignore[override]
        """(batch, frames, dim) -> same shape."""
        turned = turn(x, around.positions)
        q, k, v = self.split(self.q(turned)), self.split(self.k(turned)), self.split(self.v(x))
        rows = []
        for part in around.parts:
            query, key, value = (t[:, :, part.frames] for t in (q, k, v))
            rows.append(self.attend(query, key, value, part.mask))
        return self.merge(rows)

    def split(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> (batch, heads, frames, head_dim)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, rows: list[Tensor]) -> Tensor:
        """Back again, from the utterances of a row, and the last projection."""
        return self.out(torch.cat(rows, dim=2).transpose(1, 2).flatten(2))


class RelativeAttention(ConformerAttention):
    """Self-attention with relative positions: score(i, j) = (q_i + u) k_j + (q_i + w) p_(i-j)."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout)
        self.position = nn.Linear(dim, dim, bias=False)
        self.bias_u = nn.Parameter(torch.empty(heads, dim // heads))
        self.bias_w = nn.Parameter(torch.empty(heads, dim // heads))
        nn.init.xavier_uniform_(self.bias_u)
        nn.init.xavier_uniform_(self.bias_w)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:  # type: ignore[override]
        """(batch, frames, dim) -> same shape."""
        q, k, v = (self.split(linear(x)) for linear in (self.q, self.k, self.v))
        p = self.split(self.position(around.positions)[None])
        longest = p.shape[2] // 2
        rows = []
        for part in around.parts:
            query, key, value = (t[:, :, part.frames] for t in (q, k, v))
            frames = query.shape[2]
            scores = self.by_distance(query, p[:, :, longest - frames : longest + frames])
            if part.mask is not None:
                scores = scores.masked_fill(~part.mask, torch.finfo(scores.dtype).min)
            rows.append(self.attend(query + self.bias_u[:, None], key, value, scores))
        return self.merge(rows)

    def by_distance(self, q: Tensor, p: Tensor) -> Tensor:
        """What the distances add to the scores: (batch, heads, frames, frames).

        Query i finds key j at entry frames - i + j of its 2 * frames distances. Read as rows that
        are one entry shorter, each starts where the distances of its query to key 0 are.
        """
        frames = q.shape[2]
        scores = (q + self.bias_w[:, None]) @ p.transpose(2, 3) * q.shape[3] ** -0.5
        rows = scores.flatten(2)[:, :, frames:].unflatten(2, (frames, 2 * frames - 1))
        return rows[..., :frames]


class Pointwise(nn.Linear):
    """Linear layer without bias whose weights are written as those of a convolution of 1 tap."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.weight = nn.Parameter(self.weight.detach()[:, :, None])

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, self.weight[:, :, 0])


class ConvModule(nn.Module):
    """Norm, gate, depthwise convolution over time, BatchNorm, swish.

    In training, BatchNorm takes its statistics over all frames, padded ones included.
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"conformer_kernel={kernel}, expected an odd number of frames.")
        self.norm = nn.LayerNorm(dim)
        self.pointwise_1 = Pointwise(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.batch_norm = nn.BatchNorm1d(dim)
        self.pointwise_2 = Pointwise(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """(batch, frames, dim) -> what is to be added to it."""
        x = F.glu(self.pointwise_1(self.norm(x)))
        if around.silent is not None:
            x = x.masked_fill(around.silent[..., None], 0.0)
        x = x.transpose(1, 2)
        x = torch.cat([self.depthwise(x[:, :, part.frames]) for part in around.parts], dim=2)
        return self.dropout(self.pointwise_2(F.silu(self.batch_norm(x)).transpose(1, 2)))


class FeedForward(nn.Module):
    """Norm and two linear layers with swish in between."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float, activation_dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear_1 = nn.Linear(dim, ffn_dim)
        self.linear_2 = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> what is to be added to it, in halves."""
        x = self.activation_dropout(F.silu(self.linear_1(self.norm(x))))
        return self.dropout(self.linear_2(x))


class ConformerLayer(nn.Module):
    """Half a feed-forward, self-attention, convolution, the other half, LayerNorm.

    Parameters
    ----------
    dim, heads, ffn_dim : int
        Shape.
    kind : {"relative", "rotary"}
        How attention knows of positions.
    kernel : int
        Frames that the convolution hears, odd; 31 in published models.
    dropout, attention_dropout, activation_dropout : float
        After each of the four; on attention weights; inside the feed-forward.

    Example
    -------
    >>> layer = ConformerLayer(16, heads=2, ffn_dim=32, kind="relative", kernel=5)
    >>> around = Surroundings([Part(slice(None), None)], distances(9, 16, torch.ones(1)), None)
    >>> layer(torch.randn(2, 9, 16), around).shape
    torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn_dim: int,
        *,
        kind: str,
        kernel: int = 31,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        attention = RelativeAttention if kind == "relative" else ConformerAttention
        self.ffn_1 = FeedForward(dim, ffn_dim, dropout, activation_dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.self_attention = attention(dim, heads, attention_dropout)
        self.conv = ConvModule(dim, kernel, dropout)
        self.ffn_2 = FeedForward(dim, ffn_dim, dropout, activation_dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """(batch, frames, dim) -> same shape."""
        x = x + 0.5 * self.ffn_1(x)
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), around))
        x = x + self.conv(x, around)
        return self.norm(x + 0.5 * self.ffn_2(x))


class ConformerPositions(nn.Module):
    """What all conformer layers share: where frames are, and whose.

    Parameters
    ----------
    kind : {"relative", "rotary"}
        See `ConformerLayer`.
    dim, heads : int
        Shape of the encoder.

    Example
    -------
    >>> around = ConformerPositions("rotary", dim=16, heads=2)(torch.zeros(2, 9, 16), None)
    >>> around.positions.shape  # cosines and sines
    torch.Size([2, 9, 1, 8])
    """

    def __init__(self, kind: str, dim: int, heads: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"conformer={kind!r}, expected one of {KINDS} or None.")
        width = dim if kind == "relative" else dim // heads
        if width % 2:
            raise ValueError(f"dim={dim}, heads={heads}: sine and cosine need an even {width}.")
        self.frequencies = RotaryFrequencies(width) if kind == "rotary" else None

    def forward(
        self, x: Tensor, mask: Tensor | Sequence[Part] | None, silent: Tensor | None = None
    ) -> Surroundings:
        """Surroundings of x (batch, frames, dim).

        `mask` is as for `SelfAttention`; `silent` (batch, frames) is True where the convolution
        must not hear.
        """
        if mask is None or isinstance(mask, Tensor):
            parts, lengths = [Part(slice(None), mask)], [x.shape[1]]
        else:
            parts, lengths = list(mask), [p.frames.stop - p.frames.start for p in mask]
        if self.frequencies is not None:
            return Surroundings(parts, self.frequencies(lengths, x.dtype), silent)
        return Surroundings(parts, distances(max(lengths), x.shape[2], x), silent)
