"""torchaudio's wav2vec 2.0 -> ours. It nests the same names differently, has one head, no masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from w2v_plugin.checkpoints import HF_NAMES, Names, translate
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.frames import KERNELS, STRIDES
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.weights import load_strict

TORCHAUDIO_EPS = 1e-5  # of the waveform normalization in torchaudio's bundles

# Our names -> theirs, derived from transformers'.
TORCHAUDIO_NAMES: Names = {
    ours: re.sub("^encoder", "encoder.transformer", theirs or "").replace(
        "feature_projection", "encoder.feature_projection"
    )
    for ours, theirs in HF_NAMES.items()
    if ours.startswith(("extractor", "projection", "encoder"))
} | {"head": "aux", "mask_embedding": None}


def torchaudio_name(name: str) -> str | None:
    """Name of our parameter in torchaudio; None if it has none there.

    Example
    -------
    >>> torchaudio_name("wav2vec2.encoder.norm.bias")
    'encoder.transformer.layer_norm.bias'
    """
    return translate(name.removeprefix("wav2vec2."), TORCHAUDIO_NAMES)


def load_torchaudio(
    model: nn.Module | tuple[Mapping[str, Tensor], int],
    *,
    normalize: bool = False,
    padding: str = "exact",
) -> Wav2Vec2 | Wav2Vec2CTC:
    """Take over a torchaudio model.

    Parameters
    ----------
    model : torchaudio.models.Wav2Vec2Model or (state dict, number of heads)
        A bundle's `get_model()` works as well, and brings its own `normalize`. Shapes are read
        off the weights. They do not tell the number of heads, nor pre-norm from post-norm: for a
        bare state dict the latter is taken from the extractor, as in all published models.
    normalize : bool
        Whether the model was trained on normalized waveforms (LARGE LV-60, XLSR).
    padding : {"exact", "mask", "reference"}
        See `Wav2Vec2`.

    Returns
    -------
    Wav2Vec2 or Wav2Vec2CTC
        The latter if there is an auxiliary head; in evaluation mode.

    Example
    -------
    >>> import torch, torchaudio
    >>> theirs = torchaudio.models.wav2vec2_model(
    ...     "group_norm", [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2, False,
    ...     16, 0.0, 8, 4, 1, 2, 0.0, 32, 0.0, 0.0, False, 0.0, None)
    >>> load_torchaudio(theirs)(torch.randn(1, 16000)).context.shape
    torch.Size([1, 49, 16])
    """
    if isinstance(model, tuple):
        state, heads = model
        known: dict[str, Any] = {"heads": heads}
    else:
        normalize = getattr(model, "normalize_waveform", normalize)
        model = model.get_submodule("model") if hasattr(model, "normalize_waveform") else model
        state, known = model.state_dict(), _torchaudio_attributes(model)
    shapes = _torchaudio_shapes(state) | known
    if "strides" not in known and tuple(shapes["kernels"]) != KERNELS:
        raise CheckpointMismatch(
            f"torchaudio state dict: kernels {shapes['kernels']} are not the published "
            f"{KERNELS}, so its strides are unknown. Pass the module itself."
        )
    body = Wav2Vec2(**shapes, normalize=normalize, normalize_eps=TORCHAUDIO_EPS, padding=padding)
    head = state.get("aux.weight")
    ours = body if head is None else Wav2Vec2CTC(body, vocab_size=len(head))
    load_strict(ours, state, "torchaudio model", translate=torchaudio_name)
    return ours.eval()


def _torchaudio_attributes(model: Any) -> dict[str, Any]:
    """What a module knows and its weights do not."""
    layer = model.encoder.transformer.layers[0]
    return {
        "heads": layer.attention.num_heads,
        "norm_first": layer.layer_norm_first,  # of a layer: the transformer's own is inverted
        "strides": [block.conv.stride[0] for block in model.feature_extractor.conv_layers],
    }


def _torchaudio_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of Wav2Vec2 that the shapes of torchaudio weights tell."""
    conv, transformer = "feature_extractor.conv_layers.{}.", "encoder.transformer."
    taps = f"{transformer}pos_conv_embed.conv."
    spellings = ("parametrizations.weight.original1", "weight_v", "weight")
    try:
        count = next(i for i in range(99) if conv.format(i) + "conv.weight" not in state)
        convs = [state[conv.format(i) + "conv.weight"].shape for i in range(count)]
        layers = {k.split(".")[3] for k in state if k.startswith(transformer + "layers.")}
        dim, group, kernel = next(state[taps + s].shape for s in spellings if taps + s in state)
        ffn = state[transformer + "layers.0.feed_forward.intermediate_dense.weight"]
    except (KeyError, StopIteration) as error:
        raise CheckpointMismatch(
            f"torchaudio model: not the names of a Wav2Vec2Model ({error}). Expected the state "
            "dict of torchaudio.models.Wav2Vec2Model."
        ) from error
    kernels = [shape[2] for shape in convs]
    layer_norm = conv.format(count - 1) + "layer_norm.weight" in state
    return {
        "dim": dim,
        "layers": len(layers),
        "ffn_dim": len(ffn),
        "channels": [shape[0] for shape in convs],
        "kernels": kernels,
        "strides": list(STRIDES),
        "extractor_norm": "layer" if layer_norm else "group",
        "conv_bias": conv.format(0) + "conv.bias" in state,
        "norm_first": layer_norm,
        "positions_kernel": kernel,
        "positions_groups": dim // group,
    }
