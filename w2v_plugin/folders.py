"""Model folders: what training writes and everything else reads.

    hyperparams.yaml   builds the model; what SpeechBrain's `from_hparams` reads
    wav2vec2.ckpt      weights without a head: what fine-tuning and embeddings start from
    head.ckpt          the CTC head            (after fine-tuning)
    tokenizer.ckpt     the vocabulary          (after fine-tuning)

`Wav2Vec2Encoder.from_hparams` loads either kind, `Wav2Vec2ASR.from_hparams` and SpeechBrain's own
`EncoderASR.from_hparams` load a fine-tuned one, and `pretrained: <folder>` in a fine-tuning recipe
takes both.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import yaml

import w2v_plugin
from w2v_plugin.checkpoints import load_checkpoint
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.features import ConvExtractor
from w2v_plugin.int8_files import shrink
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary
from w2v_plugin.weights import load_state, load_strict

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


def save_pretrained(
    folder: str | Path,
    wav2vec2: Wav2Vec2,
    *,
    precision: str = "fp32",
    keep_fp32: Collection[str] = (),
) -> None:
    """Write a folder without a head: for fine-tuning and embeddings.

    Parameters
    ----------
    folder : str or Path
        Where to.
    wav2vec2 : Wav2Vec2
        Not yet optimized.
    precision : {"fp32", "int8"}
        "int8": weights in a quarter of the room, and what interfaces use by default.
    keep_fp32 : collection of str
        Parts that are not quantized, see `optimize`.
    """
    loader = 'Wav2Vec2Encoder.from_hparams(source="<this folder>")'
    text = encoder_yaml(wav2vec2, loader, precision, keep_fp32)
    write(folder, text + PRETRAINED_YAML)
    _save_encoder(folder, wav2vec2, precision, keep_fp32)


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
    write(folder, text)
    _save_encoder(folder, model.wav2vec2, precision, keep_fp32)
    torch.save(plain_state(model.head), Path(folder) / "head.ckpt")
    vocabulary.save(Path(folder) / "tokenizer.ckpt")


def _save_encoder(
    folder: str | Path, wav2vec2: Wav2Vec2, precision: str, keep_fp32: Collection[str]
) -> None:
    if not isinstance(wav2vec2.extractor, ConvExtractor):
        raise ValueError("This model is optimized, which cannot be saved. Save it before.")
    state = plain_state(wav2vec2)
    if precision == "int8":
        state = shrink(state, keep_fp32)
    elif precision != "fp32":
        raise ValueError(f'precision={precision!r}, expected "fp32" or "int8" for a file.')
    torch.save(state, Path(folder) / "wav2vec2.ckpt")


def load_pretrained(source: str | Path, wav2vec2: Wav2Vec2) -> None:
    """Fill `wav2vec2` with trained weights; CheckpointMismatch if the architectures differ.

    Parameters
    ----------
    source : str or Path
        A model folder of either kind, or whatever `load_checkpoint` reads: the folder or hub id of
        a transformers checkpoint, whose head and quantizer are left behind.
    wav2vec2 : Wav2Vec2
        The model to fill.
    """
    path = Path(source) / "wav2vec2.ckpt"
    if path.is_file():
        check_config(wav2vec2, read_config(path.with_name("hyperparams.yaml")), str(source))
        load_state(wav2vec2, path)
    elif (Path(source) / "hyperparams.yaml").is_file():
        raise FileNotFoundError(
            f"{path}: no such file. The model folder inside an output folder is called model/; it "
            "is written at the end of the run."
        )
    else:
        model = load_checkpoint(source)
        body = model if isinstance(model, Wav2Vec2) else model.wav2vec2
        check_config(wav2vec2, body.config, str(source))
        load_strict(wav2vec2, body.state_dict(), source=str(source))


# what changes the answer but no shape: weights of another architecture would load silently
UNSEEN = ("heads", "norm_first", "extractor_norm", "normalize", "kernels", "strides")


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


def read_config(path: Path) -> dict[str, Any]:
    """Arguments of `Wav2Vec2` in a model folder."""
    return yaml.load(path.read_text(encoding="utf-8"), AnyTag)["wav2vec2"]


def check_config(wav2vec2: Wav2Vec2, found: dict[str, Any], source: str) -> None:
    """Compare what the shapes of the weights do not tell."""
    ours, theirs = plain(wav2vec2.config), plain(found)
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


def write(folder: str | Path, text: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "hyperparams.yaml").write_text(text, encoding="utf-8")
