"""Ours -> transformers' format: a folder that its `from_pretrained` loads to the same answers."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copymode
from typing import Any

from safetensors.torch import save_file

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.hf_checkpoints import (
    BODY,
    CONFORMER,
    CONFORMER_BODY,
    HF_CONFIG,
    HF_CONFORMER_CONFIG,
    HF_CONFORMER_ONLY,
    HF_EPS,
    HF_ONLY,
    WEIGHTS,
    AnyModel,
    hf_name,
)
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.text import BLANK, WORD_BOUNDARY, CharVocabulary

logger = logging.getLogger(__name__)


def export_hf(
    model: AnyModel, folder: str | Path, vocabulary: CharVocabulary | None = None
) -> None:
    """Write a folder that transformers' `from_pretrained` loads to the same answers.

    Wav2Vec2 becomes Wav2Vec2Model, Wav2Vec2CTC Wav2Vec2ForCTC, Wav2Vec2Pretraining
    Wav2Vec2ForPreTraining. The folder appears complete or not at all.

    Parameters
    ----------
    model : Wav2Vec2, Wav2Vec2Pretraining or Wav2Vec2CTC
        The quantizer of a Wav2Vec2Pretraining must be a GumbelQuantizer.
    folder : str or Path
        Must not exist yet, or be empty.
    vocabulary : CharVocabulary, optional
        Of a Wav2Vec2CTC: with it, `Wav2Vec2Processor.from_pretrained` loads the folder, too.

    Example
    -------
    >>> import tempfile
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_hf(model, folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    files = {"config": _config(model), "preprocessor_config": _preprocessor(model)}
    if vocabulary is not None:
        files |= tokenizer_files(vocabulary)
        blank = files["vocab"][files["tokenizer_config"]["pad_token"]]
        files["config"]["pad_token_id"] = blank
    body = CONFORMER_BODY if files["config"]["model_type"] == CONFORMER else BODY
    state = {
        theirs: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if (theirs := hf_name(name, body)) is not None
    }
    with new_folder(folder) as new:
        save_file(state, new / WEIGHTS[0], metadata={"format": "pt"})
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (new / f"{name}.json").write_text(text, encoding="utf-8")
        copymode(new / "config.json", new / WEIGHTS[0])  # safetensors writes for its owner only


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which appears under its name when all went well, or not at all.

    Raises
    ------
    FileExistsError
        There is something of that name already.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with new_folder(Path(parent, "model")) as new:
    ...         _ = (new / "notes.txt").write_text("complete")
    ...     print([path.name for path in Path(parent, "model").iterdir()])
    ['notes.txt']
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists. Choose another folder or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        new = Path(beside) / folder.name  # a rename is atomic within one file system
        new.mkdir()
        yield new
        new.rename(folder)


def _config(model: AnyModel) -> dict[str, Any]:
    """config.json of `model`."""
    wav2vec2 = model if isinstance(model, Wav2Vec2) else model.wav2vec2
    if wav2vec2.config["lora_rank"] is not None:
        raise CheckpointMismatch("transformers has no LoRA in a model. Export `merged(body)`.")
    for name, value in (("causal_positions", True), ("extractor_norm", "none")):
        if wav2vec2.config[name] == value:
            raise CheckpointMismatch(
                f"{name}={value!r}: transformers has no such model. Its weights can be used from "
                "here only: w2v convert --to ours."
            )
    ours = {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in wav2vec2.config.items()}
    conformer = ours["conformer"] is not None
    names = HF_CONFORMER_CONFIG if conformer else HF_CONFIG
    config: dict[str, Any] = {theirs: ours[name] for name, theirs in names.items()}
    config |= HF_CONFORMER_ONLY if conformer else HF_ONLY
    config["feat_proj_dropout"] = ours["dropout"]
    if isinstance(model, Wav2Vec2Pretraining):
        config |= _pretraining(model)
    elif isinstance(model, Wav2Vec2CTC):
        config |= _ctc(model)
    else:
        config |= {"architectures": ["Wav2Vec2Model"], **_masks(0.0, 10)}
    if conformer:
        [kind] = config["architectures"]
        config["architectures"] = [kind.replace("Wav2Vec2", "Wav2Vec2Conformer")]
        config["conformer_conv_dropout"] = ours["dropout"]
    return config


def _preprocessor(model: AnyModel) -> dict[str, Any]:
    """preprocessor_config.json of `model`."""
    wav2vec2 = model if isinstance(model, Wav2Vec2) else model.wav2vec2
    if wav2vec2.normalize and wav2vec2.normalize_eps != HF_EPS:
        logger.warning(
            "normalize_eps=%g becomes %g: transformers knows no other. Answers to very quiet "
            "audio change.",
            wav2vec2.normalize_eps,
            HF_EPS,
        )
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": wav2vec2.normalize,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": wav2vec2.extractor.norm == "layer",
        "sampling_rate": SAMPLE_RATE,
    }


def tokenizer_files(vocabulary: CharVocabulary) -> dict[str, Any]:
    """Contents of vocab.json and tokenizer_config.json."""
    symbols = dict(sorted(vocabulary.lab2ind.items(), key=lambda item: item[1]))
    blank = vocabulary.blank_label
    if blank == "<s>" and BLANK in symbols:  # fairseq's names of the same two rows
        symbols["<s>"], symbols[BLANK], blank = symbols[BLANK], symbols["<s>"], BLANK
    known = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "[UNK]" if "[UNK]" in symbols else "<unk>",
    }
    settings = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": "Wav2Vec2Processor",
        "pad_token": blank,
        # a symbol that is not in the vocabulary would be added to it, beyond the head
        **{key: token if token in symbols else None for key, token in known.items()},
        "word_delimiter_token": WORD_BOUNDARY,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
    }
    return {"vocab": symbols, "tokenizer_config": settings}


def _masks(prob: float, length: int, channel_prob: float = 0.0) -> dict[str, Any]:
    """Without a mask probability transformers has no mask embedding, and would drop ours."""
    masks = prob > 0 or channel_prob > 0
    return {
        "apply_spec_augment": masks,
        "mask_time_prob": prob if masks else 0.05,
        "mask_time_length": length,
        "mask_feature_prob": channel_prob,
    }


def _pretraining(model: Wav2Vec2Pretraining) -> dict[str, Any]:
    quantizer = model.quantizer
    if not isinstance(quantizer, GumbelQuantizer):
        raise CheckpointMismatch(
            f"A {type(quantizer).__name__} does not exist in transformers. Export `model.wav2vec2`."
        )
    return {
        "architectures": ["Wav2Vec2ForPreTraining"],
        "num_codevector_groups": quantizer.groups,
        "num_codevectors_per_group": quantizer.codes,
        "codevector_dim": quantizer.dim,
        "proj_codevector_dim": model.project_targets.out_features,
        "num_negatives": model.negatives,
        "contrastive_logits_temperature": model.temperature,
        "diversity_loss_weight": model.diversity_weight,
        "feat_quantizer_dropout": model.quantizer_dropout.p,
        **_masks(model.mask_prob, model.mask_length),
    }


def _ctc(model: Wav2Vec2CTC) -> dict[str, Any]:
    return {
        "architectures": ["Wav2Vec2ForCTC"],
        "vocab_size": model.head.out_features,
        "final_dropout": model.dropout.p,
        **_masks(model.mask_prob, model.mask_length, model.channel_mask_prob),
        "mask_feature_length": model.channel_mask_length,
    }
