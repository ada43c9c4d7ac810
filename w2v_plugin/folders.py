"""Model folders: what training writes and everything else reads.

    hyperparams.yaml   builds the model; what SpeechBrain's `from_hparams` reads
    wav2vec2.ckpt      weights without a head: what fine-tuning and embeddings start from
    pretraining.ckpt   quantizer and projections   (after pretraining)
    head.ckpt          the CTC head                (after fine-tuning)
    tokenizer.ckpt     the vocabulary              (after fine-tuning)

`Wav2Vec2Encoder.from_hparams` loads any kind, `Wav2Vec2ASR.from_hparams` and SpeechBrain's own
`EncoderASR.from_hparams` load a fine-tuned one, `pretrained: <folder>` in a fine-tuning recipe
takes any, and `start_from: <folder>` in pretraining goes on from any. Folders of several languages
(language_folders.py) have adapters beside the first two of these files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from speechbrain.utils.logger import get_logger

import w2v_plugin
from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.features import ConvExtractor
from w2v_plugin.int8_files import shrink
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.text import CharVocabulary
from w2v_plugin.weights import load_state, load_strict, read_weights

logger = get_logger(__name__)

ENCODER_YAML = """\
# Written by w2v_plugin {version}. Load this folder with
#   {loader}
sample_rate: 16000
precision: {precision}
keep_fp32: {keep_fp32}

wav2vec2: !new:w2v_plugin.model.Wav2Vec2
{wav2vec2}
"""

ASR_YAML = """
head: !new:torch.nn.Linear
  in_features: {dim}
  out_features: {vocab}

model: !new:w2v_plugin.ctc.Wav2Vec2CTC
  wav2vec2: !ref <wav2vec2>
  head: !ref <head>

tokenizer: !new:w2v_plugin.text.CharVocabulary
  letters: {letters}

# for speechbrain.inference.ASR.EncoderASR
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
  blank_id: {blank}

modules:
  encoder: !new:w2v_plugin.ctc.CTCLogProbs
    model: !ref <model>
    blank: {blank}
  model: !ref <model>
  wav2vec2: !ref <wav2vec2>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    wav2vec2: !ref <wav2vec2>
    head: !ref <head>
    tokenizer: !ref <tokenizer>
  custom_hooks:
    wav2vec2: !name:w2v_plugin.weights.load_state
    head: !name:w2v_plugin.weights.load_state
"""

PRETRAINED_YAML = """
modules:
  wav2vec2: !ref <wav2vec2>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    wav2vec2: !ref <wav2vec2>
  custom_hooks:
    wav2vec2: !name:w2v_plugin.weights.load_state
