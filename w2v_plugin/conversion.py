"""Any checkpoint -> a folder that others, or our recipes and interfaces, load (`w2v convert`)."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from w2v_plugin.adaptation import merged
from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.folders import is_folder, read_settings, save_asr, save_pretrained
from w2v_plugin.hf_checkpoints import AnyModel
from w2v_plugin.hf_export import export_hf, new_folder
from w2v_plugin.language_folders import export_languages, open_language, per_language
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer
from w2v_plugin.text import CharVocabulary
from w2v_plugin.weights import LoadReport, load_strict, read_weights, without_values

logger = logging.getLogger(__name__)

QUANTIZERS = {kind.__name__: kind for kind in (GumbelQuantizer, NearestQuantizer)}
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
        processor (vocab.json, tokenizer_config.json, preprocessor_config.json), a pretrained one
        with its quantizer if that is a GumbelQuantizer: transformers has no other, and gets the
        body alone. "ours": a model folder, as training writes it.
    language : str, optional
        Of a multilingual model: its adapters, head and vocabulary. LoRA updates become part of the
        weights. Without it, a folder of languages of ours becomes one of transformers (to="hf"),
        as MMS models are, if its adapters have their shape.
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
        if to == "hf" and language is None and per_language(source) is not None:
            return vars(export_languages(source, new))["load_report"]
        model, vocabulary = open_any(source, language)
        report: LoadReport = vars(model)["load_report"]
        if to == "hf":
            export_hf(_without_nearest(model, report), new, vocabulary)
        elif isinstance(model, Wav2Vec2CTC):
            assert vocabulary is not None  # `open_any` has one, or fails
            save_asr(new, model, vocabulary, **small)
        else:
            save_pretrained(new, model, **small)
    return report


def _without_nearest(model: AnyModel, report: LoadReport) -> AnyModel:
    """What transformers knows of `model`; the report names what it does not."""
    if not isinstance(model, Wav2Vec2Pretraining) or isinstance(model.quantizer, GumbelQuantizer):
        return model
    why = "transformers knows no NearestQuantizer; the body is written as a Wav2Vec2Model"
    heads = [name for name in model.state_dict() if not name.startswith("wav2vec2.")]
    report.ignored |= dict.fromkeys(heads, why)
    logger.warning("%s: %s.", report.source, why)
    return model.wav2vec2


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
    if is_folder(source):
        if language is None and per_language(source) is None:
            return open_folder(source)
        spoken, vocabulary = open_language(source, language)
        spoken.wav2vec2 = merged(spoken.wav2vec2)
        return spoken, vocabulary
    model = load_checkpoint(source, language=language)
    if isinstance(model, Wav2Vec2CTC):
        return model, load_vocabulary(source, model, language)
    return model, None


def open_model(source: str | Path) -> AnyModel:
    """As `open_any`, for whoever needs no vocabulary: nothing has to lie beside the weights.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(
    ...         folder, Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    ...     )
    ...     open_model(folder).dim
    16
    """
    return open_folder(source)[0] if is_folder(source) else load_checkpoint(source)


def load_pretraining(source: str | Path) -> Wav2Vec2Pretraining:
    """A pretrained model with its quantizer and projections.

    Parameters
    ----------
    source : str or Path
        A model folder that pretraining wrote, or a checkpoint of pretraining that
        `load_checkpoint` reads: transformers' Wav2Vec2ForPreTraining, fairseq's `.pt`.

    Returns
    -------
    Wav2Vec2Pretraining
        In evaluation mode, in float32, on the CPU.

    Raises
    ------
    FileNotFoundError
        There is no such folder, file or model.
    CheckpointMismatch
        It is damaged, or has no quantizer.

    Example
    -------
    >>> import tempfile
    >>> body = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> model = Wav2Vec2Pretraining(body, NearestQuantizer(8, codes=20, dim=8), dim=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(folder, model)
    ...     load_pretraining(folder).quantizer.codes
    20
    """
    model = open_model(source)
    if not isinstance(model, Wav2Vec2Pretraining):
        raise CheckpointMismatch(
            f"{source}: a {type(model).__name__}, without the quantizer of pretraining. Expected "
            "the model folder that recipes/pretrain.py writes (those of version 0.1.0 hold the "
            "body alone), or a published checkpoint of pretraining, not of fine-tuning."
        )
    return model


def open_folder(folder: str | Path) -> tuple[AnyModel, CharVocabulary | None]:
    """Model and vocabulary of one of our model folders, running nothing that is in it.

    Parameters
    ----------
    folder : str or Path
        Of any kind.

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
    folder, settings = Path(folder), read_settings(folder)
    state = read_weights(folder / "wav2vec2.ckpt")
    if heads := {"head", "pretraining"} & settings.keys():
        state = {f"wav2vec2.{key}": tensor for key, tensor in state.items()}
    with without_values():
        model: AnyModel = (body := Wav2Vec2(**settings["wav2vec2"]))
        if "head" in heads:
            head = read_weights(folder / "head.ckpt")
            state |= {f"head.{key}": tensor for key, tensor in head.items()}
            model = Wav2Vec2CTC(body, len(head["bias"]))
        elif heads:
            state |= read_weights(folder / "pretraining.ckpt")
            model = _pretraining(body, dict(settings["pretraining"]), str(folder))
    load_strict(model, state, str(folder), take_over=True)
    if not isinstance(model, Wav2Vec2CTC):
        return model.eval(), None
    vocabulary = CharVocabulary()
    vocabulary.load(folder / "tokenizer.ckpt")
    return model.eval(), vocabulary


def _pretraining(body: Wav2Vec2, config: dict[str, Any], folder: str) -> Wav2Vec2Pretraining:
    """A model without values as `pretraining_config` describes it."""
    try:
        quantizer = dict(config.pop("quantizer"))
        return Wav2Vec2Pretraining(body, QUANTIZERS[quantizer.pop("kind")](**quantizer), **config)
    except (KeyError, TypeError) as error:
        raise CheckpointMismatch(
            f"{folder}: `pretraining` in its hyperparams.yaml is not that of this version "
            f"({type(error).__name__}: {error}). Open it with the version that wrote it."
        ) from error
