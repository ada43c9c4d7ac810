"""`Wav2Vec2StreamingASR`: text while somebody speaks, with SpeechBrain's names where it has any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.audio import read_blocks
from w2v_plugin.endpoint import EndpointRules
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import HOP, absolute_lengths
from w2v_plugin.interfaces import Wav2Vec2ASR
from w2v_plugin.live import BeamDecoder, GreedyDecoder
from w2v_plugin.live_encoders import OVERLAPS, ChunkEncoder, LiveEncoder, Overlap, OverlapEncoder
from w2v_plugin.loading import PathLike
from w2v_plugin.packets import to_wav
from w2v_plugin.sessions import VAD, Session, feed

DEFAULT_CHUNK = ChunkConfig(chunk=32, left=256)  # 640 ms, 5.12 s
DEFAULT_RULES = EndpointRules()
AnyChunk: TypeAlias = ChunkConfig | DynChunkTrainConfig


@dataclass
class StreamingContext:
    """What SpeechBrain's streaming methods pass from call to call, and change.

    Parameters
    ----------
    config : ChunkConfig
        What a frame sees.
    sessions : list of Session
        One for each row of the batch, made at the first chunk.
    shown : list of str
        Of each row, the text of the utterance that goes on.
    finished : bool
        Whether there was a last chunk.
    """

    config: ChunkConfig
    sessions: list[Session] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    finished: bool = False


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

    With SpeechBrain's names, a batch at a time; texts are joined:

    >>> config = DynChunkTrainConfig(16, 4)
    >>> context, texts = asr.make_streaming_context(config), ["", ""]
    >>> for chunk in torch.randn(2, 16000).split(asr.get_chunk_size_frames(config), dim=1):
    ...     texts = [a + b for a, b in zip(texts, asr.transcribe_chunk(context, chunk))]
    >>> rest = asr.transcribe_chunk(context, torch.zeros(2, 0), last=True)
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
            Waveform (samples,) at 16 kHz -> probability of speech, see `Session`. Where it hears
            speech, `rules` hear no silence.

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
        return Session(encoder, decoder, rules, vad, spoken=lambda: self.tokenizer)

    # --- SpeechBrain's names -------------------------------------------------------------------

    def get_chunk_size_frames(self, dynchunktrain_config: AnyChunk) -> int:
        """Samples of a chunk: what SpeechBrain's `StreamingASR` calls frames here."""
        return to_chunk(dynchunktrain_config).chunk * HOP

    def make_streaming_context(self, dynchunktrain_config: AnyChunk) -> StreamingContext:
        """A blank context: for `encode_chunk` or for `transcribe_chunk`, not for both in turn.

        Raises
        ------
        NotStreamable
            The model cannot work in chunks; `stream` takes overlapping windows.
        """
        self.mods["model"].wav2vec2.check_streamable()
        return StreamingContext(to_chunk(dynchunktrain_config))

    def encode_chunk(
        self,
        context: StreamingContext,
        chunk: Tensor,
        chunk_len: Tensor | None = None,
        *,
        last: bool = False,
    ) -> list[Tensor]:
        """Logits of a batch of chunks.

        Parameters
        ----------
        context, chunk, chunk_len, last
            As in `transcribe_chunk`.

        Returns
        -------
        list of Tensor
            (frames, vocab) of each row, on the CPU: those of the chunks that became complete.
        """
        wavs = [to_wav(row) for row in _rows(chunk, chunk_len)]
        encoders = [session.encoder for session in self._sessions(context, len(wavs))]
        logits = ChunkEncoder.run(encoders, wavs, last)  # type: ignore[arg-type]
        context.finished = last
        return logits

    def transcribe_chunk(
        self,
        context: StreamingContext,
        chunk: Tensor,
        chunk_len: Tensor | None = None,
        *,
        last: bool = False,
    ) -> list[str]:
        """What each row of a batch of chunks adds to its text; joined, they are the text.

        Parameters
        ----------
        context : StreamingContext
            From `make_streaming_context`; changed in place.
        chunk : Tensor
            (batch, samples) at 16 kHz, of any length: SpeechBrain asks for
            `get_chunk_size_frames`, this does not.
        chunk_len : Tensor, optional
            (batch,) relative lengths in [0, 1]; 0 for a stream that is over already.
        last : bool
            The streams end here. SpeechBrain has no such thing and asks for silence at the end.

        Raises
        ------
        BadAudio
            Not (batch, samples), no relative lengths, NaN: nothing of the chunk was heard.
        ValueError
            Another number of rows than before, or beam search.
        RuntimeError
            The chunk before was the last one, or the language was set since then.
        """
        if self.search is not None:
            raise ValueError(
                "SpeechBrain's streaming methods add text and take none back, which beam search "
                "does. Use stream(), or greedy decoding."
            )
        rows = _rows(chunk, chunk_len)
        heard = feed(self._sessions(context, len(rows)), rows, last=last)
        context.finished = last
        texts = []
        for i, events in enumerate(heard):
            text = ""
            for event in events:
                gap = " " if event.segment and not context.shown[i] else ""
                text += gap + event.text[len(context.shown[i]) :]
                context.shown[i] = "" if event.is_final else event.text
            texts.append(text)
        return texts

    def transcribe_file_streaming(
        self,
        path: PathLike,
        dynchunktrain_config: AnyChunk,
        use_torchaudio_streaming: bool = True,
    ) -> Iterator[str]:
        """Text of a file, chunk by chunk; joined, it is the text.

        Parameters
        ----------
        path : str or Path
            See `read_audio`, which also raises the errors. It is read as the text is asked for.
        dynchunktrain_config : ChunkConfig or DynChunkTrainConfig
            What a frame sees.
        use_torchaudio_streaming : bool
            Without effect: no file is read whole.

        Yields
        ------
        str
            What a chunk adds, often nothing.
        """
        context = self.make_streaming_context(dynchunktrain_config)
        size = self.get_chunk_size_frames(dynchunktrain_config)
        for block in filter(len, read_blocks(path)):
            for packet in block.split(size):
                yield self.transcribe_chunk(context, packet[None])[0]
        yield self.transcribe_chunk(context, torch.zeros(1, 0), last=True)[0]

    def transcribe_file(
        self,
        path: PathLike,
        dynchunktrain_config: AnyChunk | None = None,
        use_torchaudio_streaming: bool = True,
        *,
        chunk: ChunkConfig | None = None,
    ) -> str:
        """Text of one audio file: with a configuration as it is streamed, without one at once.

        Parameters
        ----------
        path, dynchunktrain_config, use_torchaudio_streaming
            See `transcribe_file_streaming`; None hears the whole file, as `Wav2Vec2ASR` does.
        chunk : ChunkConfig, optional
            See `Wav2Vec2ASR.transcribe_file`.
        """
        if dynchunktrain_config is None:
            return super().transcribe_file(path, chunk=chunk)
        if chunk is not None:
            raise ValueError("dynchunktrain_config and chunk exclude each other: give one of them.")
        return "".join(self.transcribe_file_streaming(path, dynchunktrain_config))

    def _sessions(self, context: StreamingContext, batch: int) -> list[Session]:
        if context.finished:
            raise RuntimeError(
                "This context is finished. Make a new one: asr.make_streaming_context(...)."
            )
        if not context.sessions:
            context.sessions = [self.stream(context.config) for _ in range(batch)]
            context.shown = [""] * batch
        if len(context.sessions) != batch:
            raise ValueError(f"{batch} rows, but {len(context.sessions)} in the chunk before.")
        for session in context.sessions:
            session.check_language()
        return context.sessions


