"""fairseq's configuration -> a model of ours that has no values yet.

fairseq wrote its options as one flat `args` before 2021 and as a `cfg` with sections since. Both
become one flat dict here; that of a fine-tuned model nests another one, of its pretraining.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from typing import Any

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, anneal_updates
from w2v_plugin.weights import without_values

logger = logging.getLogger(__name__)

FAIRSEQ_EPS = 1e-5  # of the waveform normalization
LONGEST = 1000  # elements of a written list

EXTRACTOR_NORMS = {"default": "group", "layer_norm": "layer"}  # by fairseq's extractor_mode
# Arguments of Wav2Vec2 -> options. Those of SHAPES must be there: weights do not tell all of them.
SHAPES = {
    "dim": "encoder_embed_dim",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "ffn_dim": "encoder_ffn_embed_dim",
}
DETAILS = {
    "conv_bias": "conv_bias",
    "norm_first": "layer_norm_first",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layer_drop": "encoder_layerdrop",
    "positions_kernel": "conv_pos",
    "positions_groups": "conv_pos_groups",
}
OF_TASK = ("normalize", "sample_rate", "labels")  # about the data
OF_FINE_TUNING = (  # replace those of pretraining
    *("dropout", "attention_dropout", "activation_dropout", "layer_type", "adp_act_fn"),
    *("final_dropout", "apply_mask", "mask_prob", "mask_length"),
    *("mask_channel_prob", "mask_channel_length", "blank_weight", "normalize"),
)
# What we have only one kind of: anything else would load and compute something else.
ONLY: dict[str, tuple[Any, ...]] = {
    "sample_rate": (SAMPLE_RATE,),
    "normalize": (False, True),
    "extractor_mode": tuple(EXTRACTOR_NORMS),
    "layer_type": ("transformer", "trf_adp"),
    "activation_fn": ("gelu",),
    "adp_act_fn": ("relu",),
    "conv_pos_batch_norm": (False,),
    "pos_conv_depth": (1,),
    "crop_seq_to_multiple": (1,),
    "quantize_input": (False,),
    "blank_weight": (0,),
}
ONLY_PRETRAINED: dict[str, tuple[Any, ...]] = {
    "quantize_targets": (True,),
    "quantizer_depth": (1,),
    "target_glu": (False,),
}
# The weights mean the same, but going on with pretraining would not.
OTHER_NEGATIVES = ("cross_sample_negatives", "codebook_negatives", "negatives_from_everywhere")


def flat_options(config: Mapping[str, Any], *, fine_tuned: bool, source: str) -> dict[str, Any]:
    """One dict from an `args`, or from the sections of a `cfg`.

    Parameters
    ----------
    config : mapping
        As `read_pickle` returns it.
    fine_tuned : bool
        Whether the configuration of a pretraining is nested in it (`w2v_args`).
    source : str
        For messages.

    Raises
    ------
    CheckpointMismatch
        The nested configuration is missing, or an option asks for what we do not have.

    Example
    -------
    >>> config = {"model": {"dropout": 0.1}, "task": {"normalize": True, "data": "/corpus"}}
    >>> flat_options(config, fine_tuned=False, source="an example")
    {'dropout': 0.1, 'loss_weights': None, 'normalize': True}
    """
    options, task = _section(config, "model"), _section(config, "task")
    options = {**options, "loss_weights": _section(config, "criterion").get("loss_weights")}
    if fine_tuned:
        pretrained = options.get("w2v_args")
        if not isinstance(pretrained, dict):
            raise CheckpointMismatch(
                f"{source}: fine-tuned, but without the configuration of its pretraining "
                f"(`w2v_args`), which {options.get('w2v_path')!r} had. Take a file in which "
                "fairseq kept both."
            )
        changed = {key: options[key] for key in OF_FINE_TUNING if options.get(key) is not None}
        changed["encoder_layerdrop"] = options.get("layerdrop") or 0.0
        options = {**_section(pretrained, "model"), **changed}
        task = {**_section(pretrained, "task"), **task}
    options |= {key: task[key] for key in OF_TASK if task.get(key) is not None}
    only = ONLY if fine_tuned else ONLY | ONLY_PRETRAINED
    wrong = [
        f"{key}={options[key]!r} (expected {' or '.join(map(repr, values))})"
        for key, values in only.items()
        if options.get(key, values[0]) not in values
    ]
    if wrong:
        raise CheckpointMismatch(
            f"{source}: trained with {', '.join(wrong)}. Choose a wav2vec 2.0 checkpoint of the "
            "published architecture."
        )
    return options


def build_fairseq(
    options: Mapping[str, Any],
    *,
    outputs: int | None = None,
    quantizer: bool = False,
    adapter_dim: int | None = None,
    padding: str = "exact",
    source: str,
) -> Wav2Vec2 | Wav2Vec2Pretraining | Wav2Vec2CTC:
    """A model that waits for its weights, see `without_values`.

    Parameters
    ----------
    options : mapping
        From `flat_options`.
    outputs : int, optional
        Of a CTC head; None for no head.
    quantizer : bool
        Whether there is one, and the projections of pretraining.
    adapter_dim : int, optional
        Width of the language adapters.
    padding : {"exact", "mask", "reference"}
        See `Wav2Vec2`.
    source : str
        For messages.

    Raises
    ------
    CheckpointMismatch
        Options are missing or nonsense.

    Example
    -------
    >>> options = {"encoder_embed_dim": 16, "encoder_layers": 1, "encoder_attention_heads": 2,
    ...            "encoder_ffn_embed_dim": 32, "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)]"}
    >>> build_fairseq(options, source="an example").config["strides"]
    (5, 2)
    """
    try:
        shapes = _shapes(options)
        with without_values():
            wav2vec2 = Wav2Vec2(
                **shapes,
                adapter_dim=adapter_dim,
                normalize=options.get("normalize", False),
                normalize_eps=FAIRSEQ_EPS,
                padding=padding,
            )
            if outputs is not None:
                return _ctc(wav2vec2, outputs, options)
            return _pretraining(wav2vec2, options) if quantizer else wav2vec2
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointMismatch(
            f"{source}: its configuration does not describe a wav2vec 2.0 model "
            f"({type(error).__name__}: {error}). Expected {', '.join(SHAPES.values())} and "
            "conv_feature_layers as fairseq writes them."
        ) from error


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Part of a `cfg`; all of an `args`, which has no parts."""
    if not any(isinstance(config.get(part), dict) for part in ("model", "task")):
        return dict(config)
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _shapes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Wav2Vec2, except for the waveform normalization."""
    shapes = {ours: options[theirs] for ours, theirs in SHAPES.items()}
    channels, kernels, strides = zip(*_written(options["conv_feature_layers"]), strict=True)
    numbers = (*shapes.values(), *channels, *kernels, *strides)
    if wrong := [n for n in numbers if not isinstance(n, int) or n <= 0]:
        raise ValueError(f"got {wrong[0]!r}, expected positive whole numbers")
    shapes |= {ours: options[theirs] for ours, theirs in DETAILS.items() if theirs in options}
    if unset := [x for x in shapes.values() if not isinstance(x, (bool, int, float))]:
        raise ValueError(f"got {unset[0]!r}, expected numbers")
    convolutions = {"channels": channels, "kernels": kernels, "strides": strides}
    norm = EXTRACTOR_NORMS[options.get("extractor_mode", "default")]
    return {**shapes, **convolutions, "extractor_norm": norm}


def _ctc(wav2vec2: Wav2Vec2, outputs: int, options: Mapping[str, Any]) -> Wav2Vec2CTC:
    masks = bool(options.get("apply_mask", False))
    return Wav2Vec2CTC(
        wav2vec2,
        outputs,
        dropout=options.get("final_dropout", 0.0),
        mask_prob=masks * options.get("mask_prob", 0.5),
        mask_length=options.get("mask_length", 10),
        channel_mask_prob=masks * options.get("mask_channel_prob", 0.0),
        channel_mask_length=options.get("mask_channel_length", 10),
    )


def _pretraining(wav2vec2: Wav2Vec2, options: Mapping[str, Any]) -> Wav2Vec2Pretraining:
    if others := [key for key in OTHER_NEGATIVES if options.get(key)]:
        logger.warning("Trained with %s; further training has none.", ", ".join(others))
    dim = options.get("final_dim") or wav2vec2.dim
    start, end, decay = _written(options.get("latent_temp") or (2, 0.5, 0.999995))
    diversity_weight, penalty_weight = _written(options.get("loss_weights") or (0.1, 10))
    quantizer = GumbelQuantizer(
        wav2vec2.projection.linear.in_features,
        groups=options.get("latent_groups", 2),
        codes=options.get("latent_vars", 320),
        dim=options.get("latent_dim") or dim,
        temperature=(start, end),
        anneal_updates=anneal_updates(start, end, decay),
    )
    return Wav2Vec2Pretraining(
        wav2vec2,
        quantizer,
        dim=dim,
        negatives=options.get("num_negatives", 100),
        temperature=options.get("logit_temp", 0.1),
        mask_prob=options.get("mask_prob", 0.65),
        mask_length=options.get("mask_length", 10),
        equal_masks=options.get("require_same_masks", True),
        diversity_weight=diversity_weight,
        penalty_weight=penalty_weight,
        quantizer_dropout=options.get("dropout_features", 0.0),
    )


def _written(text: Any) -> list[Any]:
    """A list of numbers or of lists, from the way it is written or as it is."""
    return _value(ast.parse(str(text).strip(), mode="eval").body)


def _value(node: ast.AST) -> Any:
    """Only these forms, and never `eval`: the text comes from the file."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))):
            part = _value(left)
            if len(part) * times > LONGEST:
                raise ValueError(f"a list of {len(part) * times}, expected at most {LONGEST}")
            return part * times
    raise ValueError(f"{ast.unparse(node)}: expected lists of numbers, joined by + or *")
