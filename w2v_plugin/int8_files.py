"""Weights in a quarter of the room: int8 values and a scale per output, in files of ours.

    encoder.layers.0.ffn_in.weight             int8 (outputs, inputs)
    encoder.layers.0.ffn_in.weight.int8_scale  float32 (outputs,)

Matrices and convolutions are stored like this, the rest (norms, biases, the first convolution) as
it is. Whoever reads weights gets floats (`widen`), so such a file works wherever any other does;
`optimize` finds the same int8 values again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from w2v_plugin.products import quantize_weight

SCALE = ".int8_scale"
NORM, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"


def shrink(state: Mapping[str, Tensor], keep_fp32: Collection[str] = ()) -> dict[str, Tensor]:
    """Quantize a state dict; weight norm is folded.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of a `Wav2Vec2`.
    keep_fp32 : collection of str
        Parts that stay as they are, see `optimize`.

    Example
    -------
    >>> small = shrink({"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(2)})
    >>> sorted(small), small["layer.weight"].dtype
    (['layer.bias', 'layer.weight', 'layer.weight.int8_scale'], torch.int8)
    """
    result = {}
    for name, tensor in state.items():
        if name.endswith(DIRECTION):
            continue
        if name.endswith(NORM):
            direction = state[name.removesuffix(NORM) + DIRECTION]
            name = name.removesuffix(NORM) + "weight"
            tensor = torch._weight_norm(direction, tensor, dim=2)
        kept = any(name.startswith(part + ".") for part in keep_fp32)
        if name.endswith(".weight") and tensor.dim() > 1 and tensor.shape[1] > 1 and not kept:
            values, result[name + SCALE] = quantize_weight(tensor.flatten(1))
            tensor = values.view_as(tensor)
        result[name] = tensor
    return result


def widen(state: dict[str, Tensor]) -> None:
    """Make floats of int8 values, in place; other state dicts stay as they are.

    Example
    -------
    >>> state = shrink({"layer.weight": torch.tensor([[0.5, -1.0]])})
    >>> widen(state)
    >>> state["layer.weight"].tolist()  # in steps of 1/127
    [[0.5039370059967041, -1.0]]
    """
    for key in [key for key in state if key.endswith(SCALE)]:
        name, scale = key.removesuffix(SCALE), state.pop(key)
        values = state[name]
        state[name] = values * scale.view(-1, *[1] * (values.dim() - 1))
