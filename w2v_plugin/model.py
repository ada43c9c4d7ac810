"""The three models: Wav2Vec2 (wavs -> context), Wav2Vec2Pretraining, Wav2Vec2CTC.

    wavs ─ extract ─► latents ─ project ─ mask ─ encoder ─► context ─ head ─► logits   (CTC)
                         └─ quantizer ─► targets ─ contrastive loss ◄─┘               (pretraining)

Two facts that surprise: BASE has 12 heads (the paper's text says 8), and the XLS-R 1B model is
1280 wide (the paper's table says 1024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.encoder import ContextEncoder
from w2v_plugin.features import ConvExtractor, FeatureProjection, ScaleGradient, normalize_wavs
from w2v_plugin.frames import KERNELS, STRIDES, absolute_lengths, valid_frames
from w2v_plugin.losses import Contrastive, contrastive_loss, feature_penalty, sample_negatives
from w2v_plugin.masking import masked_indices, span_mask
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer, Quantized

# The published shapes, as data: `Wav2Vec2(**SHAPES["base"])`.
SHAPES: dict[str, dict[str, Any]] = {
    "base": {"dim": 768, "layers": 12, "heads": 12, "ffn_dim": 3072},
    "large": {"dim": 1024, "layers": 24, "heads": 16, "ffn_dim": 4096},
    "large_lv60": {
        "dim": 1024,
        "layers": 24,
        "heads": 16,
        "ffn_dim": 4096,
        "extractor_norm": "layer",
        "conv_bias": True,
        "norm_first": True,
    },
}

PADDING_MODES = ("exact", "mask", "reference")


@dataclass
class Wav2Vec2Output:
    """What the models return; frames beyond `frame_lengths` are meaningless."""

    context: Tensor  # (batch, frames, dim)
    frame_lengths: Tensor  # (batch,) valid frames
    hidden_states: tuple[Tensor, ...] | None = None  # layers + 1 of (batch, frames, dim)
    logits: Tensor | None = None  # (batch, frames, vocab), CTC only, before softmax


@dataclass
class PretrainingOutput:
    """Losses of one batch. `loss` is a *sum* over `contrastive.count` masked frames."""

    loss: Tensor  # contrastive + count * (weighted diversity, penalty, commitment)
    contrastive: Contrastive
    quantized: Quantized
    penalty: Tensor  # mean square of the latents
    mask: Tensor  # (batch, frames) bool
    frame_lengths: Tensor  # (batch,)
    chance: Tensor | None = None  # evaluation: frames that a *random* context gets right


class Wav2Vec2(nn.Module):
    """Wav2vec 2.0 without a head (Baevski et al. 2020). The defaults are the BASE model.

    Parameters
    ----------
    dim, layers, heads, ffn_dim : int
        Shape of the transformer.
    channels : sequence of int
        Width of the seven convolutions.
    extractor_norm : {"group", "layer"}
        See `ConvExtractor`. Only "layer" can stream.
    conv_bias : bool
        Whether the convolutions have a bias.
    norm_first : bool
        Pre-norm transformer.
    normalize : bool
        Bring every utterance to zero mean and unit variance first, as the published LARGE
        checkpoints (and transformers' BASE) expect.
    normalize_eps : float
        1e-7 as in transformers, 1e-5 as in fairseq and torchaudio.
    padding : {"exact", "mask", "reference"}
        What padding does to the result. "exact": nothing, for both families (norm statistics
        over valid samples, attention mask). "mask": fairseq's, statistics of a group-norm
        extractor include the padding. "reference": transformers', a group-norm model gets no
        mask at all, so that its answer depends on the padding.
    dropout, attention_dropout, activation_dropout, layer_drop : float
        See `ContextEncoder`; `dropout` also acts on the projected latents.
    feature_grad_scale : float
        Multiplies the gradient that reaches the extractor; 0 freezes it (published: 0.1 for
        BASE pretraining, 0 for fine-tuning).
    positions_kernel, positions_groups : int
        Positional convolution.

    Example
    -------
    >>> model = Wav2Vec2(dim=16, layers=2, heads=2, ffn_dim=32, channels=(8,) * 7).eval()
    >>> out = model(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> out.context.shape, out.frame_lengths.tolist()
    (torch.Size([2, 49, 16]), [49, 24])
    """

    def __init__(
        self,
        *,
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn_dim: int = 3072,
        channels: Sequence[int] = (512,) * 7,
        extractor_norm: str = "group",
        conv_bias: bool = False,
        norm_first: bool = False,
        normalize: bool = True,
        normalize_eps: float = 1e-7,
        padding: str = "exact",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        feature_grad_scale: float = 1.0,
        positions_kernel: int = 128,
        positions_groups: int = 16,
        kernels: Sequence[int] = KERNELS,
        strides: Sequence[int] = STRIDES,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = config  # all it takes to build this model again
        if padding not in PADDING_MODES:
            raise ValueError(f"padding={padding!r}, expected one of {PADDING_MODES}.")
        self.padding = padding
        self.normalize, self.normalize_eps = normalize, normalize_eps
        self.feature_grad_scale = feature_grad_scale
        self.extractor = ConvExtractor(
            channels, norm=extractor_norm, bias=conv_bias, kernels=kernels, strides=strides
        )
        self.projection = FeatureProjection(channels[-1], dim, dropout)
        self.mask_embedding = nn.Parameter(torch.rand(dim))
        self.encoder = ContextEncoder(
            dim,
            layers,
            heads,
            ffn_dim,
            norm_first=norm_first,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=activation_dropout,
            layer_drop=layer_drop,
            positions_kernel=positions_kernel,
            positions_groups=positions_groups,
        )

    @property
    def dim(self) -> int:
        """Width of the context."""
        return self.projection.linear.out_features

    def freeze_extractor(self) -> None:
        """Stop training the convolutions, and stop computing gradients for them."""
        self.feature_grad_scale = 0.0
        self.extractor.requires_grad_(False)

    def extract(self, wavs: Tensor, wav_lens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms to latents.

        Parameters
        ----------
        wavs : Tensor
            (batch, samples) at 16 kHz.
        wav_lens : Tensor, optional
            (batch,) relative lengths; None means that nothing is padding.

        Returns
        -------
        tuple
            Latents (batch, frames, channels), and valid frames (batch,) or None as `wav_lens`.
        """
        lengths = None if wav_lens is None else absolute_lengths(wav_lens, wavs.shape[1])
        if self.normalize:
            wavs = normalize_wavs(wavs, lengths, self.normalize_eps)
        if lengths is not None:
            wavs = wavs.masked_fill(~valid_frames(lengths, wavs.shape[1]), 0.0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.feature_grad_scale > 0):
            latents = self.extractor(wavs, lengths if self.padding == "exact" else None)
        if latents.requires_grad and self.feature_grad_scale != 1.0:
            latents = ScaleGradient.apply(latents, self.feature_grad_scale)
        return latents, None if lengths is None else self.extractor.frame_lengths(lengths)

    def contextualize(
        self,
        latents: Tensor,
        frame_lengths: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        chunk: ChunkConfig | None = None,
        output_hidden_states: bool = False,
        normed: Tensor | None = None,
    ) -> Wav2Vec2Output:
        """Latents to context.

        Parameters
        ----------
        latents : Tensor
            (batch, frames, channels) from `extract`.
        frame_lengths : Tensor, optional
            (batch,) valid frames; None means that nothing is padding.
        mask : Tensor, optional
            (batch, frames) bool; True frames are replaced by the mask embedding.
        channel_mask : Tensor, optional
            (batch, dim) bool; True channels are set to zero.
        chunk : ChunkConfig, optional
            Restrict what each frame sees.
        output_hidden_states : bool
            See `ContextEncoder.forward`.
        normed : Tensor, optional
            The latents after the projection's LayerNorm, if they are at hand already.
        """
        x = self.projection(self.projection.norm(latents) if normed is None else normed)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_embedding.to(x.dtype), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None], 0.0)
        frames = latents.shape[1]
        unmasked = self.padding == "reference" and self.extractor.norm == "group"
        valid = None
        if frame_lengths is not None and not unmasked:
            valid = valid_frames(frame_lengths, frames)
        context, hidden = self.encoder(
            x, valid, chunk=chunk, output_hidden_states=output_hidden_states
        )
        if frame_lengths is None:
            frame_lengths = torch.full((len(latents),), frames, device=latents.device)
        return Wav2Vec2Output(context, frame_lengths, hidden)

    def forward(
        self,
        wavs: Tensor,
        wav_lens: Tensor | None = None,
        *,
        chunk: ChunkConfig | None = None,
        output_hidden_states: bool = False,
    ) -> Wav2Vec2Output:
        """(batch, samples) and relative lengths -> `Wav2Vec2Output`."""
        latents, lengths = self.extract(wavs, wav_lens)
        return self.contextualize(
            latents, lengths, chunk=chunk, output_hidden_states=output_hidden_states
        )


