"""Folders of several languages: one body, and for each language its adapters, head and vocabulary.

    hyperparams.yaml, wav2vec2.ckpt   the body that all share; a pretrained model like any other
    adapter.<language>.safetensors    adapters or LoRA updates, and the head (names of MMS, of PEFT)
    vocab.json                        {language: {symbol: index}}, as in MMS

A language is added as a whole or not at all, and nothing that belongs to another one is touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile, copymode
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from w2v_plugin.adaptation import ADAPTERLESS, of_language, rebuilt
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.folders import (
    PRETRAINED_YAML,
    all_or_nothing,
    check_config,
    encoder_yaml,
    holds_nothing,
    is_folder,
    read_settings,
    save_body,
)
from w2v_plugin.hf_checkpoints import hf_name
from w2v_plugin.hf_export import export_hf, tokenizer_files
from w2v_plugin.languages import ADAPTERS, languages, set_language
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary, read_json
from w2v_plugin.weights import load_strict, read_weights, without_values

YAML = """
# What each adapter.<language>.safetensors brings to this body; its symbols are in vocab.json.
per_language: {adapters}
"""
LOADER = 'Wav2Vec2ASR.from_hparams(source="<this folder>", language="<language>")'


def per_language(folder: str | Path) -> dict[str, Any] | None:
    """Arguments of `Wav2Vec2` that a language adds to the body; None: not a folder of languages."""
    return read_settings(folder).get("per_language") if is_folder(folder) else None


def adapters_of(body: Wav2Vec2) -> dict[str, Any]:
    """Arguments of `Wav2Vec2` that make its adapters; ValueError if it has none, or two kinds."""
    keys = ("adapter_dim",) if body.config["adapter_dim"] is not None else ("lora_rank",)
    found = {key: body.config[key] for key in ADAPTERLESS if body.config[key] is not None}
    if len(found) != 1:
        raise ValueError(
            f"A body with {found or 'no adapters'}: expected either adapter_dim or lora_rank, "
            "which is what differs by language. See `body_of(adapters=...)`."
        )
    return found if keys == ("adapter_dim",) else found | {"lora_alpha": body.config["lora_alpha"]}


def save_language(
    folder: str | Path,
    model: Wav2Vec2CTC,
    vocabulary: CharVocabulary,
    language: str,
    *,
    replace: bool = False,
) -> None:
    """Write a folder of languages, or add a language to one.

    Parameters
    ----------
    folder : str or Path
        New, or written by this function with the same body and adapters of the same shape.
    model : Wav2Vec2CTC
        With language adapters or LoRA updates; not optimized.
    vocabulary : CharVocabulary
        What its outputs mean.
    language : str
        Letters, digits, `-` and `_`, such as "deu" (ISO 639-3, as in MMS).
    replace : bool
        Whether the language may be there already.

    Raises
    ------
    ValueError, FileExistsError, CheckpointMismatch
        See `check_language`; nothing is written then.

    Example
    -------
    >>> import tempfile
    >>> shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    >>> model = Wav2Vec2CTC(Wav2Vec2(**shape, lora_rank=2), vocab_size=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_language(folder, model, CharVocabulary("aäz"), "deu")
    ...     save_language(folder, model, CharVocabulary("aéz"), "fra")
    ...     opened, vocabulary = open_language(folder, "fra")
    ...     languages(folder), vocabulary.letters
    (['deu', 'fra'], ['a', 'é', 'z'])
    """
    folder = Path(folder)
    with _alone(folder):  # a training of another language may end at the same time
        check_language(folder, model, vocabulary, language, replace=replace)
        others = dict(read_json(folder / "vocab.json")) if is_folder(folder) else {}
        with all_or_nothing(folder) as new:
            if not is_folder(folder):
                _write_body(new, model.wav2vec2)
            _write_language(new, model, vocabulary, language, others)


def check_language(
    folder: str | Path,
    model: Wav2Vec2CTC,
    vocabulary: CharVocabulary,
    language: str,
    *,
    replace: bool = False,
) -> None:
    """Whether `save_language` would work, to be asked before a training.

    Raises
    ------
    ValueError
        No name for a language, a model without adapters, or a vocabulary that is one of pieces
        or does not fit the head.
    FileExistsError
        The folder has this language already, or is no folder of languages.
    CheckpointMismatch
        The folder has another body, or adapters of another shape.
    """
    check_name(language)
    adapters = adapters_of(model.wav2vec2)
    if vocabulary.pieces is not None:
        raise ValueError(
            "A vocabulary of pieces cannot be kept in vocab.json, which lists characters. Give a "
            "vocabulary of characters, or train without adapters."
        )
    vocabulary.fit(model.head.out_features, f"The vocabulary of {language}")
    with TemporaryDirectory() as trial:
        _write_vocabularies(Path(trial, "vocab.json"), vocabulary, language, {})
    folder = Path(folder)
    if holds_nothing(folder):
        return
    if (there := per_language(folder)) is None:
        raise FileExistsError(
            f"{folder} holds something else than a folder of languages. Choose another one."
        )
    if there != adapters:
        raise CheckpointMismatch(
            f"{folder} has adapters with {there}, this model has {adapters}. Use the same."
        )
    if not replace and language in languages(folder):
        raise FileExistsError(
            f"{folder} has {language} already. Choose another name or folder, or delete "
            f"{language_file(folder, language).name} there."
        )
    _check_body(folder, model.wav2vec2)


def language_file(folder: str | Path, language: str) -> Path:
    """Where a folder keeps what is one language's alone.

    Example
    -------
    >>> language_file("model", "deu").name
    'adapter.deu.safetensors'
    """
    return Path(folder, ADAPTERS[0].format(language))


def check_name(language: Any) -> None:
    """ValueError where a language cannot be called so."""
    if not isinstance(language, str) or not re.fullmatch(r"[\w-]+", language):
        raise ValueError(
            f"language={language!r}, expected letters, digits, - and _, such as deu (ISO 639-3). "
            "YAML reads a bare no as false: write nor, or \"'no'\"."
        )


def _check_body(folder: Path, body: Wav2Vec2) -> None:
    """CheckpointMismatch unless the body is that of the folder, bit for bit."""
    check_config(body, read_settings(folder)["wav2vec2"], str(folder))
    ours = {k: v for k, v in body.state_dict().items() if not of_language(k)}
    theirs = read_weights(folder / "wav2vec2.ckpt")
    different = sorted(ours.keys() ^ theirs.keys()) or [
        name for name, value in ours.items() if not torch.equal(value.cpu(), theirs[name])
    ]
    if different:
        raise CheckpointMismatch(
            f"{folder} has another body: {len(different)} weights differ, {different[0]} first of "
            "all. Languages of one folder share all of it: train from this folder, with "
            f"--pretrained {folder}."
        )


def open_language(
    folder: str | Path, language: str | None = None
) -> tuple[Wav2Vec2CTC, CharVocabulary]:
    """A model of a folder of languages, in one of them, and its vocabulary.

    Parameters
    ----------
    folder : str or Path
        As `save_language` writes it.
    language : str, optional
        See `languages`; None for the only one.

    Raises
    ------
    ValueError
        Not a folder of languages, no such language, or None with several to choose from.
    """
    language, settings = choose_language(folder, language), read_settings(folder)
    state = read_weights(Path(folder) / "wav2vec2.ckpt")
    with without_values():
        body = Wav2Vec2(**settings["wav2vec2"] | settings["per_language"])
        model = Wav2Vec2CTC(body, vocab_size=1)
    load_strict(
        model,
        {f"wav2vec2.{key}": tensor for key, tensor in state.items()},
        str(folder),
        translate=lambda name: None if of_language(name) else name,
        take_over=True,
    )
    report = vars(model)["load_report"]
    vocabulary = set_language(model, folder, language)
    model.load_report = report
    return model.eval(), vocabulary


def choose_language(folder: str | Path, language: str | None) -> str:
    """`language`, or the only one; ValueError where there is no choice, or too much of it."""
    if per_language(folder) is None:
        raise ValueError(f"{folder}: a model of one language has no languages to choose from.")
    there = languages(folder)
    if language is None and len(there) == 1:
        return there[0]
    if language not in there:
        asked = "several languages" if language is None else f"no language={language!r}"
        raise ValueError(f"{folder}: {asked}. Choose one of {', '.join(there) or '(none)'}.")
    return language


def export_languages(folder: str | Path, target: str | Path) -> Wav2Vec2CTC:
    """Write all languages as transformers has them in MMS models: `load_adapter` switches.

    Parameters
    ----------
    folder : str or Path
        As `save_language` writes it, with adapters of MMS' shape.
    target : str or Path
        Must not exist yet, or be empty. The first language (by name) is the one that is loaded
        where none is asked for.

    Returns
    -------
    Wav2Vec2CTC
        What was written for the first language.

    Raises
    ------
    ValueError
        LoRA, which transformers has no such files for, or blanks that differ by language.
    """
    if "lora_rank" in (per_language(folder) or {}):
        raise ValueError(
            f"{folder}: transformers has no files of LoRA updates by language. Choose one of "
            f"{', '.join(languages(folder))} with --language: it is merged into the weights."
        )
    first, *others = languages(folder)
    model, vocabulary = open_language(folder, first)
    blank = vocabulary.get_blank_index()
    for language in others:
        path = Path(folder, "vocab.json")
        if (other := CharVocabulary.from_vocab_json(path, language).get_blank_index()) != blank:
            raise ValueError(
                f"{folder}: the blank of {first} is output {blank}, that of {language} {other}; "
                "config.json can name one only. Export them one by one, with --language."
            )
    export_hf(model, target, vocabulary)
    for language in (first, *others):
        name = language_file(folder, language).name
        copyfile(Path(folder, name), Path(target, name))
    copyfile(Path(folder, "vocab.json"), Path(target, "vocab.json"))
    path = Path(target, "tokenizer_config.json")
    _write_json(path, {**read_json(path), "target_lang": first})
    return model


def _write_body(new: Path, body: Wav2Vec2) -> None:
    shared = rebuilt(body, "the shared body", **ADAPTERLESS)
    adapters = yaml.safe_dump(adapters_of(body), default_flow_style=True).strip()
    text = encoder_yaml(shared, LOADER) + PRETRAINED_YAML + YAML.format(adapters=adapters)
    (new / "hyperparams.yaml").write_text(text, encoding="utf-8")
    save_body(new, shared)


def _write_language(
    new: Path,
    model: Wav2Vec2CTC,
    vocabulary: CharVocabulary,
    language: str,
    others: dict[str, Any],
) -> None:
    """Its file, and the vocabularies of all."""
    state = {
        theirs: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if of_language(name) and (theirs := hf_name(name)) is not None
    }
    vocabularies = new / "vocab.json"
    _write_vocabularies(vocabularies, vocabulary, language, others)
    path = language_file(new, language)
    save_file(state, path, metadata={"format": "pt"})
    copymode(vocabularies, path)  # safetensors writes for its owner only


def _write_vocabularies(
    path: Path, vocabulary: CharVocabulary, language: str, others: dict[str, Any]
) -> None:
    """vocab.json of all; ValueError if it alone does not tell what the vocabulary was."""
    _write_json(path, {**others, language: tokenizer_files(vocabulary)["vocab"]})
    try:
        read = CharVocabulary.from_vocab_json(path, language)
        same = (read.lab2ind, read.blank_label) == (vocabulary.lab2ind, vocabulary.blank_label)
    except ValueError:  # no blank in it, by the names that are known
        same = False
    if not same:
        raise ValueError(
            f"The vocabulary of {language} cannot be told from vocab.json alone. Call its blank "
            f"<pad>; it is {vocabulary.blank_label!r}."
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes the folder, which need not be there yet."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    above = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(above, fcntl.LOCK_EX)
        yield
    finally:
        os.close(above)
