"""Published weights -> our models and back: transformers' folders and hub repositories.

A source differs from us in names only, so one table per source says how *our* parameters are
called there. Import and export both read it in that direction: to load, we ask the file for the
translation of every name we have, and whatever is then missing, left over or of another shape is
an error in the file's own words. Nothing is ever half loaded.

Surprising: the weight norm of the positional convolution has three spellings in the wild
(`weight_g`/`weight_v`, `parametrizations.weight.original0`/`1`, and a plain folded `weight`). A
loader that knows only one leaves positions random, and the model is merely bad.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from shutil import copymode
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.weights import load_strict, read_weights

logger = logging.getLogger(__name__)

AnyModel = Wav2Vec2 | Wav2Vec2Pretraining | Wav2Vec2CTC
Names = Mapping[str, str | None]

# Our names -> theirs; {} is the number of a layer, None has no counterpart.
HF_NAMES: Names = {
    "extractor.layers.{}.conv": "feature_extractor.conv_layers.{}.conv",
    "extractor.layers.{}.norm": "feature_extractor.conv_layers.{}.layer_norm",
    "projection.norm": "feature_projection.layer_norm",
    "projection.linear": "feature_projection.projection",
    "mask_embedding": "masked_spec_embed",
    "encoder.positions.conv": "encoder.pos_conv_embed.conv",
    "encoder.norm": "encoder.layer_norm",
    "encoder.layers.{}.attention.q": "encoder.layers.{}.attention.q_proj",
    "encoder.layers.{}.attention.k": "encoder.layers.{}.attention.k_proj",
    "encoder.layers.{}.attention.v": "encoder.layers.{}.attention.v_proj",
    "encoder.layers.{}.attention.out": "encoder.layers.{}.attention.out_proj",
    "encoder.layers.{}.attention_norm": "encoder.layers.{}.layer_norm",
    "encoder.layers.{}.ffn_in": "encoder.layers.{}.feed_forward.intermediate_dense",
    "encoder.layers.{}.ffn_out": "encoder.layers.{}.feed_forward.output_dense",
    "encoder.layers.{}.ffn_norm": "encoder.layers.{}.final_layer_norm",
    "quantizer.codebook": "quantizer.codevectors",
    "quantizer.logits": "quantizer.weight_proj",
    "quantizer.updates": None,
    "project_targets": "project_q",
    "project_context": "project_hid",
    "head": "lm_head",
}

# Arguments of Wav2Vec2 -> keys of transformers' config.json.
HF_CONFIG = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "channels": "conv_dim",
    "kernels": "conv_kernel",
    "strides": "conv_stride",
    "extractor_norm": "feat_extract_norm",
    "conv_bias": "conv_bias",
    "norm_first": "do_stable_layer_norm",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layer_drop": "layerdrop",
    "positions_kernel": "num_conv_pos_embeddings",
    "positions_groups": "num_conv_pos_embedding_groups",
}
# What we have only one kind of; anything else in a config.json is refused.
HF_ONLY = {
    "model_type": "wav2vec2",
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
    "adapter_attn_dim": None,
}
HF_EPS = 1e-7  # of the waveform normalization
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def hf_name(name: str) -> str | None:
    """Name of our parameter in transformers; None if it has none there.

    Example
    -------
    >>> hf_name("wav2vec2.encoder.layers.3.ffn_in.bias")
    'wav2vec2.encoder.layers.3.feed_forward.intermediate_dense.bias'
    """
    prefix = "wav2vec2." if name.startswith("wav2vec2.") else ""
    theirs = translate(name.removeprefix(prefix), HF_NAMES)
    return None if theirs is None else prefix + theirs


def translate(name: str, names: Names) -> str | None:
    numbers = re.findall(r"\.(\d+)\.", name)
    template = re.sub(r"\.\d+\.", ".{}.", name)
    for ours, theirs in names.items():
        if template == ours or template.startswith(ours + "."):
            return None if theirs is None else theirs.format(*numbers) + template[len(ours) :]
    raise CheckpointMismatch(f"{name} has no name in that format; it holds published shapes only.")


def load_checkpoint(source: str | Path, *, padding: str = "exact") -> AnyModel:
    """Load a published checkpoint.

    Parameters
    ----------
    source : str or Path
        A folder in transformers' format (config.json with model.safetensors or
        pytorch_model.bin), or the id of one on the Hugging Face hub, as "facebook/wav2vec2-base".
    padding : {"exact", "mask", "reference"}
        See `Wav2Vec2`; transformers itself does what "reference" does.

    Returns
    -------
    Wav2Vec2, Wav2Vec2Pretraining or Wav2Vec2CTC
        By the heads found among the weights; in evaluation mode.

    Raises
    ------
    FileNotFoundError
        There is no such folder and no such model on the hub, or a file is missing.
    CheckpointMismatch
        Another architecture, or weights that do not fit; every key is named.

    Example
    -------
    >>> import tempfile
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_hf(model, folder)
    ...     type(load_checkpoint(folder)).__name__
    'Wav2Vec2'
    """
    config_path, weights_path, preprocessor_path = _find_files(source)
    config = json.loads(config_path.read_text(encoding="utf-8"))
    preprocessor = {}
    if preprocessor_path is not None:
        preprocessor = json.loads(preprocessor_path.read_text(encoding="utf-8"))
    _check_config(config, preprocessor.get("sampling_rate", SAMPLE_RATE), str(source))
    state = read_weights(weights_path)
    normalize = preprocessor.get("do_normalize", True)
    model = _build(config, state, normalize=normalize, padding=padding)
    load_strict(model, state, str(source), translate=hf_name, optional=("masked_spec_embed",))
    return model.eval()


def export_hf(model: AnyModel, folder: str | Path) -> None:
    """Write a folder that transformers' `from_pretrained` loads to the same answers.

    Wav2Vec2 becomes Wav2Vec2Model, Wav2Vec2CTC Wav2Vec2ForCTC, Wav2Vec2Pretraining
    Wav2Vec2ForPreTraining. The folder appears complete or not at all.

    Parameters
    ----------
    model : Wav2Vec2, Wav2Vec2Pretraining or Wav2Vec2CTC
        The quantizer of a Wav2Vec2Pretraining must be a GumbelQuantizer.
    folder : str or Path
        Must not exist yet, or be empty.

    Example
    -------
    >>> import tempfile
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_hf(model, folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists. Choose another folder or remove it first.")
    config, preprocessor = _hf_config(model)
    state = {}
    for name, tensor in model.state_dict().items():
        if (theirs := hf_name(name)) is not None:
            state[theirs] = tensor.detach().cpu().contiguous()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        new = Path(beside) / folder.name  # a rename is atomic within one file system
        new.mkdir()
        save_file(state, new / WEIGHTS[0], metadata={"format": "pt"})
        for name, content in (("config", config), ("preprocessor_config", preprocessor)):
            (new / f"{name}.json").write_text(
                json.dumps(content, indent=2) + "\n", encoding="utf-8"
            )
        copymode(new / "config.json", new / WEIGHTS[0])  # safetensors writes for its owner only
        new.rename(folder)


def _find_files(source: str | Path) -> tuple[Path, Path, Path | None]:
    """config.json, weights and (if there is one) preprocessor_config.json."""
    folder = Path(source)
    on_hub = not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None

    def find(name: str) -> Path | None:
        if on_hub:
            return _fetch(name, str(source))
        return folder / name if (folder / name).is_file() else None

    config = find("config.json")
    weights = next((path for name in WEIGHTS if config and (path := find(name))), None)
    if config is None or weights is None:
        absent = "config.json" if config is None else " or ".join(WEIGHTS)
        problem = f"no such folder or no {absent} in it"
        if on_hub:
            problem = f"no such folder, and could not get its {absent} from the Hugging Face hub"
        elif (folder / "hyperparams.yaml").is_file():
            problem = "a folder of ours: open it with `from_hparams(source=...)`"
        raise FileNotFoundError(
            f"{source}: {problem}. Expected a folder with config.json and {' or '.join(WEIGHTS)}, "
            "or a model id on the hub like facebook/wav2vec2-base."
        )
    return config, weights, find("preprocessor_config.json")


def _fetch(name: str, source: str) -> Path | None:
    """One file from the hub or its cache; None if it is not there or cannot be reached."""
    from speechbrain.utils.fetching import fetch  # here: it takes seconds to import

    try:
        return Path(fetch(name, source))
    except (OSError, ValueError, EntryNotFoundError) as error:
        logger.info("%s: %s not fetched (%s).", source, name, error)
        return None


def _check_config(config: Mapping[str, Any], rate: int, source: str) -> None:
    """Refuse architectures that would load but compute something else."""
    wrong = [
        f"{key}={config[key]!r} (expected {value!r})"
        for key, value in HF_ONLY.items()
        if config.get(key, value) != value
    ]
    if rate != SAMPLE_RATE:
        wrong.append(f"sampling_rate={rate} (expected {SAMPLE_RATE})")
    if wrong:
        raise CheckpointMismatch(
            f"{source}: config.json asks for {', '.join(wrong)}. Choose a wav2vec 2.0 checkpoint "
            "without adapters, or load this one with transformers."
        )


def _build(
    config: Mapping[str, Any], state: Mapping[str, Tensor], normalize: bool, padding: str
) -> AnyModel:
    """An untrained model of the shape that config.json and the heads in `state` ask for."""
    shapes = {ours: config[theirs] for ours, theirs in HF_CONFIG.items() if theirs in config}
    wav2vec2 = Wav2Vec2(**shapes, normalize=normalize, normalize_eps=HF_EPS, padding=padding)
    if any(key.startswith(("quantizer.", "project_")) for key in state):
        quantizer = GumbelQuantizer(
            wav2vec2.projection.linear.in_features,
            groups=config.get("num_codevector_groups", 2),
            codes=config.get("num_codevectors_per_group", 320),
            dim=config.get("codevector_dim", 256),
        )
        # mask_prob stays ours: config.json holds that of fine-tuning (0.05), as a rule
        return Wav2Vec2Pretraining(
            wav2vec2,
            quantizer,
            dim=config.get("proj_codevector_dim", 256),
            negatives=config.get("num_negatives", 100),
            temperature=config.get("contrastive_logits_temperature", 0.1),
            diversity_weight=config.get("diversity_loss_weight", 0.1),
            quantizer_dropout=config.get("feat_quantizer_dropout", 0.0),
        )
    if any(key.startswith(("lm_head.", "wav2vec2.")) for key in state):
        masks = config.get("apply_spec_augment", True)
        return Wav2Vec2CTC(
            wav2vec2,
            config.get("vocab_size", 32),
            dropout=config.get("final_dropout", 0.0),
            mask_prob=masks * config.get("mask_time_prob", 0.0),
            mask_length=config.get("mask_time_length", 10),
            channel_mask_prob=masks * config.get("mask_feature_prob", 0.0),
            channel_mask_length=config.get("mask_feature_length", 10),
        )
    return wav2vec2


def _hf_config(model: AnyModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json of `model`."""
    wav2vec2 = model if isinstance(model, Wav2Vec2) else model.wav2vec2
    ours = {
        k: v if isinstance(v, (str, bool, int, float)) else list(v)
        for k, v in wav2vec2.config.items()
    }
    config: dict[str, Any] = HF_ONLY | {theirs: ours[name] for name, theirs in HF_CONFIG.items()}
    config["feat_proj_dropout"] = ours["dropout"]
    if isinstance(model, Wav2Vec2Pretraining):
        config |= _hf_pretraining(model)
    elif isinstance(model, Wav2Vec2CTC):
        config |= _hf_ctc(model)
    else:
        config |= {"architectures": ["Wav2Vec2Model"], **_hf_masks(0.0, 10)}
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": wav2vec2.normalize,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": wav2vec2.extractor.norm == "layer",
        "sampling_rate": SAMPLE_RATE,
    }
    if wav2vec2.normalize and wav2vec2.normalize_eps != HF_EPS:
        logger.warning(
            "normalize_eps=%g becomes %g: transformers knows no other. Answers to very quiet "
            "audio change.",
            wav2vec2.normalize_eps,
            HF_EPS,
        )
    return config, preprocessor


def _hf_masks(prob: float, length: int, channel_prob: float = 0.0) -> dict[str, Any]:
    """Without a mask probability transformers has no mask embedding, and would drop ours."""
    masks = prob > 0 or channel_prob > 0
    return {
        "apply_spec_augment": masks,
        "mask_time_prob": prob if masks else 0.05,
        "mask_time_length": length,
        "mask_feature_prob": channel_prob,
    }


def _hf_pretraining(model: Wav2Vec2Pretraining) -> dict[str, Any]:
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
        **_hf_masks(model.mask_prob, model.mask_length),
    }


def _hf_ctc(model: Wav2Vec2CTC) -> dict[str, Any]:
    return {
        "architectures": ["Wav2Vec2ForCTC"],
        "vocab_size": model.head.out_features,
        "final_dropout": model.dropout.p,
        **_hf_masks(model.mask_prob, model.mask_length, model.channel_mask_prob),
        "mask_feature_length": model.channel_mask_length,
    }
