"""Trained models behind three-line calls: text from `Wav2Vec2ASR`, vectors from `Wav2Vec2Encoder`.

Both are SpeechBrain `Pretrained` classes: `from_hparams` reads our model folders (folders.py),
`from_checkpoint` published ones (checkpoints.py). Files go through `read_audio`, batches through
`check_batch`, so unusable audio is a `BadAudio` naming the file or the row, never a wrong answer.

Surprising: with the default padding a batch gives what its files give alone, so that
`transcribe_files` may group them as it likes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import EntryNotFoundError
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import fetch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.audio import check_batch, read_audio
from w2v_plugin.checkpoints import AnyModel, load_checkpoint
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.decoding import greedy
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import SAMPLE_RATE, valid_frames
from w2v_plugin.text import CharVocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

PathLike = str | Path
Transcribed = tuple[PathLike, str | BadAudio]


class _Interface(Pretrained):
    """What both interfaces share: where they load from and what they accept."""

    def __init__(self, modules: dict[str, nn.Module], hparams: dict[str, Any], **kwargs: Any):
        if missing := [name for name in self.MODULES_NEEDED if name not in modules]:
            raise ValueError(
                f"{type(self).__name__} needs modules {missing}, got {sorted(modules)}. A folder "
                "written by pretraining has no head: fine-tune it, or use Wav2Vec2Encoder."
            )
        super().__init__(modules=modules, hparams=hparams, **kwargs)

    @classmethod
    def from_hparams(
        cls, source: PathLike, hparams_file: str = "hyperparams.yaml", **kwargs: Any
    ) -> Self:
        """Load a model folder written by our recipes.

        Parameters
        ----------
        source : str or Path
            The folder, or the id of a Hugging Face repository that holds one. Its YAML file can
            run code: use sources that you trust. Nothing is written for a local folder.
        hparams_file : str
            Name of the YAML file inside.
        **kwargs
            As in SpeechBrain, such as run_opts={"device": "cuda", "precision": "bf16"},
            `savedir`, `overrides`.

        Raises
        ------
        FileNotFoundError
            No such folder, or it is of another kind.
        CheckpointMismatch
            The weights do not fit the model that the YAML file describes.
        """
        folder = Path(source).expanduser()
        if folder.is_dir():
            _check_folder(folder, hparams_file)
            source = folder
        elif folder.is_absolute() or len(folder.parts) != 2:
            raise FileNotFoundError(
                f"{source}: no such folder. Expected a folder with {hparams_file}, such as "
                "<output_folder>/model, or the id of a Hugging Face repository."
            )
        return super().from_hparams(str(source), hparams_file, **kwargs)

    @classmethod
    def from_checkpoint(
        cls,
        source: PathLike,
        *,
        device: str | None = None,
        precision: str = "fp32",
        padding: str = "exact",
    ) -> Self:
        """Load a published checkpoint.

        Parameters
        ----------
        source : str or Path
            A folder in transformers' format, or its id on the hub. To transcribe, it needs a
            CTC head and a vocab.json; to encode, heads do not matter.
        device : str, optional
            "cpu", "cuda:1", …; None for an accelerator if there is one.
        precision : {"fp32", "bf16", "fp16"}
            Of matrix products.
        padding : {"exact", "mask", "reference"}
            See `Wav2Vec2`.
        """
        modules, hparams = cls._adopt(load_checkpoint(source, padding=padding), source)
        run_opts = {"precision": precision} | ({} if device is None else {"device": device})
        return cls(modules, hparams, run_opts=run_opts)

    @classmethod
    @abstractmethod
    def _adopt(cls, model: AnyModel, source: PathLike) -> tuple[dict[str, nn.Module], dict]:
        """Modules and hparams for a loaded checkpoint."""


class Wav2Vec2ASR(_Interface):
    """Speech to text with a fine-tuned model and greedy CTC decoding.

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

    @classmethod
    def _adopt(cls, model: AnyModel, source: PathLike) -> tuple[dict[str, nn.Module], dict]:
        if not isinstance(model, Wav2Vec2CTC):
            raise ValueError(
                f"{source}: a {type(model).__name__} has no CTC head, so it cannot transcribe. "
                "Fine-tune it first, or use Wav2Vec2Encoder."
            )
        for name in ("config", "tokenizer_config", "added_tokens"):
            _companion(source, f"{name}.json")  # so that they lie beside vocab.json
        vocab = _companion(source, "vocab.json")
        if vocab is None:
            raise FileNotFoundError(
                f"{source}: no vocab.json, which says what the {model.head.out_features} outputs "
                "mean. Put it beside config.json."
            )
        return {"model": model}, {"tokenizer": CharVocabulary.from_vocab_json(vocab)}

    @property
    def tokenizer(self) -> CharVocabulary:
        """The vocabulary."""
        return self.hparams.tokenizer

    def transcribe_file(self, path: PathLike, *, chunk: ChunkConfig | None = None) -> str:
        """Text of one audio file: any sample rate, any number of channels.

        Parameters
        ----------
        path : str or Path
            See `read_audio`, which also raises the errors.
        chunk : ChunkConfig, optional
            What a streaming model would say that sees this much.
        """
        return self.transcribe_batch(read_audio(path)[None], chunk=chunk)[0][0]

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
        wavs, wav_lens = check_batch(wavs, wav_lens, self.device)
        with torch.inference_mode(), self.inference_ctx:
            out = self.mods["model"](wavs, wav_lens, chunk=chunk)
        blank = self.tokenizer.get_blank_index()
        tokens = greedy(out.logits.float(), out.frame_lengths, blank)
        return [self.tokenizer.decode_tokens(row) for row in tokens], tokens

    def transcribe_files(
        self,
        paths: Iterable[PathLike],
        *,
        batch_s: float = 60.0,
        chunk: ChunkConfig | None = None,
    ) -> Iterator[Transcribed]:
        """Texts of many files, in their order; a bad file does not stop the others.

        Parameters
        ----------
        paths : iterable of str or Path
            Read a batch at a time.
        batch_s : float
            Seconds of audio per batch, padding included; a longer file is a batch by itself.
        chunk : ChunkConfig, optional
            Restrict what each frame sees.

        Yields
        ------
        tuple
            The path, and its text or the `BadAudio` that says what is wrong with it.
        """
        group: list[tuple[PathLike, Tensor | BadAudio]] = []
        longest = rows = 0
        for path in paths:
            wav = _read_or_error(path)
            size = 0 if isinstance(wav, BadAudio) else len(wav)
            if size and rows and (rows + 1) * max(longest, size) > batch_s * SAMPLE_RATE:
                yield from self._transcribe_group(group, chunk)
                group, longest, rows = [], 0, 0
            group.append((path, wav))
            longest, rows = max(longest, size), rows + (size > 0)
        yield from self._transcribe_group(group, chunk)

    def _transcribe_group(
        self, group: list[tuple[PathLike, Tensor | BadAudio]], chunk: ChunkConfig | None
    ) -> Iterator[Transcribed]:
        wavs = [wav for _, wav in group if isinstance(wav, Tensor)]
        texts: Iterator[str] = iter(())
        if wavs:
            lengths = torch.tensor([len(wav) for wav in wavs], dtype=torch.float64)
            batch = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
            texts = iter(self.transcribe_batch(batch, lengths / batch.shape[1], chunk=chunk)[0])
        for path, wav in group:
            yield path, wav if isinstance(wav, BadAudio) else next(texts)

    def forward(
        self, wavs: Tensor, wav_lens: Tensor | None = None
    ) -> tuple[list[str], list[list[int]]]:
        """The same as `transcribe_batch`."""
        return self.transcribe_batch(wavs, wav_lens)


