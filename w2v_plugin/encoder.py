"""Latents -> context: positions, then transformer layers (wav2vec 2.0, section 2).

Two published layouts: post-norm (BASE; LayerNorm before the first layer and after each block) and
pre-norm (`norm_first`, LARGE LV-60 and XLSR; LayerNorm before each block and after the last).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig, SelfAttention, attention_mask
from w2v_plugin.positions import ConvPositions


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with residual, dropout and LayerNorm."""

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn_dim: int,
        *,
        norm_first: bool,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(dim, heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn_out(self.activation_dropout(F.gelu(self.ffn_in(x))))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            return x + self.dropout(self.feed_forward(self.ffn_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.ffn_norm(x + self.dropout(self.feed_forward(x)))


class ContextEncoder(nn.Module):
    """Transformer over projected latents.

    Parameters
    ----------
    dim, layers, heads, ffn_dim : int
        Shape of the transformer.
    norm_first : bool
        Pre-norm (LARGE LV-60, XLSR) instead of post-norm (BASE).
    dropout, attention_dropout, activation_dropout : float
        After each block and before the first layer; on attention weights; inside the
        feed-forward. On a CPU, attention dropout costs the fused attention kernel.
    layer_drop : float
        Probability of skipping a layer during training. A skipped layer is still computed, so
        that every parameter has a gradient and `DistributedDataParallel` needs no search for
        unused ones.
    positions_kernel, positions_groups : int
        Shape of the positional convolution.

    Example
    -------
    >>> encoder = ContextEncoder(dim=16, layers=2, heads=2, ffn_dim=32, positions_kernel=8)
    >>> encoder(torch.randn(1, 10, 16))[0].shape
    torch.Size([1, 10, 16])
    """

    def __init__(
        self,
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn_dim: int = 3072,
        *,
        norm_first: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        positions_kernel: int = 128,
        positions_groups: int = 16,
    ) -> None:
        super().__init__()
        self.norm_first, self.layer_drop = norm_first, layer_drop
        self.positions = ConvPositions(dim, positions_kernel, positions_groups)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                heads,
                ffn_dim,
                norm_first=norm_first,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
            )
            for _ in range(layers)
        )
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, mean=0.0, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        *,
        chunk: ChunkConfig | None = None,
        output_hidden_states: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Contextualize (batch, frames, dim).

        Parameters
        ----------
        x : Tensor
            Projected (and, in training, masked) latents.
        valid : Tensor or None
            (batch, frames) bool, True for real frames; None when there is no padding.
        chunk : ChunkConfig, optional
            Restrict every frame to its chunk and the past.
        output_hidden_states : bool
            Also return what goes into the first layer and comes out of each layer; the last one
            is before the final LayerNorm of a pre-norm encoder (as in transformers 5).

        Returns
        -------
        tuple
            Context (batch, frames, dim) and the hidden states or None.
        """
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)  # what zero padding looks like to positions
        x = x + self.positions(x, None if chunk is None else chunk.chunk)
        if not self.norm_first:
            x = self.norm(x)
        x = self.dropout(x)
        mask = attention_mask(valid, x.shape[1], chunk, x.device)
        hidden = [x]
        for layer in self.layers:
            y = layer(x, mask)
            if self.training and self.layer_drop > 0:
                y = torch.where(torch.rand((), device=x.device) < self.layer_drop, x, y)
            x = y
            if output_hidden_states:
                hidden.append(x)
        if self.norm_first:
            x = self.norm(x)
        return x, tuple(hidden) if output_hidden_states else None
