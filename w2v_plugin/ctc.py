"""CTC on top (wav2vec 2.0, section 4.4): context -> logits, with masks during training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.frames import valid_frames
from w2v_plugin.masking import span_mask
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.streaming import EncoderState


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
        wav2vec2.mask_embedding.requires_grad_(mask_prob > 0)  # DDP wants no idle parameters
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
        head_only: bool = False,
    ) -> Wav2Vec2Output:
        """(batch, samples) and relative lengths -> `Wav2Vec2Output` with logits.

        `latents`, what `wav2vec2.extract` returned, replace the waveforms: those of a frozen
        extractor can be kept from epoch to epoch. With `head_only`, only the head has gradients,
        and nothing is kept for those of the rest; masks and dropout stay.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not head_only):
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

    def forward_packed(
        self,
        wavs: Sequence[Tensor],
        *,
        chunk: ChunkConfig | None = None,
        output_hidden_states: bool = False,
    ) -> list[Wav2Vec2Output]:
        """As `Wav2Vec2.forward_packed`, with logits."""
        latents, lengths = self.wav2vec2.extract_packed(wavs)
        out = self.wav2vec2.contextualize(
            latents, packed=lengths, chunk=chunk, output_hidden_states=output_hidden_states
        )
        out.logits = self.head(out.context)
        return out.unpack(lengths)

    def init_state(self, batch: int = 1) -> EncoderState:
        """As `Wav2Vec2.init_state`."""
        return self.wav2vec2.init_state(batch)

    @torch.inference_mode()
    def step(
        self,
        wavs: Tensor,
        state: EncoderState,
        chunk: ChunkConfig,
        last: bool | Sequence[bool] = False,
        *,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Wav2Vec2Output, EncoderState]:
        """As `Wav2Vec2.step`, with logits."""
        out, state = self.wav2vec2.step(wavs, state, chunk, last, lengths=lengths)
        out.logits = self.head(out.context)
        return out, state

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
