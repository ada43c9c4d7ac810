"""optimize: the same answers in float32, close ones in fewer bits, and clear refusals."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from w2v_plugin import compression, products
from w2v_plugin.attention import ChunkConfig
from w2v_plugin.compression import check_precision, int8_deviations, optimize
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.hf_checkpoints import hf_name
from w2v_plugin.languages import set_language
from w2v_plugin.model import PADDING_MODES, Wav2Vec2

pytestmark = pytest.mark.skipif(not products.available(), reason="needs oneDNN on x86")
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 instructions"
)
LAYER = {"extractor_norm": "layer", "norm_first": True, "conv_bias": True}
FAMILIES = {
    "group": {"extractor_norm": "group", "norm_first": False, "conv_bias": False},
    "layer": LAYER,
    "adapters": LAYER | {"adapter_dim": 4},
    "relative": LAYER | {"conformer": "relative"},
    "rotary": LAYER | {"conformer": "rotary"},
}
LENGTHS = (16001, 400, 719, 720, 10640, 12345)  # 10640 samples are 33 frames: a tile and one


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def make(family: str = "group", **options) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape = {"dim": 32, "layers": 2, "heads": 4, "ffn_dim": 64, "channels": (24,) * 7}
    body = Wav2Vec2(**shape, **FAMILIES[family], positions_kernel=20, **options)
    model = Wav2Vec2CTC(body, vocab_size=20).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


WAVS = [noise(n, n) for n in LENGTHS]


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.float() - y).norm() / y.norm())


# --- float32 -------------------------------------------------------------------------------------

TOLERANCE = 1e-5  # float32 in another order; values are of order 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_float32_keeps_every_answer(family, normalize) -> None:
    """Each utterance alone: logits and all hidden states."""
    plain, fast = make(family, normalize=normalize), optimize(make(family, normalize=normalize))
    for wav in WAVS:
        out, expected = (m(wav[None], output_hidden_states=True) for m in (fast, plain))
        pairs = zip(
            (out.logits, *out.hidden_states),
            (expected.logits, *expected.hidden_states),
            strict=True,
        )
        for x, y in pairs:
            torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["group", "layer"])
@pytest.mark.parametrize("padding", PADDING_MODES)
def test_padded_batches_mean_the_same(family, padding) -> None:
    """In all three modes, those where padding is heard included."""
    batch = nn.utils.rnn.pad_sequence(WAVS, batch_first=True)
    wav_lens = torch.tensor(LENGTHS) / max(LENGTHS)
    expected = make(family, padding=padding)(batch, wav_lens).rows()
    for x, y in zip(
        optimize(make(family, padding=padding))(batch, wav_lens).rows(), expected, strict=True
    ):
        torch.testing.assert_close(x.logits, y.logits, rtol=0, atol=TOLERANCE)


def test_chunks_mean_the_same() -> None:
    """Positions and attention in chunks."""
    plain, fast = (f(make("layer", normalize=False)) for f in (lambda model: model, optimize))
    chunk = ChunkConfig(5, 7)
    for x, wav in zip(fast.forward_packed(WAVS, chunk=chunk), WAVS, strict=True):
        y = plain(wav[None], chunk=chunk)
        torch.testing.assert_close(x.logits, y.logits, rtol=0, atol=TOLERANCE)


def test_everything_is_replaced_but_what_may_be_exchanged() -> None:
    """No plain product is left, except for the head and language adapters."""
    model = optimize(make("adapters"))
    left = {name for name, kind in kinds(model).items() if kind in ("Linear", "Conv1d")}
    assert {name.rpartition(".")[2] for name in left} == {"head", "first", "linear_1", "linear_2"}
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_other_machines_keep_the_plain_model(monkeypatch) -> None:
    """float32 works everywhere; the rest is refused."""
    monkeypatch.setattr(compression, "available", lambda: False)
    assert kinds(optimize(make())) == kinds(make())
    for precision in ("bf16", "fp16", "int8"):
        with pytest.raises(ValueError, match=rf'"{precision}": this CPU has no .* Use "fp32"'):
            optimize(make(), precision)


# --- INT8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16), "int8"])
def test_alone_as_in_any_company(family, precision) -> None:
    """Contexts bit for bit, also in 8 bits.

    Head and language adapters are plain products, which round as the number of rows suggests, by
    about 1e-7; after an adapter, that may move a single value by a step of 8 bits.
    """
    model = optimize(make(family), precision)
    for wavs in (WAVS, WAVS[::-1]):
        for out, wav in zip(model.forward_packed(wavs), wavs, strict=True):
            alone = model(wav[None])
            if family == "adapters":
                assert relative(out.logits, alone.logits) < 1e-3
                continue
            assert torch.equal(out.context, alone.context)
            torch.testing.assert_close(out.logits, alone.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("precision", "limit"), [("int8", 0.1), pytest.param("bf16", 0.05, marks=needs_bf16)]
)
def test_fewer_bits_are_close(family, precision, limit) -> None:
    """Some percent with random weights; not nothing, or the bits were not fewer."""
    plain, model = make(family), optimize(make(family), precision)
    for wav in WAVS:
        assert 1e-4 < relative(model(wav[None]).logits, plain(wav[None]).logits) < limit


@pytest.mark.parametrize("level", [1e-4, 1e4])
@pytest.mark.parametrize("family", ["group", "layer"])
def test_int8_at_every_level(family, level) -> None:
    """No calibration: very quiet and very loud audio is as good, and silence is no NaN."""
    plain, model = (
        f(make(family, normalize=False)) for f in (optimize, lambda m: optimize(m, "int8"))
    )
    wav = level * WAVS[0][None]
    assert relative(model(wav).logits, plain(wav).logits) < 0.1
    assert model(torch.zeros(1, 4000)).logits.isfinite().all()


def test_seven_bits_are_close(monkeypatch) -> None:
    """What processors without VNNI get."""
    plain = make()(WAVS[0][None]).logits
    eight = relative(optimize(make(), "int8")(WAVS[0][None]).logits, plain)
    monkeypatch.setattr(products, "activation_max", lambda: 127)
    seven = relative(optimize(make(), "int8")(WAVS[0][None]).logits, plain)
    assert eight < seven < 0.15


def test_what_is_kept_is_exact() -> None:
    """Everything kept is the float32 model, bit for bit."""
    exact = optimize(make())(WAVS[0][None]).logits
    kept = optimize(make(), "int8", keep_fp32=["extractor", "projection", "encoder"])
    assert torch.equal(kept(WAVS[0][None]).logits, exact)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("encoder.layers.1.ffn_out", {"encoder.layers.1.ffn_out"}),
        (
            "encoder.layers.0.attention",
            {f"encoder.layers.0.attention.{part}" for part in ("q", "k", "v", "out")},
        ),
        ("projection", {"projection.linear"}),
        ("extractor.layers.1", {"extractor.convs.0.linear"}),
        ("extractor.layers.6.conv", {"extractor.convs.5.linear"}),
        ("encoder.positions", set()),
    ],
)
def test_parts_are_kept_by_name(name, kept) -> None:
    """The names of the model before; nothing else is kept."""

    def eighth(**options) -> set[str]:
        found = kinds(optimize(make().wav2vec2, "int8", **options))
        return {part for part, kind in found.items() if kind == "Int8Linear"}

    assert eighth() - eighth(keep_fp32=[name]) == kept
    assert len(eighth()) == 6 + 1 + 2 * 6


def test_prefixes_are_whole_names() -> None:
    """encoder.layers.1 is not encoder.layers.10."""
    shape = {"dim": 8, "layers": 11, "heads": 2, "ffn_dim": 8, "channels": (8,) * 7}
    body = optimize(Wav2Vec2(**shape, positions_groups=2), "int8", keep_fp32=["encoder.layers.1"])
    found = kinds(body)
    assert found["encoder.layers.1.ffn_in"] == "PackedLinear"
    assert found["encoder.layers.10.ffn_in"] == "Int8Linear"


def test_deviations_name_the_culprit() -> None:
    """A weight that drowns the others of its row costs most, and its name can be kept."""

    def ill() -> Wav2Vec2CTC:
        model = make()
        layer = model.wav2vec2.encoder.layers[1]
        layer.ffn_in.weight[0], layer.ffn_in.bias[0] = 0, -9  # never heard
        layer.ffn_out.weight[:, 0] = 100
        return model

    def answer(model: nn.Module) -> Tensor:
        return model(WAVS[0][None]).logits

    costs = int8_deviations(ill, answer)
    convs = {f"extractor.layers.{i}" for i in range(1, 7)}
    assert set(costs) == convs | {"projection", "encoder.layers.0", "encoder.layers.1"}
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    (worst, cost), (_, second) = list(costs.items())[:2]
    assert worst == "encoder.layers.1" and cost > 3 * second > 0
    exact = answer(ill())
    assert relative(answer(optimize(ill(), "int8", keep_fp32=[worst])), exact) < cost / 2


# --- languages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_language_of_an_optimized_model(tmp_path, precision) -> None:
    """Switching afterwards gives what optimizing the other language gives."""
    french = make("adapters")
    french.head = nn.Linear(32, 3)
    for name, parameter in french.named_parameters():
        if "adapter" in name or "head" in name:
            parameter.copy_(0.3 * torch.randn_like(parameter))
    weights = {hf_name(key): value for key, value in french.state_dict().items()}
    mine = {key: weights[key].clone() for key in weights if "adapter" in key or "head" in key}
    save_file(mine, tmp_path / "adapter.fra.safetensors")
    (tmp_path / "vocab.json").write_text('{"fra": {"<pad>": 0, "|": 1, "e": 2}}')
    model = optimize(make("adapters"), precision)
    assert len(set_language(model, tmp_path, "fra")) == 3
    expected = optimize(french, precision)(WAVS[0][None]).logits
    torch.testing.assert_close(model(WAVS[0][None]).logits, expected, rtol=0, atol=TOLERANCE)


# --- accelerators --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_accelerators_get_the_plain_model_in_that_precision(family, precision) -> None:
    """On PyTorch's device without data: no part is replaced, and types fit all the way."""
    model = optimize(make(family), precision, device="meta")
    assert kinds(model) == kinds(make(family))
    out = model(torch.zeros(2, 16000, device="meta"))
    assert out.logits.shape == (2, 49, 20) and out.logits.device.type == "meta"
    assert out.logits.dtype == compression.DTYPES[precision]


