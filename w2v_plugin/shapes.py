"""The arguments of `Wav2Vec2` that the shapes of its weights tell.

They do not tell the number of heads (64 channels each in every published model), the strides, nor
pre-norm from post-norm.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, takewhile
from typing import Any

from torch import Tensor

HEAD_DIM = 64  # of every published model


def shapes_of(get: Callable[[str], Tensor | None]) -> dict[str, Any]:
    """Read the architecture off the weights.

    Parameters
    ----------
    get : callable
        Our name of a parameter -> the tensor, or None if there is none. Weight norm may have any
        spelling, as `encoder.positions.conv.weight_v`.

    Returns
    -------
    dict
        Arguments of `Wav2Vec2`; none for tensors that are not there.

    Example
    -------
    >>> from w2v_plugin.model import Wav2Vec2
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> shapes = shapes_of(model.state_dict().get)
    >>> shapes["dim"], shapes["layers"], shapes["channels"]
    (16, 1, [8, 8, 8, 8, 8, 8, 8])
    """
    found: dict[str, Any] = {}
    names = (f"extractor.layers.{i}.conv.weight" for i in count())
    if convs := list(takewhile(lambda conv: conv is not None, map(get, names))):
        found["channels"] = [conv.shape[0] for conv in convs if conv is not None]
        found["kernels"] = [conv.shape[2] for conv in convs if conv is not None]
        last = f"extractor.layers.{len(convs) - 1}."
        found["extractor_norm"] = "group" if get(last + "norm.weight") is None else "layer"
        found["conv_bias"] = get(last + "conv.bias") is not None
    layer = "encoder.layers.{}.ffn_in.weight"
    found["layers"] = next(i for i in count() if get(layer.format(i)) is None)
    for key, name in (
        ("dim", "projection.linear.weight"),
        ("ffn_dim", layer.format(0)),
        ("adapter_dim", "encoder.layers.0.adapter.linear_1.weight"),
    ):
        if (weight := get(name)) is not None:
            found[key] = weight.shape[0]
    for spelling in ("parametrizations.weight.original1", "weight_v", "weight"):
        if (taps := get(f"encoder.positions.conv.{spelling}")) is not None:
            found["positions_groups"] = taps.shape[0] // taps.shape[1]
            found["positions_kernel"] = taps.shape[2]
    return found
