"""Any checkpoint -> a folder that others, or our recipes and interfaces, load (`w2v convert`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.folders import read_config, save_asr, save_pretrained
from w2v_plugin.hf_checkpoints import AnyModel
from w2v_plugin.hf_export import export_hf, new_folder
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary
from w2v_plugin.weights import LoadReport, load_strict, read_weights, without_values

FORMATS = ("hf", "ours")


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    to: str = "hf",
    language: str | None = None,
    precision: str = "fp32",
    keep_fp32: Collection[str] = (),
) -> LoadReport:
    """Convert a checkpoint; no bit of its weights changes (unless INT8 is asked for).

    Parameters
    ----------
    source : str or Path
        Whatever `load_checkpoint` reads, or one of our model folders.
    folder : str or Path
        Must not exist yet, or be empty. It appears complete or not at all.
    to : {"hf", "ours"}
        "hf": what transformers loads, and torchaudio's importer through it; a CTC model with its
        processor (vocab.json, tokenizer_config.json, preprocessor_config.json). "ours": a model
        folder, as training writes it; heads of pretraining are left behind.
    language : str, optional
        Of a multilingual model: its adapters, head and vocabulary.
    precision, keep_fp32
        See `save_pretrained`; "int8" with to="ours" only.

    Returns
    -------
    LoadReport
        What was read, renamed, ignored and missing.

    Raises
    ------
    FileExistsError
        There is something in `folder`.
    FileNotFoundError, CheckpointMismatch, ValueError
        As `load_checkpoint` and `load_vocabulary`.
    OSError
        The disk is full, for example; nothing is left behind.

    Example
    -------
    >>> import tempfile
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_pretrained(Path(parent, "trained"), model)
    ...     report = convert(Path(parent, "trained"), Path(parent, "exported"))
    ...     type(load_checkpoint(Path(parent, "exported"))).__name__, report.read
    ('Wav2Vec2', 35)
    """
    if to not in FORMATS:
        raise ValueError(f"to={to!r}, expected one of {FORMATS}.")
    if precision != "fp32" and to != "ours":
        raise ValueError(f'precision={precision!r} is a format of ours only: add to="ours".')
    small: dict[str, Any] = {"precision": precision, "keep_fp32": keep_fp32}
    with new_folder(folder) as new:  # first of all: it may be refused
        model, vocabulary = open_any(source, language)
        if to == "hf":
            export_hf(model, new, vocabulary)
        elif isinstance(model, Wav2Vec2CTC) and vocabulary is not None:
            save_asr(new, model, vocabulary, **small)
        else:
            save_pretrained(new, model if isinstance(model, Wav2Vec2) else model.wav2vec2, **small)
    return vars(model)["load_report"]


def open_any(
    source: str | Path, language: str | None = None
) -> tuple[AnyModel, CharVocabulary | None]:
    """A model of any kind, and the vocabulary of a CTC head.

    Parameters
    ----------
    source, language
        See `convert`.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(
    ...         folder, Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    ...     )
    ...     model, vocabulary = open_any(folder)
    >>> type(model).__name__, vocabulary
    ('Wav2Vec2', None)
    """
    if (Path(source) / "hyperparams.yaml").is_file():
        return open_folder(source)
    model = load_checkpoint(source, language=language)
    if isinstance(model, Wav2Vec2CTC):
        return model, load_vocabulary(source, model, language)
    return model, None


def open_folder(folder: str | Path) -> tuple[Wav2Vec2 | Wav2Vec2CTC, CharVocabulary | None]:
    """Model and vocabulary of one of our model folders, running nothing that is in it.

    Parameters
    ----------
    folder : str or Path
        Of either kind.

    Raises
    ------
    FileNotFoundError
        It lacks a file.
    CheckpointMismatch
        The weights do not fit the configuration.

    Example
    -------
    >>> import tempfile
    >>> tiny = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_asr(folder, Wav2Vec2CTC(tiny, vocab_size=32), CharVocabulary())
    ...     model, vocabulary = open_folder(folder)
    >>> model.head.out_features, len(vocabulary)
    (32, 32)
    """
    folder = Path(folder)
    state = read_weights(folder / "wav2vec2.ckpt")
    ctc = (folder / "head.ckpt").is_file()
    if ctc:
        state = {f"wav2vec2.{key}": tensor for key, tensor in state.items()}
        head = read_weights(folder / "head.ckpt")
        state |= {f"head.{key}": tensor for key, tensor in head.items()}
    with without_values():
        model: Wav2Vec2 | Wav2Vec2CTC = Wav2Vec2(**read_config(folder / "hyperparams.yaml"))
        if isinstance(model, Wav2Vec2) and ctc:
            model = Wav2Vec2CTC(model, len(state["head.bias"]))
    load_strict(model, state, str(folder), take_over=True)
    if not ctc:
        return model.eval(), None
    vocabulary = CharVocabulary()
    vocabulary.load(folder / "tokenizer.ckpt")
    return model.eval(), vocabulary
