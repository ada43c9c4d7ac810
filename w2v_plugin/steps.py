"""Packets of audio -> context, chunk by chunk: how a `Wav2Vec2` streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.encoder import ContextEncoder
from w2v_plugin.errors import CheckpointMismatch, NotStreamable
from w2v_plugin.features import ConvExtractor, FeatureProjection
from w2v_plugin.frames import frame_lengths, receptive_field, valid_frames
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.streaming import EncoderState

REMEDY = "stream in overlapping windows: overlap='half', on the command line --overlap half"


class Streamable(nn.Module):
    """The streaming half of `Wav2Vec2`, which has all these attributes."""

    config: dict[str, Any]
    normalize: bool
    extractor: ConvExtractor
    projection: FeatureProjection
    encoder: ContextEncoder
    mask_embedding: nn.Parameter

    def check_streamable(self) -> None:
        """Raise `NotStreamable`, with the remedy, if frames depend on the whole utterance."""
        if self.extractor.norm == "group":
            raise NotStreamable(
                "extractor_norm='group' takes statistics over the whole utterance, so every frame "
                "depends on all others and chunks mean nothing. Use a model with "
                "extractor_norm='layer', make one of this with recipes/make_streamable.py, or "
                f"{REMEDY}."
            )
        if self.encoder.conformer is not None:
            raise NotStreamable(
                "The convolutions of a conformer look "
                f"{self.config['conformer_kernel'] // 2} frames ahead in every layer, beyond the "
                f"end of any chunk. Use a model with conformer=None, or {REMEDY}."
            )
        if self.normalize:
            raise NotStreamable(
                "normalize=True takes mean and variance over the whole utterance, so every frame "
                "depends on all others and chunks mean nothing. Use a model trained with "
                "normalize=False, make one of this with recipes/make_streamable.py, or "
                f"{REMEDY}."
            )

    def init_state(self, batch: int = 1) -> EncoderState:
        """What streams know before their first sample; see `step`.

        Raises
        ------
        NotStreamable
            The model needs whole utterances.
        """
        self.check_streamable()
        weight = self.mask_embedding
        heads, past = self.config["heads"], self.encoder.positions.past
        empty = weight.new_zeros(batch, heads, 0, self.config["dim"] // heads)
        layers, none = len(self.encoder.layers), (0,) * batch
        return EncoderState(
            wavs=weight.new_zeros(batch, 0),
            samples=none,
            past=weight.new_zeros(batch, past, self.config["dim"]),
            keys=(empty,) * layers,
            values=(empty,) * layers,
            kept=none,
            frames=none,
        )

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
        """Go on with streams: packets of any size in, the frames of all chunks that are whole out.

        Together, the outputs are what `forward` with the same `chunk` gives for the whole
        waveform, in evaluation mode. Chunks are worked on one by one, so a long packet needs no
        more memory than a short one, and streams of any age go together.

        Parameters
        ----------
        wavs : Tensor
            (batch, samples) at 16 kHz, the next ones of each stream; samples may be 0.
        state : EncoderState
            From `init_state`, or as the step before returned it; it is not changed.
        chunk : ChunkConfig
            The same one for all of a stream, or else there is no `forward` to compare with. A
            smaller `left` forgets after the next chunk, a larger one finds only what was kept.
        last : bool or sequence of bool
            Whether a stream ends here: then what is left is worked on as a short chunk, and the
            state begins anew.
        lengths : sequence of int, optional
            Samples of each stream in `wavs` that are no padding; None for all.

        Returns
        -------
        tuple
            `Wav2Vec2Output` with as many frames as the fastest stream has, and the new state.

        Raises
        ------
        NotStreamable
            The model needs whole utterances.
        ValueError
            No floats (streams, samples), or not as many streams as the state has.
        CheckpointMismatch
            The state is of another model.

        Example
        -------
        >>> from w2v_plugin.model import Wav2Vec2
        >>> model = Wav2Vec2(
        ...     dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7, positions_kernel=8,
        ...     extractor_norm="layer", normalize=False,
        ... ).eval()
        >>> wav, chunk = torch.randn(1, 16000), ChunkConfig(chunk=16, left=32)
        >>> state, outs = model.init_state(), []
        >>> for packet, last in zip(wav.split(7000, dim=1), (False, False, True)):
        ...     out, state = model.step(packet, state, chunk, last)
        ...     outs.append(out.context)
        >>> [out.shape[1] for out in outs]
        [16, 16, 17]
        >>> torch.allclose(torch.cat(outs, dim=1), model(wav, chunk=chunk).context, atol=1e-5)
        True
        """
        self.check_streamable()
        ends = [last] * len(state) if isinstance(last, bool) else list(last)
        sizes = [wavs.shape[-1]] * len(state) if lengths is None else [int(n) for n in lengths]
        self._check_packet(wavs, state, ends, sizes)
        state = state.hear(wavs, sizes)
        frames: list[list[Tensor]] = [[] for _ in ends]
        rows, finished = list(range(len(ends))), []
        while rows:
            counts = self._frames_ready(state, chunk.chunk, [ends[row] for row in rows])
            if not all(counts):  # some have no whole chunk any more
                done = [i for i, count in enumerate(counts) if not count]
                going = [i for i, count in enumerate(counts) if count]
                finished.append(([rows[i] for i in done], state.select(done)))
                rows, state = [rows[i] for i in going], state.select(going)
                continue
            context, state = self._chunk(state, counts, chunk.left)
            for row, x, count in zip(rows, context, counts, strict=True):
                frames[row].append(x[:count])
        state = _together(finished)
        if any(ends):
            state = state.reset([i for i, end in enumerate(ends) if end])
        state = replace(state, wavs=state.wavs.clone())  # no view that keeps a long packet
        nothing = self.mask_embedding.new_zeros(0, self.config["dim"])
        outputs = [torch.cat([nothing, *row]) for row in frames]
        lengths_out = torch.tensor([len(row) for row in outputs], device=nothing.device)
        return Wav2Vec2Output(pad_sequence(outputs, batch_first=True), lengths_out), state

    def _check_packet(
        self, wavs: Tensor, state: EncoderState, ends: Sequence[bool], sizes: Sequence[int]
    ) -> None:
        if wavs.dim() != 2 or not wavs.is_floating_point():
            raise ValueError(
                f"wavs {tuple(wavs.shape)} of {wavs.dtype}: expected (streams, samples) of floats."
            )
        if not len(wavs) == len(ends) == len(sizes) == len(state):
            raise ValueError(
                f"{len(wavs)} rows of wavs, {len(ends)} of last, {len(sizes)} lengths for a "
                f"state of {len(state)} streams: expected one each."
            )
        if any(not 0 <= n <= wavs.shape[1] for n in sizes):
            raise ValueError(f"lengths={list(sizes)}: expected 0 to {wavs.shape[1]}, as in wavs.")
        if state.form != (expected := self.init_state().form):
            raise CheckpointMismatch(
                f"This state is of a model with {state.form}; this one has {expected}. Begin with "
                "its own init_state(); to another device, a state goes by state.to(device)."
            )

    def frames_known(self, state: EncoderState) -> list[int]:
        """Frames of each stream whose samples were heard, but which were not given out."""
        kernels, strides = self.extractor.kernels, self.extractor.strides
        return [frame_lengths(n, kernels, strides) for n in state.samples]

    def _frames_ready(self, state: EncoderState, chunk: int, ends: Sequence[bool]) -> list[int]:
        """Frames of the next chunk of each stream: all of them, what is left at an end, or none."""
        ready = [min(n, chunk) for n in self.frames_known(state)]
        return [n if n == chunk or end else 0 for n, end in zip(ready, ends, strict=True)]

    def _chunk(
        self, state: EncoderState, counts: Sequence[int], left: int | None
    ) -> tuple[Tensor, EncoderState]:
        """One chunk of all streams, of which each has `counts` frames."""
        field = receptive_field(self.extractor.kernels, self.extractor.strides)
        hop, frames = math.prod(self.extractor.strides), max(counts)
        wavs = state.wavs[:, : (frames - 1) * hop + field]
        x = self.projection(self.projection.norm(self.extractor(wavs)))
        if min(counts) < frames:
            count = torch.tensor(counts, device=x.device)
            x = x.masked_fill(~valid_frames(count, frames)[..., None], 0.0)
        memories = state.memories(counts)
        context = self.encoder.step(x, state.past, memories)
        return context, state.advance(frames * hop, x, memories, left)


def _together(parts: Sequence[tuple[Sequence[int], EncoderState]]) -> EncoderState:
    """One state again, from parts and their rows in it."""
    order = [row for rows, _ in parts for row in rows]
    state = EncoderState.stack([part for _, part in parts])
    return state.select([order.index(row) for row in range(len(order))])
