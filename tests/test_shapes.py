"""Shapes of weights tell the architecture, in every spelling of weight norm."""

from __future__ import annotations

import pytest

from w2v_plugin.model import Wav2Vec2
from w2v_plugin.shapes import shapes_of

STEM = "encoder.positions.conv."


@pytest.mark.parametrize("spelling", ["parametrizations.weight.original1", "weight_v", "weight"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"extractor_norm": "layer", "conv_bias": True, "norm_first": True, "adapter_dim": 4},
        {"channels": (4, 6, 8), "kernels": (8, 4, 4), "strides": (4, 4, 2)},
    ],
)
def test_what_a_model_was_built_with_is_read_off(changes: dict, spelling: str) -> None:
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 24, "channels": (8,) * 7}
    model = Wav2Vec2(**{**shape, "positions_kernel": 6, "positions_groups": 4, **changes})
    state = model.state_dict()
    state[STEM + spelling] = state.pop(STEM + "parametrizations.weight.original1")
    found = shapes_of(state.get)
    expected = {key: model.config[key] for key in found}
    assert found == {k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()}
    told = {"dim", "layers", "ffn_dim", "channels", "kernels", "extractor_norm", "conv_bias"}
    assert told | {"positions_groups", "positions_kernel"} <= found.keys()
    assert ("adapter_dim" in found) == ("adapter_dim" in changes)


def test_nothing_tells_nothing() -> None:
    assert shapes_of({}.get) == {"layers": 0}
