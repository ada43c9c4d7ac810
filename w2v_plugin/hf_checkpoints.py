"""transformers' checkpoints -> ours: a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from w2v_plugin.attention import PROJECTIONS
from w2v_plugin.conformer import BASE, KINDS
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.shapes import shapes_of
from w2v_plugin.text import CharVocabulary, read_json
from w2v_plugin.weights import Names, load_strict, read_weights, translate, without_values

logger = logging.getLogger(__name__)

AnyModel = Wav2Vec2 | Wav2Vec2Pretraining | Wav2Vec2CTC

# Our names -> theirs.
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
    "encoder.layers.{}.adapter": "encoder.layers.{}.adapter_layer",
    **{  # transformers leaves these to PEFT, whose names they are
        f"encoder.layers.{{}}.attention.lora.{ours}.{part}": (
            f"encoder.layers.{{}}.attention.{ours}_proj.lora_{letter}.weight"
        )
        for ours in PROJECTIONS
        for part, letter in (("down", "A"), ("up", "B"))
    },
    "encoder.layers.{}.ffn_1.norm": "encoder.layers.{}.ffn1_layer_norm",
    "encoder.layers.{}.ffn_1.linear_1": "encoder.layers.{}.ffn1.intermediate_dense",
    "encoder.layers.{}.ffn_1.linear_2": "encoder.layers.{}.ffn1.output_dense",
    "encoder.layers.{}.self_attention_norm": "encoder.layers.{}.self_attn_layer_norm",
    "encoder.layers.{}.self_attention.q": "encoder.layers.{}.self_attn.linear_q",
    "encoder.layers.{}.self_attention.k": "encoder.layers.{}.self_attn.linear_k",
    "encoder.layers.{}.self_attention.v": "encoder.layers.{}.self_attn.linear_v",
    "encoder.layers.{}.self_attention.out": "encoder.layers.{}.self_attn.linear_out",
    "encoder.layers.{}.self_attention.position": "encoder.layers.{}.self_attn.linear_pos",
    "encoder.layers.{}.self_attention.bias_u": "encoder.layers.{}.self_attn.pos_bias_u",
    "encoder.layers.{}.self_attention.bias_w": "encoder.layers.{}.self_attn.pos_bias_v",
    "encoder.layers.{}.conv.norm": "encoder.layers.{}.conv_module.layer_norm",
    "encoder.layers.{}.conv.pointwise_1": "encoder.layers.{}.conv_module.pointwise_conv1",
    "encoder.layers.{}.conv.depthwise": "encoder.layers.{}.conv_module.depthwise_conv",
    "encoder.layers.{}.conv.batch_norm": "encoder.layers.{}.conv_module.batch_norm",
    "encoder.layers.{}.conv.pointwise_2": "encoder.layers.{}.conv_module.pointwise_conv2",
    "encoder.layers.{}.ffn_2.norm": "encoder.layers.{}.ffn2_layer_norm",
    "encoder.layers.{}.ffn_2.linear_1": "encoder.layers.{}.ffn2.intermediate_dense",
    "encoder.layers.{}.ffn_2.linear_2": "encoder.layers.{}.ffn2.output_dense",
    "encoder.layers.{}.norm": "encoder.layers.{}.final_layer_norm",
    "encoder.conformer.frequencies.values": "encoder.embed_positions.inv_freq",
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
    "adapter_dim": "adapter_attn_dim",
}
HF_CONFORMER_CONFIG = HF_CONFIG | {
    "conformer": "position_embeddings_type",
    "conformer_kernel": "conv_depthwise_kernel_size",
}
# What we have only one kind of; anything else in a config.json is refused.
HF_ONLY = {
    "model_type": "wav2vec2",
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
}
CONFORMER = "wav2vec2-conformer"
HF_CONFORMER_ONLY = HF_ONLY | {
    "model_type": CONFORMER,
    "hidden_act": "swish",
    "rotary_embedding_base": BASE,
}
HF_EPS = 1e-7  # of the waveform normalization
# What precedes the names of a model with a head.
BODY, CONFORMER_BODY = "wav2vec2.", "wav2vec2_conformer."
UNUSED = "kept for export; a conformer has them and does not use them"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def hf_name(name: str, body: str = BODY) -> str | None:
    """Name of our parameter in transformers; None if it has none there.

    `body` is what they call `wav2vec2.` in a model with a head.

    Example
    -------
    >>> hf_name("wav2vec2.encoder.layers.3.ffn_in.bias")
    'wav2vec2.encoder.layers.3.feed_forward.intermediate_dense.bias'
    """
    prefix = body if name.startswith(BODY) else ""
    theirs = translate(name.removeprefix(BODY), HF_NAMES)
    return None if theirs is None else prefix + theirs


def load_hf(source: str | Path, *, padding: str = "exact") -> AnyModel:
    """Load a folder or hub repository in transformers' format; see `load_checkpoint`.

    Example
    -------
    >>> import json, tempfile
    >>> from safetensors.torch import save_file
    >>> tiny = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> config = {theirs: tiny.config[ours] for ours, theirs in HF_CONFIG.items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
    ...     state = {hf_name(key): tensor for key, tensor in tiny.state_dict().items()}
    ...     save_file(state, Path(folder, "model.safetensors"))
    ...     load_hf(folder).dim
    16
    """
    config, preprocessor = _settings(source)
    state = _read_state(source)
    model = build_hf(
        config, state, normalize=preprocessor.get("do_normalize", True), padding=padding
    )
    names = _spelling(model, state)
    optional = [names(stem + "mask_embedding") for stem in ("", BODY)]
    try:
        load_strict(
            model,
            state,
            str(source),
            translate=names,
            optional=[name for name in optional if name],
            format="transformers",
            take_over=True,
        )
    except CheckpointMismatch as error:
        if contradictions := _contradictions(model, state, names):
            raise CheckpointMismatch(
                f"{source}: config.json contradicts the weights: {'; '.join(contradictions)}. "
                f"Put the two that belong together into one folder. {error}"
            ) from error
        raise
    if config.get("model_type") == CONFORMER:
        unused = {key: UNUSED for key in state if "encoder.pos_conv_embed." in key}
        vars(model)["load_report"].ignored.update(unused)
    return model.eval()


def hf_vocabulary(source: str | Path, language: str | None = None) -> CharVocabulary:
    """Vocabulary of a folder or hub repository; see `load_vocabulary`."""
    for name in ("config", "tokenizer_config", "added_tokens"):
        find_file(source, f"{name}.json")  # so that they lie beside vocab.json
    path = find_file(source, "vocab.json")
    if path is None:
        raise FileNotFoundError(
            f"{source}: no vocab.json, which says what the outputs mean. Put it beside config.json."
        )
    return CharVocabulary.from_vocab_json(path, language)


def find_file(source: str | Path, name: str) -> Path | None:
    """A file in a folder, or in a repository on the hub or its cache; None if there is none."""
    if Path(source).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        return path if (path := Path(source) / name).is_file() else None
    from speechbrain.utils.fetching import fetch  # here: it takes seconds to import

    try:
        return Path(fetch(name, str(source)))
    except (OSError, ValueError, EntryNotFoundError) as error:
        logger.info("%s: %s not fetched (%s).", source, name, error)
        return None


def _settings(source: str | Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Contents of config.json and of the feature extractor's file, checked."""
    if (path := find_file(source, "config.json")) is None:
        raise _not_found(source, "config.json")
    config, preprocessor = read_json(path), {}
    if path := find_file(source, "preprocessor_config.json"):
        preprocessor = dict(read_json(path))
    elif path := find_file(source, "processor_config.json"):  # transformers 5 saves it in here
        preprocessor = read_json(path).get("feature_extractor", {})
    _check_config(config, preprocessor.get("sampling_rate", SAMPLE_RATE), str(source))
    return config, preprocessor


def _read_state(source: str | Path) -> dict[str, Tensor]:
    """All weights: one file, or several with an index."""
    for name in WEIGHTS:
        if path := find_file(source, name):
            return read_weights(path)
        if path := find_file(source, f"{name}.index.json"):
            state: dict[str, Tensor] = {}
            for shard in sorted(set(read_json(path).get("weight_map", {}).values())):
                if (part := find_file(source, Path(shard).name)) is None:
                    raise FileNotFoundError(f"{source}: no {shard}, which {path.name} names.")
                state |= read_weights(part)
            return state
    raise _not_found(source, " or ".join(WEIGHTS))


def _not_found(source: str | Path, absent: str) -> FileNotFoundError:
    problem = f"no such folder or no {absent} in it"
    if (Path(source) / "hyperparams.yaml").is_file():
        problem = "a folder of ours: open it with `from_hparams(source=...)`"
    elif not Path(source).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        problem = f"no such folder, and could not get its {absent} from the Hugging Face hub"
    return FileNotFoundError(
        f"{source}: {problem}. Expected a folder with config.json and {' or '.join(WEIGHTS)}, "
        "or a model id on the hub like facebook/wav2vec2-base."
    )


def _check_config(config: Mapping[str, Any], rate: int, source: str) -> None:
    """Refuse architectures that would load but compute something else."""
    conformer = config.get("model_type") == CONFORMER
    config = {"hidden_act": "gelu", **config}  # their default, for conformers, too
    wrong = [
        f"{key}={config[key]!r} (expected {value!r})"
        for key, value in (HF_CONFORMER_ONLY if conformer else HF_ONLY).items()
        if config.get(key, value) != value
    ]
    if conformer and (kind := config.get("position_embeddings_type", KINDS[0])) not in KINDS:
        wrong.append(f"position_embeddings_type={kind!r} (expected one of {KINDS})")
    if rate != SAMPLE_RATE:
        wrong.append(f"sampling_rate={rate} (expected {SAMPLE_RATE})")
    if wrong:
        raise CheckpointMismatch(
            f"{source}: config.json asks for {', '.join(wrong)}. Choose a wav2vec 2.0 checkpoint "
            "without such extensions, or load this one with transformers."
        )


def build_hf(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    normalize: bool = True,
    padding: str = "exact",
) -> AnyModel:
    """A model without values as config.json and the heads in `state` ask for.

    Example
    -------
    >>> model = build_hf({"hidden_size": 128, "num_attention_heads": 2}, {})
    >>> model.projection.linear.weight.shape
    torch.Size([128, 512])
    """
    conformer = config.get("model_type") == CONFORMER
    names = HF_CONFORMER_CONFIG if conformer else HF_CONFIG
    shapes = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    if conformer:
        shapes = {"conformer": KINDS[0], **shapes, "norm_first": True}
    with without_values():
        wav2vec2 = Wav2Vec2(**shapes, normalize=normalize, normalize_eps=HF_EPS, padding=padding)
        if any(key.startswith(("quantizer.", "project_")) for key in state):
            return _pretraining(wav2vec2, config)
        ctc = {"Wav2Vec2ForCTC", "Wav2Vec2ConformerForCTC"}.intersection(
            config.get("architectures") or ()
        )
        if ctc or any(key.startswith("lm_head.") for key in state):
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


def _pretraining(wav2vec2: Wav2Vec2, config: Mapping[str, Any]) -> Wav2Vec2Pretraining:
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


def _spelling(model: AnyModel, state: Mapping[str, Tensor]) -> Callable[[str], str | None]:
    """`hf_name`, with or without the body's prefix as the file has it."""
    bodies = (BODY, CONFORMER_BODY)
    prefix = next((body for body in bodies if any(key.startswith(body) for key in state)), "")

    def spelled(name: str) -> str | None:
        theirs = hf_name(name)
        if theirs is None or not (name.startswith(BODY) or isinstance(model, Wav2Vec2)):
            return theirs
        return prefix + theirs.removeprefix(BODY)

    return spelled


def _contradictions(
    model: AnyModel, state: Mapping[str, Tensor], names: Callable[[str], str | None]
) -> list[str]:
    """Where config.json (which `model` was built from) and the weights say different things."""
    stem = "" if isinstance(model, Wav2Vec2) else BODY
    config = (model if isinstance(model, Wav2Vec2) else model.wav2vec2).config
    ffn = ".ffn_in." if config["conformer"] is None else ".ffn_1.linear_1."

    def get(name: str) -> Tensor | None:
        return state.get(names(stem + name.replace(".ffn_in.", ffn)) or "")

    found = shapes_of(get)
    said = {key: list(v) if isinstance(v, (list, tuple)) else v for key, v in config.items()}
    pairs = [(HF_CONFIG[key], said[key], value) for key, value in found.items()]
    if isinstance(model, Wav2Vec2CTC) and "lm_head.weight" in state:
        pairs.append(("vocab_size", model.head.out_features, len(state["lm_head.weight"])))
    return [
        f"{key}={told!r}, the weights have {seen!r}" for key, told, seen in pairs if told != seen
    ]
