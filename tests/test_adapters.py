"""Language adapters: the arithmetic, and where in the layer they stand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from w2v_plugin.adapters import LanguageAdapter
from w2v_plugin.encoder import ContextEncoder, EncoderLayer


def test_an_adapter_is_a_normed_bottleneck() -> None:
    torch.manual_seed(0)
    adapter = LanguageAdapter(8, 3).double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    down, up = adapter.linear_1, adapter.linear_2
    normed = F.layer_norm(x, (8,), adapter.norm.weight, adapter.norm.bias)
    expected = (normed @ down.weight.T + down.bias).clamp(min=0) @ up.weight.T + up.bias
    torch.testing.assert_close(adapter(x), expected)


def test_a_layer_adds_it_last() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(16, 2, 32, norm_first=True, adapter_dim=4).double().eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    adapter, layer.adapter = layer.adapter, None
    without = layer(x, None)
    layer.adapter = adapter
    torch.testing.assert_close(layer(x, None), without + adapter(without))
    assert not torch.equal(layer(x, None), without)


def test_post_norm_layers_have_none() -> None:
    with pytest.raises(ValueError, match="adapter_dim=4 needs norm_first=True"):
        ContextEncoder(16, 1, 2, 32, positions_kernel=8, adapter_dim=4)
