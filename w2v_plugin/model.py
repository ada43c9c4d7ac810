"""Wav2Vec2: wavs -> context. Pretraining and CTC (next files) put their heads on it.

    wavs ─ extract ─► latents ─ project ─ mask ─ encoder ─► context ─ head ─► logits   (CTC)
                         └─ quantizer ─► targets ─ contrastive loss ◄─┘               (pretraining)

Two facts that surprise: BASE has 12 heads (the paper's text says 8), and the XLS-R 1B model is
1280 wide (the paper's table says 1024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.encoder import ContextEncoder
from w2v_plugin.errors import BadAudio
from w2v_plugin.features import ConvExtractor, FeatureProjection, ScaleGradient, normalize_wavs
from w2v_plugin.frames import (
    KERNELS,
    STRIDES,
    absolute_lengths,
    frame_lengths,
    valid_frames,
)
from w2v_plugin.linear import fast
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.steps import Streamable
from w2v_plugin.tiled import packed_extractor

PADDING_MODES = ("exact", "mask", "reference")


class Wav2Vec2(Streamable):
    """Wav2vec 2.0 without a head (Baevski et al. 2020). The defaults are the BASE model.

    Parameters
    ----------
    dim, layers, heads, ffn_dim : int
        Shape of the transformer.
    channels : sequence of int
        Width of the seven convolutions.
    extractor_norm : {"group", "layer", "none"}
        See `ConvExtractor`. "group" cannot stream.
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
        mask at all, so that its answer depends on the padding. In a conformer both let the
        convolutions hear the padding, as fairseq and transformers do.
    dropout, attention_dropout, activation_dropout, layer_drop : float
        See `ContextEncoder`; `dropout` also acts on the projected latents.
    feature_grad_scale : float
        Multiplies the gradient that reaches the extractor; 0 freezes it (published: 0.1 for
        BASE pretraining, 0 for fine-tuning).
    positions_kernel, positions_groups : int
        Positional convolution.
    causal_positions : bool
        A positional convolution that never looks ahead. With chunks of one frame the model is
        fully causal then.
    adapter_dim : int, optional
        Width of the language adapters of an MMS model; None for none. See `set_language`.
    lora_rank, lora_alpha : int, float
        Of `LowRank` updates of attention's projections, the other kind of adapters; a rank of None
        for none.
    conformer : {"relative", "rotary"}, optional
        Conformer layers with positions of this kind; None for transformer layers. Needs
        norm_first=True, and cannot work in chunks: the convolutions look ahead.
    conformer_kernel : int
        Frames that the convolution of a conformer layer hears.
    activation_checkpointing : bool
        Less memory for more time in training, see `ContextEncoder`.

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
        causal_positions: bool = False,
        adapter_dim: int | None = None,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
        conformer: str | None = None,
        conformer_kernel: int = 31,
        activation_checkpointing: bool = False,
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
            causal_positions=causal_positions,
            adapter_dim=adapter_dim,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            conformer=conformer,
            conformer_kernel=conformer_kernel,
            activation_checkpointing=activation_checkpointing,
        )

    @property
    def dim(self) -> int:
        """Width of the context."""
        return self.projection.linear.out_features

    def freeze_extractor(self) -> None:
        """Stop training the convolutions, and stop computing gradients for them.

        On a CPU they run in tiles from then on, as in inference (`TiledExtractor`).
        """
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
        if frame_lengths(wavs.shape[1], self.extractor.kernels, self.extractor.strides) == 0:
            raise BadAudio(f"{wavs.shape[1]} samples are less than one frame; 25 ms are needed.")
        lengths = None if wav_lens is None else absolute_lengths(wav_lens, wavs.shape[1])
        if self.normalize:
            wavs = normalize_wavs(wavs, lengths, self.normalize_eps)
        wavs = wavs.to(self.mask_embedding.dtype)  # only now: half precision cannot normalize
        if lengths is not None:
            wavs = wavs.masked_fill(~valid_frames(lengths, wavs.shape[1]), 0.0)
        extractor: nn.Module = self.extractor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.feature_grad_scale > 0):
            if self.feature_grad_scale == 0 and isinstance(extractor, ConvExtractor) and fast(wavs):
                extractor = packed_extractor(extractor)  # at each call: weights may be loaded
            latents = extractor(wavs, lengths if self.padding == "exact" else None)
        if latents.requires_grad and self.feature_grad_scale != 1.0:
            latents = ScaleGradient.apply(latents, self.feature_grad_scale)
        return latents, None if lengths is None else self.extractor.frame_lengths(lengths)

    def contextualize(
        self,
        latents: Tensor,
        frame_lengths: Tensor | None = None,
        *,
        packed: Sequence[int] | None = None,
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
        packed : sequence of int, optional
            See `ContextEncoder.forward`.
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
        if chunk is not None:
            self.check_streamable()
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
            x,
            valid,
            packed=packed,
            chunk=chunk,
            leak=self.padding != "exact",
            output_hidden_states=output_hidden_states,
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

    def extract_packed(self, wavs: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Latents (1, frames of all, channels) of waveforms (samples,), and frames of each."""
        latents = [self.extract(wav[None])[0] for wav in wavs]
        return torch.cat(latents, dim=1), [x.shape[1] for x in latents]

    def forward_packed(
        self,
        wavs: Sequence[Tensor],
        *,
        chunk: ChunkConfig | None = None,
        output_hidden_states: bool = False,
    ) -> list[Wav2Vec2Output]:
        """Utterances of any lengths, without padding.

        Extractor, positions, attention and the convolutions of a conformer run utterance by
        utterance; norms and linear layers, which do not look beyond a frame, run on all at once.
        So each result is that of the utterance alone, and nothing is computed for padding.

        Parameters
        ----------
        wavs : sequence of Tensor
            (samples,) each.
        chunk, output_hidden_states
            See `contextualize`.

        Returns
        -------
        list of Wav2Vec2Output
            One for each utterance, of batch size 1.

        Example
        -------
        >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7).eval()
        >>> outs = model.forward_packed([torch.randn(16000), torch.randn(8000)])
        >>> [tuple(out.context.shape) for out in outs]
        [(1, 49, 16), (1, 24, 16)]
        """
        latents, lengths = self.extract_packed(wavs)
        out = self.contextualize(
            latents, packed=lengths, chunk=chunk, output_hidden_states=output_hidden_states
        )
        return out.unpack(lengths)
