"""Latents -> context: positions, then transformer layers (wav2vec 2.0, section 2).

Two published layouts: post-norm (BASE; LayerNorm before the first layer and after each block) and
pre-norm (`norm_first`, LARGE LV-60 and XLSR; LayerNorm before each block and after the last). A
third one has conformer layers instead, which bring their own positions (conformer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from w2v_plugin.adapters import LanguageAdapter
from w2v_plugin.attention import (
    ChunkConfig,
    Memory,
    Part,
    SelfAttention,
    attention_mask,
    packed_parts,
)
from w2v_plugin.conformer import ConformerLayer, ConformerPositions, Surroundings
from w2v_plugin.linear import Dropout, LayerNorm, Linear, after_gelu
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
        adapter_dim: int | None = None,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
    ) -> None:
        super().__init__()
        if adapter_dim is not None and not norm_first:
            raise ValueError(f"adapter_dim={adapter_dim} needs norm_first=True, as in MMS.")
        self.norm_first = norm_first
        self.attention = SelfAttention(
            dim, heads, attention_dropout, lora_rank=lora_rank, lora_alpha=lora_alpha
        )
        self.attention_norm = LayerNorm(dim)
        self.ffn_in = Linear(dim, ffn_dim)
        self.ffn_out = Linear(ffn_dim, dim)
        self.ffn_norm = LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.activation_dropout = Dropout(activation_dropout)
        self.adapter = None if adapter_dim is None else LanguageAdapter(dim, adapter_dim)

    def feed_forward(self, x: Tensor) -> Tensor:
        return after_gelu(self.ffn_in(x), self.ffn_out, self.activation_dropout)

    def forward(self, x: Tensor, mask: Tensor | Sequence[Part] | Memory | None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            x = x + self.dropout(self.feed_forward(self.ffn_norm(x)))
            return x if self.adapter is None else x + self.adapter(x)
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
        feed-forward.
    layer_drop : float
        Probability of skipping a layer during training. A skipped layer is still computed, so
        that every parameter has a gradient and `DistributedDataParallel` needs no search for
        unused ones.
    positions_kernel, positions_groups : int
        Shape of the positional convolution.
    causal_positions : bool
        Positions that never look ahead, see `ConvPositions`.
    adapter_dim : int, optional
        Width of a language adapter after each layer (pre-norm only); None for none.
    lora_rank, lora_alpha : int, float
        Of the `LowRank` updates of attention's projections; a rank of None for none.
    conformer : {"relative", "rotary"}, optional
        Conformer layers with positions of this kind (pre-norm only); None for transformer layers.
        The convolutional positions are part of the model all the same, as published, and do
        nothing.
    conformer_kernel : int
        Frames that the convolution of a conformer layer hears.
    activation_checkpointing : bool
        Keep only what goes into each layer and compute the rest again in the backward pass:
        less memory, a third more time, the same gradients.

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
        causal_positions: bool = False,
        adapter_dim: int | None = None,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
        conformer: str | None = None,
        conformer_kernel: int = 31,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.norm_first, self.layer_drop = norm_first, layer_drop
        self.activation_checkpointing = activation_checkpointing
        self.positions = ConvPositions(
            dim, positions_kernel, positions_groups, causal=causal_positions
        )
        self.conformer = None
        layer: Callable[..., nn.Module] = partial(
            EncoderLayer,
            norm_first=norm_first,
            adapter_dim=adapter_dim,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
        )
        if conformer is not None:
            if not norm_first or adapter_dim is not None or lora_rank is not None:
                raise ValueError(
                    f"conformer={conformer!r} with norm_first={norm_first}, adapter_dim="
                    f"{adapter_dim}, lora_rank={lora_rank}: expected norm_first=True, and no "
                    "adapters, as published."
                )
            self.conformer = ConformerPositions(conformer, dim, heads)
            self.positions.requires_grad_(False)  # DDP wants no idle parameters
            layer = partial(ConformerLayer, kind=conformer, kernel=conformer_kernel)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            layer(
                dim,
                heads,
                ffn_dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
            )
            for _ in range(layers)
        )
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, mean=0.0, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        *,
        packed: Sequence[int] | None = None,
        chunk: ChunkConfig | None = None,
        leak: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Contextualize (batch, frames, dim).

        Parameters
        ----------
        x : Tensor
            Projected (and, in training, masked) latents.
        valid : Tensor or None
            (batch, frames) bool, True for real frames; None when there is no padding.
        packed : sequence of int, optional
            Frames of utterances that lie one after the other in the only row of the batch. Only
            what looks beyond a frame knows of them: positions, attention, convolutions.
        chunk : ChunkConfig, optional
            Restrict every frame to its chunk and the past; not in a conformer.
        leak : bool
            Let the convolutions of a conformer hear padded frames.
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
        if self.conformer is None:
            frames = None if chunk is None else chunk.chunk
            parts = (x,) if packed is None else x.split(list(packed), dim=1)
            x = x + torch.cat([self.positions(part, frames) for part in parts], dim=1)
        if not self.norm_first:
            x = self.norm(x)
        x = self.dropout(x)
        mask: Tensor | list[Part] | None = (
            attention_mask(valid, x.shape[1], chunk, x.device)
            if packed is None
            else packed_parts(packed, chunk, x.device)
        )
        around: Tensor | list[Part] | Surroundings | None = mask
        if self.conformer is not None:
            around = self.conformer(x, mask, None if leak or valid is None else ~valid)
        hidden = [x]
        for layer in self.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                y = checkpoint(layer, x, around, use_reentrant=False)
            else:
                y = layer(x, around)
            if self.training and self.layer_drop > 0:
                y = torch.where(torch.rand((), device=x.device) < self.layer_drop, x, y)
            x = y
            if output_hidden_states:
                hidden.append(x)
        if self.norm_first:
            x = self.norm(x)
        return x, tuple(hidden) if output_hidden_states else None

    def step(self, x: Tensor, past: Tensor, memories: Sequence[Memory]) -> Tensor:
        """As `forward` in evaluation mode, of the next chunk of streams.

        Parameters
        ----------
        x : Tensor
            (batch, chunk, dim) projected latents; zero where a row has fewer frames.
        past : Tensor
            (batch, positions.past, dim) of the frames before; zero before the first one.
        memories : sequence of Memory
            One for each layer; the chunk is added to it.

        Returns
        -------
        Tensor
            Context (batch, chunk, dim).
        """
        x = x + self.positions.step(past, x)
        if not self.norm_first:
            x = self.norm(x)
        for layer, memory in zip(self.layers, memories, strict=True):
            x = layer(x, memory)
        return self.norm(x) if self.norm_first else x
