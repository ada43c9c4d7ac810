"""Packed and 8-bit products: the answer of `nn.Linear`, within what their arithmetic allows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin import products
from w2v_plugin.products import ROWS, Int8Linear, PackedLinear, gelu, quantize_weight

pytestmark = pytest.mark.skipif(not products.available(), reason="needs oneDNN on x86")
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def exact(x: Tensor, layer: nn.Linear) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


def int8_bound(x: Tensor, layer: nn.Linear, levels: int, offset: float) -> Tensor:
    """|error| if each weight and each activation is off by half a step, plus 1 % for float32."""
    step = (x.abs().amax(-1, keepdim=True) + offset).double() / levels
    values, scale = quantize_weight(layer.weight)
    weights = (values.double() * scale[:, None]).abs().sum(1)
    rounded = x.abs().double().sum(-1, keepdim=True) * scale / 2
    return 1.01 * (step / 2 * weights + rounded) + 1e-6 * exact(x, layer).abs()


# --- packed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (16, 64), (33, 130)])
@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3), (1, 300)])
@pytest.mark.parametrize("level", [1e-6, 1.0, 1e6])
def test_packed_is_linear(shape, rows, bias, level) -> None:
    """Odd widths, one row, any number of dimensions; k float32 sums stay within k eps."""
    layer = nn.Linear(*shape, bias=bias)
    x = level * torch.randn(*rows, shape[0])
    y = PackedLinear(layer.weight, layer.bias)(x)
    assert y.dtype == torch.float32 and y.shape == (*rows, shape[1])
    terms = x.abs() @ layer.weight.abs().T + (layer.bias.abs() if bias else 0)
    assert bool(((y - exact(x, layer)).abs() <= (shape[0] + 1) * EPS * terms).all())


@pytest.mark.parametrize("kind", [PackedLinear, Int8Linear])
def test_weights_are_copies(kind) -> None:
    """What happens to the layer afterwards is not heard, and packing leaves the layer alone."""
    layer, x = nn.Linear(16, 16), torch.randn(4, 16)
    before = [p.clone() for p in layer.parameters()]
    packed = kind(layer.weight, layer.bias, **({"after_gelu": True} if kind is Int8Linear else {}))
    assert all(map(torch.equal, before, layer.parameters()))
    y = packed(x)
    layer.weight.zero_()
    layer.bias.fill_(9.0)
    assert torch.equal(packed(x), y)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 instructions"
)
def test_packed_bf16_rounds_inputs_and_result() -> None:
    """Relative rounding is 2^-9; sums are wider, or 512 terms would lose more."""
    layer, x = nn.Linear(512, 32), torch.rand(9, 512)
    y = PackedLinear(layer.weight, layer.bias, torch.bfloat16)(x)
    assert y.dtype == torch.float32
    terms = x @ layer.weight.abs().T + layer.bias.abs()
    error = (y - exact(x, layer)).abs()
    assert float(error.max()) > 0 and bool((error <= 3 * 2**-9 * terms).all())


# --- INT8 ----------------------------------------------------------------------------------------


def test_quantized_weights_are_half_a_step_off() -> None:
    """The largest of a row is 127; a row of zeros stays one."""
    weight = torch.randn(6, 40) * torch.logspace(-20, 10, 6)[:, None]
    weight[2] = 0
    values, scale = quantize_weight(weight)
    assert values.dtype == torch.int8 and values.abs().amax(1).tolist() == [127, 127, 0] + [127] * 3
    assert bool(((values * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("after_gelu", [False, True])
def test_int8_error_is_bounded(monkeypatch, after_gelu, bits, bias) -> None:
    """By half a step of weights and activations; without VNNI a step is twice as long."""
    monkeypatch.setattr(products, "activation_max", lambda: 2**bits - 1)
    layer = nn.Linear(200, 24, bias=bias)
    x = torch.randn(50, 200) * torch.logspace(-2, 1, 50)[:, None]
    x = F.gelu(x) if after_gelu else x
    y = Int8Linear(layer.weight, layer.bias, after_gelu)(x)
    levels, offset = (2**bits - 1, 0.17) if after_gelu else (2 ** (bits - 1) - 1, 0.0)
    error = (y - exact(x, layer)).abs()
    assert bool((error <= int8_bound(x, layer, levels, offset)).all())


@pytest.mark.parametrize("largest", [255, 127])
def test_all_levels_are_used_and_no_more(monkeypatch, largest) -> None:
    """One input and a weight of 1: the result is the quantized activation; extremes are exact."""
    monkeypatch.setattr(products, "activation_max", lambda: largest)
    one = torch.tensor([[1.0, 0.0]])
    x = torch.stack([torch.linspace(-1, 1, 1001), torch.ones(1001)], 1)  # 1 is each row's peak
    y = Int8Linear(one, None)(x)[:, 0]
    torch.testing.assert_close(y[[0, 500, -1]], torch.tensor([-1.0, 0.0, 1.0]), rtol=0, atol=1e-6)
    assert len(y.unique()) == 2 * (largest // 2) + 1
    x[:, 0] = torch.linspace(-0.17, 1, 1001)
    y = Int8Linear(one, None, after_gelu=True)(x)[:, 0]
    torch.testing.assert_close(y[[0, -1]], torch.tensor([-0.17, 1.0]), rtol=0, atol=1e-6)
    assert len(y.unique()) == largest + 1


def test_range_of_gelu_halves_the_error() -> None:
    """What `after_gelu` is there for."""
    layer, x = nn.Linear(256, 64), F.gelu(3 * torch.randn(100, 256))
    layer.weight.copy_(layer.weight.sign())  # no error of its own
    tight, wide = (
        (Int8Linear(layer.weight, layer.bias, after)(x) - exact(x, layer)).norm()
        for after in (True, False)
    )
    assert tight < 0.6 * wide


@pytest.mark.parametrize("after_gelu", [False, True])
def test_no_row_knows_of_another(after_gelu) -> None:
    """Bit for bit: alone, in company, in any order; also beside rows a billion times as loud."""
    layer = nn.Linear(48, 20)
    int8 = Int8Linear(layer.weight, layer.bias, after_gelu)
    x = torch.randn(2 * ROWS + 5, 48) * torch.logspace(-9, 9, 2 * ROWS + 5)[:, None]
    x = F.gelu(x) if after_gelu else x
    together = int8(x)
    for row in (0, 1, ROWS - 1, ROWS, 2 * ROWS, 2 * ROWS + 4):
        assert torch.equal(int8(x[row : row + 1])[0], together[row])
    order = torch.randperm(len(x))
    assert torch.equal(int8(x[order]), together[order])
    assert torch.equal(int8(x[None]), together[None]) and torch.equal(int8(x[0]), together[0])


@pytest.mark.parametrize("bias", [True, False])
def test_silence_gives_the_bias(bias) -> None:
    """Zero is one of the levels, so a row of zeros is no approximation."""
    layer = nn.Linear(32, 8, bias=bias)
    expected = (layer.bias if bias else torch.zeros(8)).expand(3, 8)
    zeros = torch.zeros(3, 32)
    assert torch.equal(Int8Linear(layer.weight, layer.bias)(zeros), expected)
    y = Int8Linear(layer.weight, layer.bias, after_gelu=True)(zeros)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)  # 0.17 * sum(w) - 0.17 * sum(w)


def test_strided_rows_are_read_as_they_are() -> None:
    """Slices and transposed inputs."""
    layer, x = nn.Linear(16, 8), torch.randn(16, 30)
    for kind in (PackedLinear, Int8Linear):
        packed = kind(layer.weight, layer.bias)
        assert torch.equal(packed(x.T[::3]), packed(x.T[::3].contiguous()))


# --- machines ------------------------------------------------------------------------------------


def test_machines_are_asked(monkeypatch) -> None:
    """7 bits without VNNI; nothing at all on other processors or without oneDNN."""
    for vnni, largest in ((True, 255), (False, 127)):
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda vnni=vnni: vnni)
        assert products.activation_max() == largest
    monkeypatch.setattr(products.platform, "machine", lambda: "aarch64")
    assert not products.available()
    monkeypatch.setattr(products.platform, "machine", lambda: "AMD64")
    assert products.available()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not products.available()


def test_gelu_overwrites_only_where_nobody_looks() -> None:
    """The same values; with gradients the input stays."""
    x = torch.linspace(-5, 5, 101)
    expected = F.gelu(x)
    y = x.clone()
    assert gelu(y) is y and torch.equal(y, expected)
    assert float(expected.min()) >= products.GELU_MIN
    with torch.inference_mode(False), torch.enable_grad():
        z = torch.linspace(-5, 5, 101, requires_grad=True)
        gelu(z).sum().backward()
        assert torch.equal(z.detach(), x) and z.grad is not None
