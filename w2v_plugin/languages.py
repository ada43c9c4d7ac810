"""Multilingual models: one body for all, and per language adapters, head and vocabulary (MMS)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from w2v_plugin.adaptation import ADAPTERLESS, of_language
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.fairseq_checkpoints import read_fairseq
from w2v_plugin.hf_checkpoints import AnyModel, find_file, hf_name, hf_vocabulary
from w2v_plugin.text import CharVocabulary, read_json
from w2v_plugin.weights import load_strict, read_weights

ADAPTERS = ("adapter.{}.safetensors", "adapter.{}.bin")


def set_language(model: AnyModel, source: str | Path, language: str) -> CharVocabulary:
    """Give a multilingual model the adapters and the head of a language, at any time.

    Everything else stays. What was learned for the language before is lost unless it is saved.

    Parameters
    ----------
    model : Wav2Vec2CTC
        Loaded from `source`; changed in place, or not at all if anything does not fit.
    source : str or Path
        The folder or hub repository with the files `adapter.<language>.safetensors` (or `.bin`)
        and a vocab.json with one vocabulary per language (`save_language` writes such folders,
        too), or a file of fairseq that holds all.
    language : str
        As the files are named, such as "eng" or "zho-script_simplified".

    Returns
    -------
    CharVocabulary
        That of the language.

    Raises
    ------
    ValueError
        The model has no adapters, or there are none for this language: the error lists those
        that there are.
    CheckpointMismatch
        The adapters are for another model.

    Example
    -------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> from w2v_plugin.model import Wav2Vec2
    >>> shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    >>> model = Wav2Vec2CTC(Wav2Vec2(**shape, norm_first=True, adapter_dim=4), vocab_size=3)
    >>> weights = {hf_name(key): value for key, value in model.state_dict().items()}
    >>> french = {key: weights[key] for key in weights if "adapter" in key or "head" in key}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(french, Path(folder, "adapter.fra.safetensors"))
    ...     vocabularies = '{"fra": {"<pad>": 0, "|": 1, "é": 2}}'
    ...     _ = Path(folder, "vocab.json").write_text(vocabularies, encoding="utf-8")
    ...     set_language(model, folder, "fra").decode_tokens([2, 1, 2])
    'é é'
    """
    if not isinstance(model, Wav2Vec2CTC) or not any(
        model.wav2vec2.config[key] is not None for key in ADAPTERLESS
    ):
        raise ValueError(
            f"{source}: a {type(model).__name__} without language adapters has no languages to "
            "choose from. Leave out the language, or load an MMS model such as "
            "facebook/mms-1b-all."
        )
    if Path(source).is_file():
        state, vocabulary = read_fairseq(source).language(language)
        exchange(model, state, f"{source} ({language})")
        return vocabulary
    safe = re.fullmatch(r"[\w-]+", language) is not None  # it becomes part of a file name
    paths = (find_file(source, name.format(language)) for name in ADAPTERS if safe)
    path = next((path for path in paths if path is not None), None)
    if path is None:
        raise ValueError(
            f"{source}: no adapters for language={language!r}. "
            f"Choose one of {', '.join(languages(source)) or '(there are none)'}."
        )
    vocabulary = hf_vocabulary(source, language)
    state = read_weights(path)
    vocabulary.fit(len(state.get("lm_head.bias", ())), str(path))
    exchange(model, state, str(path), names=hf_name, format="transformers")
    return vocabulary


def languages(source: str | Path) -> list[str]:
    """The languages that `set_language` can choose from.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "adapter.eng.safetensors").touch()
    ...     languages(folder)
    ['eng']
    """
    if Path(source).is_file():
        return read_fairseq(source).languages
    if Path(source).is_dir():
        names = [path.name for path in Path(source).glob("adapter.*")]
        return sorted({name.removeprefix("adapter.").rpartition(".")[0] for name in names})
    path = find_file(source, "vocab.json")
    entries = {} if path is None else read_json(path)
    return sorted(name for name, entry in entries.items() if isinstance(entry, dict))


def exchange(
    model: Wav2Vec2CTC,
    state: Mapping[str, Tensor],
    source: str,
    *,
    names: Callable[[str], str | None] = str,
    format: str = "fairseq",
) -> None:
    """Put adapters and head into `model`, all of them or none; see `load_strict`."""

    def changing(name: str) -> str | None:
        return names(name) if of_language(name) else None

    old = model.head
    rows = len(state.get(names("head.bias") or "", ()))
    model.head = nn.utils.skip_init(
        nn.Linear, old.in_features, rows, device=old.weight.device, dtype=old.weight.dtype
    )
    try:
        load_strict(model, state, source, translate=changing, format=format)
    except Exception:
        model.head = old
        raise
    model.head.requires_grad_(old.weight.requires_grad)