class Wav2Vec2Encoder(_Interface):
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
    >>> encoder.encode_batch(torch.randn(2, 16000), layer=0, pool="mean").shape
    torch.Size([2, 16])
    """

    MODULES_NEEDED = ["wav2vec2"]  # noqa: RUF012

    @classmethod
    def _adopt(cls, model: AnyModel, source: PathLike) -> tuple[dict[str, nn.Module], dict]:
        return {"wav2vec2": getattr(model, "wav2vec2", model)}, {}

    def encode_file(self, path: PathLike, layer: int = -1, pool: str | None = None) -> Tensor:
        """Vectors of one audio file: (frames, dim), or (dim,) if pooled.

        Parameters
        ----------
        path : str or Path
            See `read_audio`, which also raises the errors.
        layer, pool
            See `encode_batch`.
        """
        return self.encode_batch(read_audio(path)[None], layer=layer, pool=pool)[0]

    def encode_batch(
        self,
        wavs: Tensor,
        wav_lens: Tensor | None = None,
        layer: int = -1,
        pool: str | None = None,
    ) -> Tensor:
        """Vectors of a padded batch, 50 per second.

        Parameters
        ----------
        wavs, wav_lens
            See `check_batch`.
        layer : int
            -1 for the context, which is what heads see; 0 for what enters the first layer;
            n for what comes out of the n-th layer (of a pre-norm model, before the final norm).
        pool : {None, "mean"}
            "mean" averages over the frames of the utterance.

        Returns
        -------
        Tensor
            float32, (batch, frames, dim) with padded frames set to zero, or (batch, dim).
        """
        if pool not in (None, "mean"):
            raise ValueError(f'pool={pool!r}, expected None or "mean".')
        wavs, wav_lens = check_batch(wavs, wav_lens, self.device)
        with (
            torch.no_grad(),
            self.inference_ctx,
        ):  # no inference_mode: a probe may be trained on the result
            out = self.mods["wav2vec2"](wavs, wav_lens, output_hidden_states=layer != -1)
        vectors = out.context if layer == -1 else _pick(out.hidden_states, layer)
        valid = valid_frames(out.frame_lengths, vectors.shape[1])
        vectors = vectors.float().masked_fill(~valid[..., None], 0.0)
        return vectors.sum(1) / out.frame_lengths[:, None] if pool else vectors

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """The same as `encode_batch`."""
        return self.encode_batch(wavs, wav_lens)


def _pick(hidden_states: tuple[Tensor, ...], layer: int) -> Tensor:
    if not 0 <= layer < len(hidden_states):
        raise ValueError(
            f"layer={layer}, but this model has {len(hidden_states) - 1} layers. "
            f"Expected 0 to {len(hidden_states) - 1}, or -1 for the context."
        )
    return hidden_states[layer]


def _read_or_error(path: PathLike) -> Tensor | BadAudio:
    try:
        return read_audio(path)
    except BadAudio as error:
        return error


def _check_folder(folder: Path, hparams_file: str) -> None:
    inner = folder / "model" / hparams_file
    if inner.is_file():  # an output folder: its YAML is that of the training
        raise FileNotFoundError(f"{folder} is the output of a run; its model is {inner.parent}.")
    if (folder / hparams_file).is_file():
        return
    hint = "Expected a folder written by training, such as <output_folder>/model."
    if (folder / "config.json").is_file():
        hint = "It looks like a transformers checkpoint: load it with from_checkpoint."
    raise FileNotFoundError(f"{folder}: no {hparams_file} in this folder. {hint}")


def _companion(source: PathLike, name: str) -> Path | None:
    """A small file beside the weights, from the folder or the hub; None if there is none."""
    try:
        path = Path(fetch(name, source=str(source)))
    except (OSError, ValueError, EntryNotFoundError):
        return None
    return path if path.is_file() else None
