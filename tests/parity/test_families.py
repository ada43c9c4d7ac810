"""Every published shape: the parameters are those of transformers, name by name.

On the meta device, where a model of two billion parameters needs no memory.
"""

from __future__ import annotations

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2Model

from w2v_plugin.hf_checkpoints import build_hf, hf_name

LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def shape(layers: int, dim: int, ffn_dim: int, heads: int, code_dim: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": dim,
        "intermediate_size": ffn_dim,
        "num_attention_heads": heads,
        "codevector_dim": code_dim,
        "proj_codevector_dim": code_dim,
    }


# with the millions of parameters of the pretraining model
FAMILIES = {
    "BASE": (95.04, {}),
    "LARGE": (317.38, shape(24, 1024, 4096, 16, 768)),
    "LV60, XLSR-53, XLS-R 0.3B": (317.39, shape(24, 1024, 4096, 16, 768) | LAYER),
    "XLS-R 1B": (965.5, shape(48, 1280, 5120, 16, 1024) | LAYER),
    "XLS-R 2B": (2162.9, shape(48, 1920, 7680, 16, 1024) | LAYER),
    "MMS-1B": (967.6, shape(48, 1280, 5120, 16, 1024) | LAYER | {"adapter_attn_dim": 16}),
}


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        (Wav2Vec2Model, ()),
        (Wav2Vec2ForCTC, ("lm_head.weight",)),
        (Wav2Vec2ForPreTraining, ("project_q.weight",)),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_transformers(family: str, kind, heads: tuple[str, ...]) -> None:
    millions, changes = FAMILIES[family]
    config = Wav2Vec2Config(**changes)
    with torch.device("meta"):
        theirs = {key: value.shape for key, value in kind(config).state_dict().items()}
        model = build_hf(config.to_dict(), dict.fromkeys(heads, torch.zeros(1)))
    state = model.state_dict().items()
    ours = {name: value.shape for key, value in state if (name := hf_name(key)) is not None}
    assert ours == theirs
    if kind is Wav2Vec2ForPreTraining:
        count = sum(value.numel() for value in theirs.values()) / 1e6
        assert count == pytest.approx(millions, abs=0.1)