class Wav2Vec2Pretraining(nn.Module):
    """Contrastive pretraining with a product quantizer (sections 3.1 and 3.2).

    Parameters
    ----------
    wav2vec2 : Wav2Vec2
        The model to train.
    quantizer : GumbelQuantizer or NearestQuantizer
        Makes the targets from the normed latents.
    dim : int
        Width in which context and targets are compared; published: 256 (BASE), 768 (LARGE).
    negatives : int
        Distractors per masked frame.
    temperature : float
        Of the cosine similarities.
    mask_prob, mask_length
        See `span_mask`.
    diversity_weight, penalty_weight : float
        Published: 0.1 and 10.
    quantizer_dropout : float
        On the latents that are quantized.

    Example
    -------
    >>> wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> model = Wav2Vec2Pretraining(wav2vec2, GumbelQuantizer(8, codes=20, dim=8), dim=8)
    >>> out = model(torch.randn(2, 16000))
    >>> out.loss.requires_grad, out.mask.shape
    (True, torch.Size([2, 49]))
    """

    def __init__(
        self,
        wav2vec2: Wav2Vec2,
        quantizer: GumbelQuantizer | NearestQuantizer,
        *,
        dim: int = 256,
        negatives: int = 100,
        temperature: float = 0.1,
        mask_prob: float = 0.65,
        mask_length: int = 10,
        diversity_weight: float = 0.1,
        penalty_weight: float = 10.0,
        quantizer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.wav2vec2, self.quantizer = wav2vec2, quantizer
        self.project_targets = nn.Linear(quantizer.dim, dim)
        self.project_context = nn.Linear(wav2vec2.dim, dim)
        self.quantizer_dropout = nn.Dropout(quantizer_dropout)
        self.negatives, self.temperature = negatives, temperature
        self.mask_prob, self.mask_length = mask_prob, mask_length
        self.diversity_weight, self.penalty_weight = diversity_weight, penalty_weight

    def forward(
        self,
        wavs: Tensor,
        wav_lens: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        negatives: Tensor | None = None,
        chunk: ChunkConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> PretrainingOutput:
        """Losses of a batch.

        Parameters
        ----------
        wavs, wav_lens
            As in `Wav2Vec2`.
        mask : Tensor, optional
            (batch, frames) bool; drawn by `span_mask` when not given.
        negatives : Tensor, optional
            (batch, masked, n) indices among the masked frames; drawn when not given.
        chunk : ChunkConfig, optional
            Train the context in chunks.
        generator : torch.Generator, optional
            For mask and negatives; makes evaluation repeatable.
        """
        latents, lengths = self.wav2vec2.extract(wavs, wav_lens)
        normed = self.wav2vec2.projection.norm(latents)
        size = latents.shape[1]
        counts = lengths
        if counts is None:
            counts = torch.full((len(latents),), size, device=latents.device)
        if mask is None:
            mask = span_mask(
                counts, size, prob=self.mask_prob, length=self.mask_length, generator=generator
            )
        out = self.wav2vec2.contextualize(latents, lengths, mask=mask, chunk=chunk, normed=normed)
        index, valid = masked_indices(mask)  # (batch, masked)
        quantized = self.quantizer(self.quantizer_dropout(take(normed, index)), valid)
        if negatives is None:
            negatives = sample_negatives(valid.sum(1), index.shape[1], self.negatives, generator)
        context = self.project_context(take(out.context, index))
        score = partial(
            contrastive_loss,
            targets=self.project_targets(quantized.vectors),
            negatives=negatives,
            valid=valid,
            codes=quantized.codes,
            temperature=self.temperature,
        )
        contrastive = score(context)
        chance = None
        if not self.training:  # not 1 in 101: negatives repeat and share codes
            noise = torch.randn(context.shape, device=context.device, generator=generator)
            chance = score(noise.to(context.dtype)).correct
        penalty = feature_penalty(
            latents, None if lengths is None else valid_frames(lengths, size)
        )
        extra = (
            self.diversity_weight * quantized.diversity
            + self.penalty_weight * penalty
            + quantized.commitment
        )
        loss = contrastive.loss + contrastive.count * extra
        return PretrainingOutput(loss, contrastive, quantized, penalty, mask, counts, chance)


class Wav2Vec2CTC(nn.Module):
    """Wav2vec 2.0 with a linear CTC head (section 4.4).

    Parameters
    ----------
    wav2vec2 : Wav2Vec2
        The encoder.
    vocab_size : int, optional
        Number of output symbols, blank included.
    head : torch.nn.Linear, optional
        A head to use instead of a new one; give either this or `vocab_size`.
    dropout : float
        Before the head.
    mask_prob, mask_length : float, int
        Time masks during training (section 4.4); 0 for none.
    channel_mask_prob, channel_mask_length : float, int
        Masks over the channels of the projected latents during training; 0 for none.

    Example
    -------
    >>> wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> Wav2Vec2CTC(wav2vec2, vocab_size=32)(torch.randn(1, 16000)).logits.shape
    torch.Size([1, 49, 32])
    """

    def __init__(
        self,
        wav2vec2: Wav2Vec2,
        vocab_size: int | None = None,
        *,
        head: nn.Linear | None = None,
        dropout: float = 0.0,
        mask_prob: float = 0.0,
        mask_length: int = 10,
        channel_mask_prob: float = 0.0,
        channel_mask_length: int = 64,
    ) -> None:
        super().__init__()
        self.wav2vec2 = wav2vec2
        self.dropout = nn.Dropout(dropout)
        if (head is None) == (vocab_size is None):
            raise ValueError("Give either vocab_size (a new head) or head (an existing one).")
        self.head = new_head(wav2vec2.dim, vocab_size) if head is None else head
        self.mask_prob, self.mask_length = mask_prob, mask_length
        self.channel_mask_prob = channel_mask_prob
        self.channel_mask_length = channel_mask_length

    def forward(
        self,
        wavs: Tensor | None,
        wav_lens: Tensor | None = None,
        *,
        latents: tuple[Tensor, Tensor | None] | None = None,
        chunk: ChunkConfig | None = None,
        output_hidden_states: bool = False,
    ) -> Wav2Vec2Output:
        """(batch, samples) and relative lengths -> `Wav2Vec2Output` with logits.

        `latents`, what `wav2vec2.extract` returned, replace the waveforms: those of a frozen
        extractor can be kept from epoch to epoch.
        """
        if latents is None:
            assert wavs is not None, "give wavs or latents"
            latents = self.wav2vec2.extract(wavs, wav_lens)
        features, frame_lengths = latents
        mask, channel_mask = self.draw_masks(features, frame_lengths)
        out = self.wav2vec2.contextualize(
            features,
            frame_lengths,
            mask=mask,
            channel_mask=channel_mask,
            chunk=chunk,
            output_hidden_states=output_hidden_states,
        )
        out.logits = self.head(self.dropout(out.context))
        return out

    def draw_masks(
        self, latents: Tensor, frame_lengths: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Time and channel masks of a training batch; None, None in evaluation."""
        batch, frames, _ = latents.shape
        mask = channel_mask = None
        if self.training and self.mask_prob > 0:
            if frame_lengths is None:
                frame_lengths = torch.full((batch,), frames, device=latents.device)
            mask = span_mask(frame_lengths, frames, prob=self.mask_prob, length=self.mask_length)
        if self.training and self.channel_mask_prob > 0:
            dim = self.wav2vec2.dim
            channel_mask = span_mask(
                torch.full((batch,), dim, device=latents.device),
                dim,
                prob=self.channel_mask_prob,
                length=self.channel_mask_length,
                min_spans=0,
            )
        return mask, channel_mask


def new_head(dim: int, vocab_size: int | None) -> nn.Linear:
    head = nn.Linear(dim, vocab_size or 0)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class CTCLogProbs(nn.Module):
    """Log-probabilities as SpeechBrain's decoders and `EncoderASR` want them.

    Padded frames are certain blanks, because those decoders find the end of an utterance by
    rounding relative lengths, which is one frame too many now and then.

    Example
    -------
    >>> wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> CTCLogProbs(Wav2Vec2CTC(wav2vec2, vocab_size=32))(torch.randn(1, 16000)).shape
    torch.Size([1, 49, 32])
    """

    def __init__(self, model: Wav2Vec2CTC, blank: int = 0) -> None:
        super().__init__()
        self.model, self.blank = model, blank

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """(batch, samples) -> (batch, frames, vocab)."""
        out = self.model(wavs, wav_lens)
        log_probs = out.logits.float().log_softmax(-1)
        certain = torch.full_like(log_probs[0, 0], float("-inf"))
        certain[self.blank] = 0.0
        valid = valid_frames(out.frame_lengths, log_probs.shape[1])
        return torch.where(valid[..., None], log_probs, certain)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Frames of (batch, frames, dim) at (batch, n) -> (batch, n, dim)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