@pytest.mark.parametrize("family", ["group", "layer"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
@pytest.mark.parametrize("level", [1e-4, 1.0, 1e4])
def test_half_precision_normalizes_in_float32(family, dtype, limit, level) -> None:
    """The plain model in half precision: quiet audio would be lost, and loud be infinite, if it
    were converted before it is normalized."""
    batch = level * torch.stack([noise(8000, 1), noise(8000, 2)])
    wav_lens = torch.tensor([1.0, 0.6])
    rows = make(family).to(dtype)(batch, wav_lens).rows()
    for x, y in zip(rows, make(family)(batch, wav_lens).rows(), strict=True):
        assert x.logits.dtype == dtype and 0 < relative(x.logits, y.logits) < limit


def test_compile_is_asked_for(monkeypatch) -> None:
    """Not packed, but left to the compiler, for any length."""
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append((self, options)))
    model = optimize(make(), compile=True)
    assert asked == [(model, {"dynamic": True})] and kinds(model) == kinds(make())


@pytest.mark.slow  # half a minute in the C++ compiler
@torch.inference_mode(False)
@torch.no_grad()
def test_compiled_model_gives_the_same() -> None:
    expected = make()(WAVS[0][None]).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler uses what PyTorch deprecates
        y = optimize(make(), compile=True)(WAVS[0][None]).logits
    torch.testing.assert_close(y, expected, rtol=0, atol=TOLERANCE)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp64"}, "precision='fp64', expected one of fp32, bf16, fp16, int8"),
        ({"precision": "int8", "device": "cuda"}, 'works on a CPU, not on cuda. Use "fp16"'),
        ({"precision": "int8", "compile": True}, 'not with "int8"'),
        ({"precision": "int8", "keep_fp32": ["encoder.layers.7"]}, "called encoder.layers.7"),
        ({"keep_fp32": ["wav2vec2.projection", "head"]}, "called wav2vec2.projection, head"),
        ({"keep_fp32": ["nothing"], "compile": True}, "called nothing"),
        ({"keep_fp32": ["nothing"], "device": "meta"}, "called nothing"),
    ],
)
def test_refusals_change_nothing(options, message) -> None:
    """One line, before anything is done to the model."""
    model = make().train()
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        optimize(model, **options)
    assert model.training and kinds(model) == kinds(make())
    assert [p.requires_grad for p in model.parameters()] == trainable


@pytest.mark.parametrize("again", [{}, {"precision": "int8"}, {"compile": True}])
def test_twice_is_refused(again) -> None:
    """Packed weights cannot be packed again; the model goes on working."""
    model = optimize(make())
    y = model(WAVS[0][None]).logits
    for part in (model, model.wav2vec2):
        with pytest.raises(ValueError, match=r"optimized already\. Load it again"):
            optimize(part, **again)
    assert torch.equal(model(WAVS[0][None]).logits, y)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="A Linear holds no Wav2Vec2"):
        optimize(nn.Linear(2, 2))


@pytest.mark.skipif(
    torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="this CPU has fp16 instructions"
)
def test_fp16_without_instructions_is_refused() -> None:
    with pytest.raises(ValueError, match=r'precision="fp16": this CPU .* Use "fp32"'):
        check_precision("fp16", torch.device("cpu"))