"""

# Plain data: whoever wants the body alone builds no quantizer.
PRETRAINING_YAML = """
# What pretraining.ckpt belongs to; w2v_plugin.conversion.load_pretraining reads both.
"""


def save_pretrained(
    folder: str | Path,
    model: Wav2Vec2 | Wav2Vec2Pretraining,
    *,
    precision: str = "fp32",
    keep_fp32: Collection[str] = (),
) -> None:
    """Write a folder that is not for transcribing: for fine-tuning, embeddings, more pretraining.

    Parameters
    ----------
    folder : str or Path
        Where to.
    model : Wav2Vec2 or Wav2Vec2Pretraining
        Not yet optimized. Of the latter, quantizer and projections are kept, too, so that units
        can be taken from it and pretraining can go on.
    precision : {"fp32", "int8"}
        "int8": weights of the body in a quarter of the room, and what interfaces use by default.
    keep_fp32 : collection of str
        Parts that are not quantized, see `optimize`.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.quantizer import GumbelQuantizer
    >>> body = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> model = Wav2Vec2Pretraining(body, GumbelQuantizer(8, codes=20, dim=8), dim=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(folder, model)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['hyperparams.yaml', 'pretraining.ckpt', 'wav2vec2.ckpt']
    """
    body = model if isinstance(model, Wav2Vec2) else model.wav2vec2
    loader = 'Wav2Vec2Encoder.from_hparams(source="<this folder>")'
    text = encoder_yaml(body, loader, precision, keep_fp32) + PRETRAINED_YAML
    if isinstance(model, Wav2Vec2Pretraining):
        text += PRETRAINING_YAML + yaml.safe_dump(pretraining_config(model), sort_keys=False)
    with all_or_nothing(folder) as new:
        (new / "hyperparams.yaml").write_text(text, encoding="utf-8")
        save_body(new, body, precision, keep_fp32)
        if isinstance(model, Wav2Vec2Pretraining):
            state = {k: v for k, v in plain_state(model).items() if not k.startswith("wav2vec2.")}
            torch.save(state, new / "pretraining.ckpt")


def pretraining_config(model: Wav2Vec2Pretraining) -> dict[str, Any]:
    """All it takes to build quantizer and projections again, as plain data."""
    quantizer = {"kind": type(model.quantizer).__name__, **plain(model.quantizer.config)}
    return {"pretraining": {**plain(model.config), "quantizer": quantizer}}


def save_asr(
    folder: str | Path,
    model: Wav2Vec2CTC,
    vocabulary: CharVocabulary,
    *,
    precision: str = "fp32",
    keep_fp32: Collection[str] = (),
) -> None:
    """Write a folder that transcribes; `precision` and `keep_fp32` as in `save_pretrained`."""
    loader = 'Wav2Vec2ASR.from_hparams(source="<this folder>")'
    text = encoder_yaml(model.wav2vec2, loader, precision, keep_fp32)
    text += ASR_YAML.format(
        dim=model.head.in_features,
        vocab=model.head.out_features,
        letters=yaml.safe_dump(
            vocabulary.letters, default_flow_style=True, allow_unicode=True, width=1_000_000
        ).strip(),
        blank=vocabulary.get_blank_index(),
    )
    with all_or_nothing(folder) as new:
        (new / "hyperparams.yaml").write_text(text, encoding="utf-8")
        save_body(new, model.wav2vec2, precision, keep_fp32)
        torch.save(plain_state(model.head), new / "head.ckpt")
        vocabulary.save(new / "tokenizer.ckpt")


UNFINISHED = ".new"  # what a kill leaves behind is called so


def holds_nothing(folder: Path) -> bool:
    """Whether a folder is not there, or has nothing in it that was finished."""
    return not folder.exists() or all(x.name.startswith(UNFINISHED) for x in folder.iterdir())


@contextmanager
def all_or_nothing(folder: str | Path) -> Iterator[Path]:
    """Where to write files that get into `folder` when all of them are complete, or none.

    A folder that is new appears as a whole. One that is there gets the files one by one, those that
    say what others are (adapters, of the languages of vocab.json) last.
    """
    folder = Path(folder)
    if holds_nothing(folder):
        with suppress(OSError):  # a disk of its own stays
            shutil.rmtree(folder)
    where = folder if folder.exists() else folder.parent
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where, prefix=UNFINISHED) as parent:
        new = Path(parent, folder.name)
        new.mkdir()
        yield new
        if not folder.exists():
            new.replace(folder)
            return
        for path in sorted(new.iterdir(), reverse=True):
            path.replace(folder / path.name)


def save_body(
    folder: Path, wav2vec2: Wav2Vec2, precision: str = "fp32", keep_fp32: Collection[str] = ()
) -> None:
    """wav2vec2.ckpt; ValueError if the model is optimized."""
    if not isinstance(wav2vec2.extractor, ConvExtractor):
        raise ValueError("This model is optimized, which cannot be saved. Save it before.")
    state = plain_state(wav2vec2)
    if precision == "int8":
        state = shrink(state, keep_fp32)
    elif precision != "fp32":
        raise ValueError(f'precision={precision!r}, expected "fp32" or "int8" for a file.')
    torch.save(state, folder / "wav2vec2.ckpt")


def load_pretrained(source: str | Path, wav2vec2: Wav2Vec2) -> None:
    """Fill `wav2vec2` with trained weights; CheckpointMismatch if the architectures differ.

    Parameters
    ----------
    source : str or Path
        A model folder of any kind, or whatever `load_checkpoint` reads: the folder or hub id of
        a transformers checkpoint, whose head and quantizer are left behind.
    wav2vec2 : Wav2Vec2
        The model to fill. Its `normalize_eps` becomes that of the weights.
    """
    if is_folder(source):
        config = read_settings(source)["wav2vec2"]
        check_config(wav2vec2, config, str(source))
        load_state(wav2vec2, Path(source) / "wav2vec2.ckpt")
    else:
        model = load_checkpoint(source)
        body = model if isinstance(model, Wav2Vec2) else model.wav2vec2
        config = body.config
        check_config(wav2vec2, config, str(source))
        load_strict(wav2vec2, body.state_dict(), source=str(source))
    eps = config.get("normalize_eps", wav2vec2.normalize_eps)  # earlier folders do not say it
    wav2vec2.normalize_eps = wav2vec2.config["normalize_eps"] = eps


def load_head(source: str | Path, model: Wav2Vec2CTC, vocabulary: CharVocabulary) -> bool:
    """Fill the head with that of a fine-tuned model of the same characters, if it is one.

    Parameters
    ----------
    source : str or Path
        As for `load_pretrained`.
    model : Wav2Vec2CTC
        Whose head is filled.
    vocabulary : CharVocabulary
        What the outputs of `model` mean; other characters, or another order, leave the head as
        it is, with a warning. Special symbols may have other names.

    Returns
    -------
    bool
        Whether it was.
    """
    if is_folder(source):
        if not (file := Path(source) / "head.ckpt").is_file():
            return False
        state, known = read_weights(file), CharVocabulary(())
        known.load(file.with_name("tokenizer.ckpt"))
    else:
        found = load_checkpoint(source)
        if not isinstance(found, Wav2Vec2CTC):
            return False
        try:
            state, known = found.head.state_dict(), load_vocabulary(source, found)
        except (FileNotFoundError, ValueError) as error:  # the body is in already
            logger.warning("The head is new, nothing says what the old one means (%s)", error)
            return False
    if meanings(known) != meanings(vocabulary):
        logger.warning("The head is new, that of %s speaks of other characters", source)
        return False
    load_strict(model.head, state, source=str(source))
    return True


def meanings(vocabulary: CharVocabulary) -> dict[int, str | None]:
    """What each output says in a text: "" if nothing, whatever it is called; None is the blank."""
    said = {i: "" if vocabulary.is_special(x) else x for i, x in vocabulary.ind2lab.items()}
    return {**said, vocabulary.get_blank_index(): None}


# what changes the answer but no shape: weights of another architecture would load silently
UNSEEN = (
    *("heads", "norm_first", "extractor_norm", "normalize", "kernels", "strides"),
    "causal_positions",
)


class AnyTag(yaml.SafeLoader):
    """Reads HyperPyYAML as plain data, running nothing."""


AnyTag.add_multi_constructor(
    "!",
    lambda loader, _, node: (
        loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.MappingNode)
        else node.value
    ),
)


def is_folder(source: str | Path) -> bool:
    """Whether `source` is a model folder of ours; FileNotFoundError if only half of one."""
    path = Path(source) / "wav2vec2.ckpt"
    if path.is_file() or not path.with_name("hyperparams.yaml").is_file():
        return path.is_file()
    raise FileNotFoundError(
        f"{path}: no such file. The model folder inside an output folder is called model/; it "
        "is written at the end of the run."
    )


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What hyperparams.yaml of a model folder says, as plain data."""
    text = (Path(folder) / "hyperparams.yaml").read_text(encoding="utf-8")
    return yaml.load(text, AnyTag)


def check_config(wav2vec2: Wav2Vec2, found: dict[str, Any], source: str) -> None:
    """Compare what the shapes of the weights do not tell."""
    ours = plain(wav2vec2.config)
    theirs = {"causal_positions": False} | plain(found)  # earlier folders do not say it
    for key in UNSEEN:
        if ours[key] != theirs[key]:
            raise CheckpointMismatch(
                f"{source} was trained with {key}={theirs[key]}, this model has {key}={ours[key]}. "
                f"Build it alike, in a recipe by --wav2vec2 '{{{key}: {theirs[key]}}}'."
            )


def encoder_yaml(
    wav2vec2: Wav2Vec2, loader: str, precision: str = "fp32", keep_fp32: Collection[str] = ()
) -> str:
    text = yaml.safe_dump(plain(wav2vec2.config), sort_keys=False, default_flow_style=None)
    body = "\n".join("  " + line for line in text.splitlines())
    return ENCODER_YAML.format(
        version=w2v_plugin.__version__,
        loader=loader,
        precision=precision,
        keep_fp32=list(keep_fp32),
        wav2vec2=body,
    )


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Sequences of any kind (HyperPyYAML makes its own) as lists."""
    return {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in config.items()}


def plain_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}
