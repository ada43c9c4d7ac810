"""To a new language: what a fine-tuning starts from, and what of it is left as it is.

`python -m w2v_plugin.transfer`, recipes/transfer.py and what else transfers call `begin`, then
`finetune`.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process

from w2v_plugin.adaptation import freeze_shared, take_rows
from w2v_plugin.circumstances import sha256
from w2v_plugin.conversion import open_any
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.finetuning import finetune
from w2v_plugin.folders import is_folder
from w2v_plugin.hf_checkpoints import AnyModel
from w2v_plugin.language_folders import (
    check_language,
    language_file,
    per_language,
    save_language,
)
from w2v_plugin.launch import join_group, read_hparams, told
from w2v_plugin.manifests import write_files
from w2v_plugin.text import CharVocabulary

logger = logging.getLogger(__name__)
SAVED = "saved_language.sha256"


def main(argv: list[str]) -> int:
    """As `run`; what the user can mend is one line, and exit status 2."""
    return told("transfer", run, argv)


def run(argv: list[str]) -> dict[str, dict[str, float]]:
    """Train as a YAML says.

    Parameters
    ----------
    argv : list of str
        The YAML, such as hparams/transfer/tiny.yaml, and SpeechBrain's options and `--key value`
        for whatever shall be otherwise.

    Returns
    -------
    dict
        As `finetune`.

    Raises
    ------
    ValueError, OSError, CheckpointMismatch, BadManifest, BadAudio, CheckpointNotSaved
        As `begin` and `finetune`.
    """
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    join_group(run_opts)
    hparams = read_hparams(hparams_file, overrides)
    begin(hparams)  # before the training: it may be refused
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    return finetune(hparams, run_opts)


def begin(hparams: dict[str, Any]) -> dict[str, Any]:
    """Make a model ready for another language; whatever does not fit is told before training.

    Parameters
    ----------
    hparams : dict
        A loaded YAML such as `hparams/transfer/tiny.yaml`, whose model has the body of
        `pretrained` (`body_of`). With `adapters`, `encoder_lr`, `save` and `model_folder` become
        theirs: only adapters and head learn, and are saved by `save_language`.

    Returns
    -------
    dict
        What was done, for results.json: `rows_taken` (symbols), and with adapters
        `parameters_own` and `parameters_shared`. Also in `hparams["notes"]`.

    Raises
    ------
    ValueError, FileExistsError, CheckpointMismatch
        `adapters` without `language` or the other way round, a folder that would be overwritten;
        as `check_language`.
    """
    model, vocabulary, language = (hparams[key] for key in ("model", "vocabulary", "language"))
    notes: dict[str, Any] = {"pretrained": str(hparams["pretrained"])}
    if hparams["take_rows"]:
        notes["rows_taken"] = known_rows(hparams["pretrained"], model, vocabulary)
        _say(_rows(notes["rows_taken"], len(vocabulary)))
    if hparams["adapters"] is None:
        _check_alone(hparams, language)
        if hparams["freeze_extractor"]:
            model.wav2vec2.freeze_extractor()
    else:
        notes |= _adapt(hparams, model, vocabulary, language)
    hparams["notes"] = notes
    return notes


def _adapt(
    hparams: dict[str, Any], model: Wav2Vec2CTC, vocabulary: CharVocabulary, language: Any
) -> dict[str, Any]:
    """Freeze what is shared, and see that the result can be saved where it shall go."""
    kind = hparams["adapters"]
    if language is None:
        raise ValueError(
            f"adapters={kind!r} are those of a language: say which, as in --language deu."
        )
    folder = Path(hparams["model_folder"])
    saved = Path(hparams["checkpointer"].checkpoints_dir, SAVED)  # by an earlier run of the same
    replace = _within(folder, hparams["output_folder"]) or _written(saved, folder, language)
    check_language(folder, model, vocabulary, language, replace=replace)
    own, shared = freeze_shared(model)
    _say(
        f"{language}: {own:,} parameters of its own, {own / shared:.2%} of the {shared:,} that all "
        "languages share."
    )
    hparams["encoder_lr"] = hparams["adapter_lr"]
    hparams["save"] = partial(_save_and_remember, saved, language=language, replace=replace)
    return {"language": language, "parameters_own": own, "parameters_shared": shared}


def _save_and_remember(
    saved: Path, folder: Path, model: Wav2Vec2CTC, vocabulary: CharVocabulary, **how: Any
) -> None:
    """Into a folder that others write, too: `saved` tells later which file was ours."""
    save_language(folder, model, vocabulary, **how)
    write_files({saved: sha256(language_file(folder, how["language"])).encode()})


def _written(saved: Path, folder: Path, language: str) -> bool:
    """Whether a folder has a language from the training that wrote `saved`, and no other one."""
    file = language_file(folder, language)
    return saved.is_file() and file.is_file() and saved.read_text() == sha256(file)


def _check_alone(hparams: dict[str, Any], language: Any) -> None:
    """ValueError where something asks for several languages, but all weights are trained."""
    remedy = "Add --adapters mms or lora, or leave it out."
    if language is not None:
        raise ValueError(
            f"language={language!r} without adapters: all weights are trained, so that the model "
            f"speaks one language. {remedy}"
        )
    folder = Path(hparams["model_folder"])
    if not _within(folder, hparams["output_folder"]):
        raise ValueError(f"model_folder={folder} without adapters would be overwritten. {remedy}")
    if per_language(folder) is not None:
        raise ValueError(
            f"{folder} is a folder of languages. Choose another output_folder, or add --adapters."
        )


def _within(folder: Path, out: str | Path) -> bool:
    return Path(out).resolve() in folder.resolve().parents


def known_rows(
    source: str | Path, model: Wav2Vec2CTC, vocabulary: CharVocabulary
) -> list[str] | None:
    """Fill the head's rows that the head of `source` knows, see `take_rows`.

    Parameters
    ----------
    source : str or Path
        What the body of `model` is from.
    model : Wav2Vec2CTC
        Whose head is filled.
    vocabulary : CharVocabulary
        What its outputs mean.

    Returns
    -------
    list of str or None
        The symbols; None where there is no head, or nothing says what its outputs mean.
    """
    try:
        found, known = _with_vocabulary(source)
    except (FileNotFoundError, ValueError, CheckpointMismatch) as error:  # the body is in already
        logger.warning(
            "%s: the head is new, nothing says what the old one means (%s).", source, error
        )
        return None
    if not isinstance(found, Wav2Vec2CTC) or known is None:
        return None
    return take_rows(model.head, vocabulary, found.head, known)


def _with_vocabulary(source: str | Path) -> tuple[AnyModel | None, CharVocabulary | None]:
    """Not of a folder of languages: heads belong to adapters there, and the body has none."""
    return (None, None) if is_folder(source) and per_language(source) else open_any(source)


def _rows(taken: list[str] | None, symbols: int) -> str:
    if not taken:
        return f"The head is new: {symbols} symbols."
    return f"The head goes on for {len(taken)} of {symbols} symbols: {' '.join(taken)}"


def _say(text: str) -> None:
    if if_main_process():
        print(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