def to_chunk(config: AnyChunk) -> ChunkConfig:
    """`ChunkConfig`, also from SpeechBrain's, which counts left context in chunks."""
    if isinstance(config, ChunkConfig):
        return config
    if not isinstance(config, DynChunkTrainConfig):
        raise TypeError(f"got {config!r}, expected a ChunkConfig or SpeechBrain's of chunks.")
    left = config.left_context_size
    return ChunkConfig(config.chunk_size, None if left is None else left * config.chunk_size)


def to_overlap(overlap: str | Overlap) -> Overlap:
    """An `Overlap` by name."""
    if isinstance(overlap, Overlap):
        return overlap
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap={overlap!r}, expected one of {', '.join(OVERLAPS)}.")
    return OVERLAPS[overlap]


def _rows(wavs: Tensor, wav_lens: Tensor | None) -> list[Tensor]:
    """Waveforms (samples,) of a padded batch; there may be nothing of a row."""
    if wavs.dim() != 2 or not len(wavs):
        raise BadAudio(f"chunk: got {tuple(wavs.shape)}, expected (batch, samples).")
    if wav_lens is None:
        return list(wavs)
    if wav_lens.shape != wavs.shape[:1] or not bool(((wav_lens >= 0) & (wav_lens <= 1)).all()):
        raise BadAudio(
            f"chunk_len: got {wav_lens.tolist()}, expected a relative length in [0, 1] for each of "
            f"{len(wavs)} rows."
        )
    lengths = absolute_lengths(wav_lens, wavs.shape[1]).tolist()
    return [wav[:length] for wav, length in zip(wavs, lengths, strict=True)]
