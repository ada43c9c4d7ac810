"""Continued pretraining: start from any checkpoint, with the head of pretraining if it has one.

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

from w2v_plugin.conversion import open_model
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.weights import load_strict, without_values

logger = logging.getLogger(__name__)

# Arguments of Wav2Vec2 that change its training or its memory, but not what its weights mean.
OF_TRAINING = (
    *("padding", "dropout", "attention_dropout", "activation_dropout", "layer_drop"),
    *("feature_grad_scale", "activation_checkpointing"),
)


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
    model.wav2vec2 = _rebuilt(body, {key: own[key] for key in OF_TRAINING}, str(source))
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


def _rebuilt(body: Wav2Vec2, settings: dict[str, Any], source: str) -> Wav2Vec2:
    """The same model with other settings."""
    with without_values():
        new = Wav2Vec2(**body.config | settings)
    load_strict(new, body.state_dict(), source, take_over=True)
    return new


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
