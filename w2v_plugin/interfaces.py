"""Trained models behind three-line calls: text from `Wav2Vec2ASR`, vectors from `Wav2Vec2Encoder`.

Both are SpeechBrain `Pretrained` classes: `from_hparams` reads our model folders, `from_checkpoint`
published ones (loading.py). Files go through `read_blocks`, batches through `check_batch`, so
unusable audio is a `BadAudio` naming the file or the row, never a wrong answer. Long files are
worked on in overlapping windows (overlap.py).

Surprising: with the default padding a batch gives what its files give alone, so that files may be
grouped at will (batching.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from w2v_plugin.alignment import align
from w2v_plugin.attention import ChunkConfig
from w2v_plugin.audio import unpad_batch
from w2v_plugin.batching import over_files
from w2v_plugin.beam import BeamSearch
from w2v_plugin.checkpoints import AnyModel, load_vocabulary
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.decoding import greedy, greedy_transcripts
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import HOP, RECEPTIVE_FIELD, SAMPLE_RATE
from w2v_plugin.languages import set_language
from w2v_plugin.loading import Interface, PathLike
from w2v_plugin.pooling import Layer, check_pool, mix_layers, pick_layers
from w2v_plugin.pooling import pool as pool_frames
from w2v_plugin.text import CharVocabulary
from w2v_plugin.transcripts import Transcript


class Wav2Vec2ASR(Interface):
    """Speech to text with a fine-tuned model and CTC decoding.

    Decoding is greedy until `decode_with` asks for beam search.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.folders import save_asr
    >>> from w2v_plugin.model import Wav2Vec2
    >>> tiny = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_asr(folder, Wav2Vec2CTC(tiny, vocab_size=32), CharVocabulary())
    ...     asr = Wav2Vec2ASR.from_hparams(source=folder, run_opts={"device": "cpu"})
    >>> texts, tokens = asr.transcribe_batch(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> len(texts), texts[0] == asr.tokenizer.decode_tokens(tokens[0])
    (2, True)
    """

    HPARAMS_NEEDED = ["tokenizer"]  # noqa: RUF012 (SpeechBrain's convention)
    MODULES_NEEDED = ["model"]  # noqa: RUF012
    search: BeamSearch | None = None
    n_best = 1

    @classmethod
    def _adopt(
        cls, model: AnyModel, source: PathLike, language: str | None
    ) -> tuple[dict[str, nn.Module], dict[str, Any]]:
        if not isinstance(model, Wav2Vec2CTC):
            raise ValueError(
                f"{source}: a {type(model).__name__} has no CTC head, so it cannot transcribe. "
                "Fine-tune it first, or use Wav2Vec2Encoder."
            )
        return {"model": model}, {"tokenizer": load_vocabulary(source, model, language)}

    @property
    def tokenizer(self) -> CharVocabulary:
        """The vocabulary."""
        return self.hparams.tokenizer

    def set_language(self, language: str) -> None:
        """Switch a multilingual model to another language; see `set_language`.

        Decoding is greedy afterwards: a language model or hot words belong to a language.
        """
        if self.source is None:
            raise ValueError(
                "This model has no languages to choose from. Load a folder of languages, or an MMS "
                "model with from_checkpoint."
            )
        model = self.mods["model"]
        self.hparams.tokenizer = set_language(model, self.source, language)
        self.search, self.n_best = None, 1

    def decode_with(self, n_best: int = 1, **options: Any) -> None:
        """Use beam search from now on.

        Parameters
        ----------
        n_best : int
            Texts per utterance: the best one and its `alternatives`.
        **options
            Of `BeamSearch`: lm=load_ngrams("4gram.arpa"), hot_words=["Ravel"], beam=50, ….
        """
        self.search, self.n_best = BeamSearch(self.tokenizer, **options), n_best

    def transcribe_file(self, path: PathLike, *, chunk: ChunkConfig | None = None) -> str:
        """Text of one audio file: any length, any sample rate, any number of channels.

        Parameters
        ----------
        path : str or Path
            See `read_audio`, which also raises the errors.
        chunk : ChunkConfig, optional
            What a streaming model would say that sees this much.
        """
        return self.transcript(path, chunk=chunk).text

    def transcript(self, path: PathLike, *, chunk: ChunkConfig | None = None) -> Transcript:
        """Text of one audio file with times, confidences and alternatives; see `transcripts`."""
        return _only(self.transcripts([path], chunk=chunk))[0]

    def transcribe_files(
        self,
        paths: Iterable[PathLike],
        *,
        batch_s: float = 60.0,
        chunk: ChunkConfig | None = None,
    ) -> Iterator[tuple[PathLike, str | BadAudio]]:
        """As `transcripts`, the texts only."""
        for path, result in self.transcripts(paths, batch_s=batch_s, chunk=chunk):
            yield path, result if isinstance(result, BadAudio) else result[0].text

    def transcripts(
        self,
        paths: Iterable[PathLike],
        *,
        batch_s: float = 60.0,
        chunk: ChunkConfig | None = None,
    ) -> Iterator[tuple[PathLike, tuple[Transcript, float] | BadAudio]]:
        """Transcribe many files, in their order; a bad file does not stop the others.

        Parameters
        ----------
        paths : iterable of str or Path
            Read as they are needed.
        batch_s : float
            Seconds of audio per batch.
        chunk : ChunkConfig, optional
            Restrict what each frame sees. Files are not cut into windows then.

        Yields
        ------
        tuple
            The path, and transcript and seconds of audio (as far as there are frames), or the
            `BadAudio` that says what is wrong with the file.
        """
        for path, logits in self._logits(paths, batch_s, chunk):
            if isinstance(logits, BadAudio):
                yield path, logits
                continue
            transcript = self.decode(logits[None])[0]
            seconds = ((len(logits) - 1) * HOP + RECEPTIVE_FIELD) / SAMPLE_RATE
            yield path, (transcript, seconds)

    def align_file(self, path: PathLike, text: str) -> Transcript:
        """When the words and characters of a known text are said in a file; see `align`."""
        return align(_only(self._logits([path], 60.0, None)), text, self.tokenizer)

    def transcribe_batch(
        self,
        wavs: Tensor,
        wav_lens: Tensor | None = None,
        *,
        chunk: ChunkConfig | None = None,
    ) -> tuple[list[str], list[list[int]]]:
        """Texts of a padded batch.

        Parameters
        ----------
        wavs, wav_lens
            See `check_batch`; `wav_lens` may be left out when nothing is padding.
        chunk : ChunkConfig, optional
            Restrict what each frame sees.

        Returns
        -------
        tuple
            One text and one list of tokens per row.
        """
        logits = self.logits(unpad_batch(wavs, wav_lens), chunk)
        texts = [self.decode(row[None])[0].text for row in logits]
        blank = self.tokenizer.get_blank_index()
        if self.search is not None:
            return texts, [self.tokenizer.encode_text(text) for text in texts]
        return texts, [greedy(x[None], torch.tensor([len(x)]), blank)[0] for x in logits]

    def forward(
        self, wavs: Tensor, wav_lens: Tensor | None = None
    ) -> tuple[list[str], list[list[int]]]:
        """The same as `transcribe_batch`."""
        return self.transcribe_batch(wavs, wav_lens)

    def _logits(
        self, paths: Iterable[PathLike], batch_s: float, chunk: ChunkConfig | None
    ) -> Iterator[tuple[PathLike, Tensor | BadAudio]]:
        """(frames, vocab) of each file."""

        def long(blocks: Iterator[Tensor]) -> Tensor:
            windows = (self.logits([wav], None)[0] for wav in self.windows.cut(blocks))
            return torch.cat(list(self.windows.join(windows)))

        return over_files(
            paths,
            lambda wavs: self.logits(wavs, chunk),
            long,
            longest_s=math.inf if chunk else self._longest_s,
            batch_s=batch_s,
            padded=not self._packs,
        )

    def logits(self, wavs: list[Tensor], chunk: ChunkConfig | None = None) -> list[Tensor]:
        """(frames, vocab) of each waveform (samples,) at 16 kHz, float32, on the CPU."""
        with torch.inference_mode():
            outs = self._run(wavs, chunk=chunk)
        return [out.logits[0].float().cpu() for out in outs if out.logits is not None]

    def decode(self, logits: Tensor) -> list[Transcript]:
        """What (batch, frames, vocab) say: greedy, or as `decode_with` asked."""
        lengths = torch.full((len(logits),), logits.shape[1])
        if self.search is None:
            return greedy_transcripts(logits, lengths, self.tokenizer)
        return self.search(logits, lengths, self.n_best)


class Wav2Vec2Encoder(Interface):
    """Speech to vectors, from any layer of any model, pretrained or fine-tuned.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.folders import save_pretrained
    >>> from w2v_plugin.model import Wav2Vec2
    >>> tiny = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(folder, tiny)
    ...     encoder = Wav2Vec2Encoder.from_hparams(source=folder, run_opts={"device": "cpu"})
    >>> encoder.encode_batch(torch.randn(2, 16000)).shape
    torch.Size([2, 49, 16])
    >>> encoder.encode_batch(torch.randn(2, 16000), layer="all", pool="mean+std").shape
    torch.Size([2, 2, 32])
    """

    MODULES_NEEDED = ["wav2vec2"]  # noqa: RUF012

    @classmethod
    def _adopt(
        cls, model: AnyModel, source: PathLike, language: str | None
    ) -> tuple[dict[str, nn.Module], dict[str, Any]]:
        return {"wav2vec2": getattr(model, "wav2vec2", model)}, {}

    def encode_file(
        self,
        path: PathLike,
        layer: Layer = -1,
        pool: str | None = None,
        layer_weights: Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """Vectors of one audio file of any length: (frames, dim), or (dim,) if pooled.

        Parameters
        ----------
        path : str or Path
            See `read_audio`, which also raises the errors.
        layer, pool, layer_weights
            See `encode_batch`; several layers come first.
        """
        return _only(self.encode_files([path], layer, pool, layer_weights))

    def encode_files(
        self,
        paths: Iterable[PathLike],
        layer: Layer = -1,
        pool: str | None = None,
        layer_weights: Sequence[float] | Tensor | None = None,
        *,
        batch_s: float = 60.0,
    ) -> Iterator[tuple[PathLike, Tensor | BadAudio]]:
        """Vectors of many files, in their order; a bad file does not stop the others.

        Parameters
        ----------
        paths : iterable of str or Path
            Read as they are needed.
        layer, pool, layer_weights
            See `encode_batch`.
        batch_s : float
            Seconds of audio per batch.

        Yields
        ------
        tuple
            The path, and its vectors as from `encode_file` or the `BadAudio` that says what is
            wrong with it.
        """
        check_pool(pool)

        def short(wavs: list[Tensor]) -> list[Tensor]:
            return [_pooled(x, pool) for x in self._frames(wavs, layer, layer_weights)]

        def long(blocks: Iterator[Tensor]) -> Tensor:
            windows = (
                self._frames([wav], layer, layer_weights)[0].movedim(-2, 0)
                for wav in self.windows.cut(blocks)
            )
            return _pooled(torch.cat(list(self.windows.join(windows))).movedim(0, -2), pool)

        return over_files(
            paths,
            short,
            long,
            longest_s=self._longest_s,
            batch_s=batch_s,
            padded=not self._packs,
        )

    def encode_batch(
        self,
        wavs: Tensor,
        wav_lens: Tensor | None = None,
        layer: Layer = -1,
        pool: str | None = None,
        layer_weights: Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """Vectors of a padded batch, 50 per second.

        Parameters
        ----------
        wavs, wav_lens
            See `check_batch`.
        layer : int, sequence of int, or "all"
            -1 for the context, which is what heads see; 0 for what enters the first layer;
            n for what comes out of the n-th layer (of a pre-norm model, before the final norm).
            Several layers make one more dimension, before the frames.
        pool : {None, "mean", "mean+std", "statistics"}
            One vector per utterance, see `pool`.
        layer_weights : sequence of float, optional
            One for each of layer 0 to the last: their weighted sum instead of `layer`.

        Returns
        -------
        Tensor
            float32, (batch, frames, dim) with padded frames set to zero, or (batch, dim), or
            (batch, 2 or 4 times dim).
        """
        check_pool(pool)
        frames = self._frames(unpad_batch(wavs, wav_lens), layer, layer_weights)
        if pool is not None:
            return torch.stack([_pooled(x, pool) for x in frames])
        longest = max(x.shape[-2] for x in frames)
        return torch.stack([nn.functional.pad(x, (0, 0, 0, longest - x.shape[-2])) for x in frames])

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """The same as `encode_batch`."""
        return self.encode_batch(wavs, wav_lens)

    def _frames(
        self,
        wavs: list[Tensor],
        layer: Layer,
        layer_weights: Sequence[float] | Tensor | None,
    ) -> list[Tensor]:
        """([layers,] frames, dim) of each waveform, float32."""
        hidden = layer != -1 or layer_weights is not None
        with torch.no_grad():  # no inference_mode: a probe may be trained on the result
            outs = self._run(wavs, output_hidden_states=hidden)
        return [
            (pick_layers(out, layer) if layer_weights is None else mix_layers(out, layer_weights))[
                0
            ].float()
            for out in outs
        ]


def _pooled(frames: Tensor, pool: str | None) -> Tensor:
    if pool is None:
        return frames
    length = torch.tensor([frames.shape[-2]], device=frames.device)
    return pool_frames(frames[None], length, pool)[0]


def _only(results: Iterable[tuple[PathLike, Any]]) -> Any:
    """The result for the only file."""
    _, result = next(iter(results))
    if isinstance(result, BadAudio):
        raise result
    return result
