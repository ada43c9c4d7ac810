"""Start from any checkpoint: continued pretraining, with the head of pretraining if it has one.

The checkpoint says what the model is, the recipe how it is trained:

    body    sizes, norms, positions and weights are the checkpoint's; so is the normalization of
            waveforms, which the weights are used to
    train   what only training needs (dropout, layer drop, gradient scale) is the recipe's
    head    quantizer and projections are taken over if recipe and checkpoint have the same, all of
            them or none: old codes mean nothing to new projections
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from w2v_plugin.adaptation import merged, rebuilt
from w2v_plugin.conversion import open_model
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.weights import load_strict

logger = logging.getLogger(__name__)

# Arguments of Wav2Vec2 that change its training or its memory, but not what its weights mean.
OF_TRAINING = (
    *("padding", "dropout", "attention_dropout", "activation_dropout", "layer_drop"),
    *("feature_grad_scale", "activation_checkpointing"),
)
DROPOUTS = OF_TRAINING[1:5]


def start_from(model: Wav2Vec2Pretraining, source: str | Path) -> bool:
    """Let a model go on from a checkpoint; what is done with it stands in the log.

    Parameters
    ----------
    model : Wav2Vec2Pretraining
        Not yet trained. Changed in place: it gets the architecture and the weights of `source`,
        and keeps its own settings of training.
    source : str or Path
        A model folder of any kind, or whatever `load_checkpoint` reads: pretrained or fine-tuned
        models of transformers, fairseq and torchaudio. A CTC head is left behind.

    Returns
    -------
    bool
        Whether quantizer and projections were taken over. If not, they are new, and codes should
        start from data (`Wav2Vec2Pretraining.init_codes`).

    Raises
    ------
    FileNotFoundError, CheckpointMismatch
        As `load_checkpoint`.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.folders import save_pretrained
    >>> from w2v_plugin.quantizer import GumbelQuantizer
    >>> def build(**changes):
    ...     shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    ...     quantizer = GumbelQuantizer(8, codes=20, dim=8)
    ...     return Wav2Vec2Pretraining(Wav2Vec2(**shape | changes), quantizer, dim=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(folder, build(layers=2))
    ...     model = build(dropout=0.1)
    ...     taken = start_from(model, folder)
    >>> taken, len(model.wav2vec2.encoder.layers), model.wav2vec2.config["dropout"]
    (True, 2, 0.1)
    """
    found = open_model(source)
    body = found if isinstance(found, Wav2Vec2) else found.wav2vec2
    own = model.wav2vec2.config
    model.wav2vec2 = rebuilt(body, str(source), **{key: own[key] for key in OF_TRAINING})
    _fit_head(model)
    if changed := _differences(own, model.wav2vec2.config):
        logger.warning("%s sets what the recipe says otherwise: %s.", source, ", ".join(changed))
    if not isinstance(found, Wav2Vec2Pretraining):
        different = [f"a {type(found).__name__} has none"]
    else:
        different = _differences(_head(model), _head(found))
    if different:
        logger.warning(
            "%s: body taken over; quantizer and projections start anew (%s).",
            source,
            ", ".join(different),
        )
        return False
    load_strict(model, found.state_dict(), str(source))
    updates = int(model.quantizer.updates)  # 0 where the file has no such counter
    logger.info("%s: quantizer taken over, too; it goes on from update %d.", source, updates)
    return True


def body_of(
    source: str | Path,
    *,
    adapters: str | None = None,
    adapter_dim: int = 16,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    **training: Any,
) -> Wav2Vec2:
    """The body of any checkpoint, to be fine-tuned: its architecture, settings of one's own.

    Parameters
    ----------
    source : str or Path
        As for `start_from`. Of a folder of languages, the body that they share.
    adapters : {None, "mms", "lora"}
        What a language may add to it, see `LanguageAdapter` and `LowRank`. New ones start as
        nothing; those of an MMS model go on.
    adapter_dim : int
        Width of the adapters with "mms"; one that has some keeps their width.
    lora_rank, lora_alpha : int, float
        Of the updates with "lora".
    **training
        What only training needs: padding, dropout, attention_dropout, activation_dropout,
        layer_drop, feature_grad_scale, activation_checkpointing. Dropouts that are not given are
        0: what a checkpoint was pretrained with depends on its format. The rest is its own.

    Raises
    ------
    ValueError
        Another argument of `Wav2Vec2`, or adapters that this architecture cannot have.
    FileNotFoundError, CheckpointMismatch
        As `load_checkpoint`.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.folders import save_pretrained
    >>> tiny = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(folder, tiny)
    ...     body = body_of(folder, adapters="lora", dropout=0.1)
    >>> body.dim, body.config["dropout"], body.config["lora_rank"]
    (16, 0.1, 8)
    """
    if unknown := sorted(training.keys() - set(OF_TRAINING)):
        raise ValueError(
            f"{', '.join(unknown)}: the architecture is that of {source}; only "
            f"{', '.join(OF_TRAINING)} can be chosen."
        )
    if not source:
        raise ValueError(
            f"pretrained={source!r}, expected a model folder or a checkpoint. Training from "
            "scratch is for recipes/finetune_ctc.py."
        )
    training = dict.fromkeys(DROPOUTS, 0.0) | training
    found = open_model(source)
    body = found if isinstance(found, Wav2Vec2) else found.wav2vec2
    if adapters == "mms":
        dim = body.config["adapter_dim"]
        training["adapter_dim"] = adapter_dim if dim is None else dim
    elif adapters == "lora":
        training |= {"lora_rank": lora_rank, "lora_alpha": lora_alpha}
    elif adapters is not None:
        raise ValueError(f"adapters={adapters!r}, expected mms, lora or null (train all weights).")
    _check_adapters(body, adapters, str(source))
    return rebuilt(merged(body), str(source), **training)


def _check_adapters(body: Wav2Vec2, adapters: str | None, source: str) -> None:
    """ValueError with what to do instead, for an architecture that cannot have them."""
    if adapters is not None and body.config["conformer"] is not None:
        raise ValueError(f"{source}: a conformer, which has no adapters. Use adapters: null.")
    if adapters == "mms" and not body.config["norm_first"]:
        raise ValueError(
            f"{source}: a post-norm model, as BASE is; MMS has adapters for pre-norm models only. "
            "Use adapters: lora."
        )
    if adapters == "lora" and body.config["adapter_dim"] is not None:
        raise ValueError(f"{source} has language adapters already. Use adapters: mms.")


def _fit_head(model: Wav2Vec2Pretraining) -> None:
    """New parts where the body has another width than the one that the head was built for."""
    quantizer, body = model.quantizer, model.wav2vec2
    channels = body.projection.linear.in_features
    if quantizer.config["channels"] != channels:
        model.quantizer = type(quantizer)(**quantizer.config | {"channels": channels})
    if model.project_context.in_features != body.dim:
        model.project_context = nn.Linear(body.dim, model.project_context.out_features)


def _head(model: Wav2Vec2Pretraining) -> dict[str, Any]:
    """What two models must have in common to exchange codes and projections."""
    quantizer = model.quantizer
    return {
        "quantizer": type(quantizer).__name__,
        "groups": quantizer.groups,
        "codes": quantizer.codes,
        "quantizer's dim": quantizer.dim,
        "codebook": quantizer.config.get("codebook"),  # how a NearestQuantizer moves it
        "projections' dim": model.project_targets.out_features,
    }


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where `theirs` is not `ours`, as "dim 768 instead of 128"."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, (list, tuple)) else value

    pairs = {key: (plain(theirs[key]), plain(value)) for key, value in ours.items()}
    return [f"{key} {new} instead of {old}" for key, (new, old) in pairs.items() if new != old]
