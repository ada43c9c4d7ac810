"""`Wav2Vec2StreamingASR`: text while somebody speaks, with SpeechBrain's names where it has any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.audio import read_blocks
from w2v_plugin.endpoint import EndpointRules
from w2v_plugin.frames import HOP, absolute_lengths
from w2v_plugin.interfaces import Wav2Vec2ASR
from w2v_plugin.live import BeamDecoder, GreedyDecoder
from w2v_plugin.live_encoders import OVERLAPS, ChunkEncoder, LiveEncoder, Overlap, OverlapEncoder
from w2v_plugin.loading import PathLike
from w2v_plugin.sessions import VAD, Session, feed

DEFAULT_CHUNK = ChunkConfig(chunk=32, left=256)  # 640 ms, 5.12 s
DEFAULT_RULES = EndpointRules()
AnyChunk: TypeAlias = ChunkConfig | DynChunkTrainConfig


@dataclass
class StreamingContext:
    """What SpeechBrain's streaming methods pass from call to call: a session for each row."""

    config: ChunkConfig
    sessions: list[Session] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)  # of the utterance that goes on


class Wav2Vec2StreamingASR(Wav2Vec2ASR):
    """Speech to text while it is spoken.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.ctc import Wav2Vec2CTC
    >>> from w2v_plugin.folders import save_asr
    >>> from w2v_plugin.model import Wav2Vec2
    >>> from w2v_plugin.text import CharVocabulary
    >>> tiny = Wav2Vec2(
    ...     dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7, positions_kernel=8,
    ...     extractor_norm="layer", normalize=False,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_asr(folder, Wav2Vec2CTC(tiny, vocab_size=32), CharVocabulary())
    ...     asr = Wav2Vec2StreamingASR.from_hparams(source=folder, run_opts={"device": "cpu"})
    >>> session = asr.stream(ChunkConfig(chunk=16, left=64))
    >>> session.encoder.latency_ms
    325.0
    >>> events = session.feed(torch.randn(7000)) + session.feed(torch.randn(5000), 16000)
    >>> events += session.finish()
    >>> [event.is_final for event in events][-1:] in ([], [True])
    True
    """

    def stream(
        self,
        chunk: AnyChunk | None = None,
        *,
        overlap: str | Overlap | None = None,
        rules: EndpointRules | None = DEFAULT_RULES,
        vad: VAD | None = None,
    ) -> Session:
        """Begin to listen.

        Parameters
        ----------
        chunk : ChunkConfig or DynChunkTrainConfig, optional
            What a frame sees; by default chunks of 640 ms and 5.12 s before them. SpeechBrain's
            configuration counts `left_context_size` in chunks.
        overlap : {"half", "accurate", "fast"} or Overlap, optional
            Windows instead of chunks, for models that need both sides; see `OverlapEncoder`.
        rules : EndpointRules or None
            When an utterance is over; None: at `finish` only.
        vad : callable, optional
            Waveform (samples,) at 16 kHz -> bool. Where it hears speech, `rules` hear no silence.

        Returns
        -------
        Session
            Greedy, or as `decode_with` asked for.

        Raises
        ------
        NotStreamable
            The model cannot work in chunks; the message says what can be done.
        ValueError
            Both `chunk` and `overlap`, or beam search without `rules`.
        """
        if chunk is not None and overlap is not None:
            raise ValueError("chunk and overlap exclude each other: give one of them.")
        encoder: LiveEncoder
        if overlap is None:
            encoder = ChunkEncoder(self.mods["model"], to_chunk(chunk or DEFAULT_CHUNK))
        else:
            encoder = OverlapEncoder(self.logits, to_overlap(overlap))
        decoder: GreedyDecoder | BeamDecoder = GreedyDecoder(self.tokenizer)
        if self.search is not None:
            if rules is None:
                raise ValueError("Beam search needs rules: it remembers all of an utterance.")
            decoder = BeamDecoder(self.search, n_best=self.n_best)
        return Session(encoder, decoder, rules, vad)

    # --- SpeechBrain's names -------------------------------------------------------------------

    def get_chunk_size_frames(self, config: AnyChunk) -> int:
        """Samples of a chunk, as SpeechBrain's `StreamingASR` counts them."""
        return to_chunk(config).chunk * HOP

    def make_streaming_context(self, config: AnyChunk) -> StreamingContext:
        """What `encode_chunk` and `transcribe_chunk` take and change."""
        return StreamingContext(to_chunk(config))

    def encode_chunk(
        self,
        context: StreamingContext,
        chunk: Tensor,
        chunk_len: Tensor | None = None,
        *,
        last: bool = False,
    ) -> list[Tensor]:
        """Logits (frames, vocab) of each row of (batch, samples); `chunk_len` is relative."""
        encoders = [session.encoder for session in self._sessions(context, len(chunk))]
        return ChunkEncoder.run(encoders, _unpad(chunk, chunk_len), last)  # type: ignore[arg-type]

    def transcribe_chunk(
        self,
        context: StreamingContext,
        chunk: Tensor,
        chunk_len: Tensor | None = None,
        *,
        last: bool = False,
    ) -> list[str]:
        """What each row of (batch, samples) adds to its text; joined, they are the text.

        Parameters
        ----------
        context : StreamingContext
            From `make_streaming_context`; changed in place.
        chunk : Tensor
            (batch, samples) at 16 kHz, of any length: SpeechBrain asks for
            `get_chunk_size_frames`, this does not.
        chunk_len : Tensor, optional
            (batch,) relative lengths.
        last : bool
            The streams end here. SpeechBrain has no such thing and asks for silence at the end.
        """
        sessions = self._sessions(context, len(chunk))
        texts = []
        for i, events in enumerate(feed(sessions, _unpad(chunk, chunk_len), last=last)):
            text = ""
            for event in events:
                gap = " " if event.segment and not context.shown[i] else ""
                text += gap + event.text[len(context.shown[i]) :]
                context.shown[i] = "" if event.is_final else event.text
            texts.append(text)
        return texts

    def transcribe_file_streaming(
        self, path: PathLike, config: AnyChunk, **_: Any
    ) -> Iterator[str]:
        """Text of a file, chunk by chunk; joined, it is the text. Reads as it goes."""
        context, size = self.make_streaming_context(config), self.get_chunk_size_frames(config)
        for block in filter(len, read_blocks(path)):
            for packet in block.split(size):
                yield self.transcribe_chunk(context, packet[None])[0]
        yield self.transcribe_chunk(context, torch.zeros(1, 0), last=True)[0]

    def _sessions(self, context: StreamingContext, batch: int) -> list[Session]:
        if not context.sessions:
            if self.search is not None:
                raise ValueError(
                    "SpeechBrain's streaming methods add text and take none back, which beam "
                    "search does. Use stream(), or greedy decoding."
                )
            context.sessions = [self.stream(context.config) for _ in range(batch)]
            context.shown = [""] * batch
        if len(context.sessions) != batch:
            raise ValueError(f"{batch} rows, but {len(context.sessions)} in the chunk before.")
        return context.sessions


def to_chunk(config: AnyChunk) -> ChunkConfig:
    """`ChunkConfig`, also from SpeechBrain's, which counts left context in chunks."""
    if isinstance(config, ChunkConfig):
        return config
    left = config.left_context_size
    return ChunkConfig(config.chunk_size, None if left is None else left * config.chunk_size)


def to_overlap(overlap: str | Overlap) -> Overlap:
    """An `Overlap` by name."""
    if isinstance(overlap, Overlap):
        return overlap
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap={overlap!r}, expected one of {', '.join(OVERLAPS)}.")
    return OVERLAPS[overlap]


def _unpad(wavs: Tensor, wav_lens: Tensor | None) -> list[Tensor]:
    if wav_lens is None:
        return list(wavs)
    lengths = absolute_lengths(wav_lens, wavs.shape[1]).tolist()
    return [wav[:length] for wav, length in zip(wavs, lengths, strict=True)]
