"""Conformers: the parts against their definitions, batches against single files, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from w2v_plugin import products
from w2v_plugin.attention import LONG, ChunkConfig, Part
from w2v_plugin.compression import optimize
from w2v_plugin.conformer import (
    ConformerPositions,
    ConvModule,
    RelativeAttention,
    RotaryFrequencies,
    Surroundings,
    distances,
    turn,
)
from w2v_plugin.conversion import open_folder
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.encoder import ContextEncoder
from w2v_plugin.errors import CheckpointMismatch, NotStreamable
from w2v_plugin.folders import save_asr
from w2v_plugin.hf_checkpoints import load_hf
from w2v_plugin.hf_export import export_hf
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.onnx_export import export_onnx
from w2v_plugin.text import CharVocabulary

KINDS = pytest.mark.parametrize("kind", ["relative", "rotary"])
LENGTHS = (16000, 9123, 400, 720, 12345)  # 400 samples are one frame
EXACT = 1e-12  # float64 in another order of summation; values are of order 1
SHAPE: dict[str, Any] = {
    "dim": 24,
    "layers": 2,
    "heads": 4,
    "ffn_dim": 32,
    "channels": (16,) * 7,
    "extractor_norm": "layer",
    "conv_bias": True,
    "norm_first": True,
    "positions_kernel": 8,
    "positions_groups": 4,
    "conformer_kernel": 7,
}


def scatter(module: nn.Module) -> nn.Module:
    """Fresh norms and statistics are ones and zeros: let no two tensors be confused."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 1.5)
    return module


def make(kind: str | None, **changes: Any) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    body = Wav2Vec2(**{**SHAPE, "conformer": kind, **changes})
    return scatter(Wav2Vec2CTC(body, vocab_size=9)).eval()


def noise(samples: int) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples))


WAVS = [noise(n) for n in LENGTHS]


def padded() -> tuple[Tensor, Tensor]:
    wavs = nn.utils.rnn.pad_sequence(WAVS, batch_first=True, padding_value=7.0)
    return wavs.double(), torch.tensor(LENGTHS, dtype=torch.float64) / max(LENGTHS)


def agree(x: Wav2Vec2Output, y: Wav2Vec2Output, tolerance: float = EXACT) -> None:
    """Logits and every hidden state."""
    assert x.hidden_states is not None and y.hidden_states is not None
    assert len(x.hidden_states) == len(y.hidden_states) == SHAPE["layers"] + 1
    pairs = zip((x.logits, *x.hidden_states), (y.logits, *y.hidden_states), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# --- the parts -----------------------------------------------------------------------------------


def test_relative_attention_learns_in_float32_as_in_float64() -> None:
    """In training a CPU takes another kernel, for long utterances and with dropout."""
    grads = []
    for dtype in (torch.float32, torch.float64):
        model = make("relative").to(dtype)
        model(noise(LONG * 320 + 400)[None].to(dtype)).logits.square().mean().backward()
        attention = model.wav2vec2.encoder.layers[0].self_attention
        grads.append(
            [attention.position.weight.grad, attention.bias_u.grad, attention.q.weight.grad]
        )
    for ours, reference in zip(*grads, strict=True):
        assert reference.norm() > 0
        assert (ours - reference).norm() < 1e-3 * reference.norm()  # float32 over 320 frames
    model = make("relative", attention_dropout=0.5).train()
    model(noise(8000)[None]).logits.sum().backward()


def test_relative_attention_is_its_definition() -> None:
    """softmax of ((q_i + u) k_j + (q_i + w) p_(i-j)) / sqrt(d), pair by pair, two utterances."""
    torch.manual_seed(0)
    dim, heads, sizes = 12, 3, (5, 3)
    module = scatter(RelativeAttention(dim, heads)).double()
    x = torch.randn(1, sum(sizes), dim, dtype=torch.float64)
    around = ConformerPositions("relative", dim, heads)(
        x, [Part(slice(0, 5), None), Part(slice(5, 8), None)]
    )
    rows = []
    for utterance in x[0].split(sizes):
        q, k, v = (m(utterance).unflatten(-1, (heads, -1)) for m in (module.q, module.k, module.v))
        scores = torch.empty(heads, len(q), len(q), dtype=torch.float64)
        for i in range(len(q)):
            for j in range(len(q)):
                one = (
                    distances(abs(i - j), dim, x)[0] if i > j else distances(j - i + 1, dim, x)[-1]
                )
                p = module.position(one).unflatten(-1, (heads, -1))
                scores[:, i, j] = ((q[i] + module.bias_u) * k[j]).sum(-1)
                scores[:, i, j] += ((q[i] + module.bias_w) * p).sum(-1)
        weights = (scores / (dim // heads) ** 0.5).softmax(-1)
        rows.append(torch.einsum("hij,jhd->ihd", weights, v).flatten(1))
    torch.testing.assert_close(
        module(x, around)[0], module.out(torch.cat(rows)), rtol=0, atol=EXACT
    )


def test_turning_is_multiplication_of_complex_numbers() -> None:
    """Channel i of a head is the real part and channel i + d/2 the imaginary one."""
    x = torch.randn(2, 9, 3, 8, dtype=torch.float64)
    frequencies = RotaryFrequencies(8).double()
    turned = turn(x.flatten(2), frequencies([4, 5], torch.float64)).view_as(x)
    time = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4], dtype=torch.float64)  # of two utterances
    angles = (time[:, None] * frequencies.values)[:, None]
    expected = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(torch.complex(*turned.chunk(2, -1)), expected, rtol=0, atol=EXACT)


def test_frequencies_stay_precise() -> None:
    """In half precision, frame 1000 would be turned by something else altogether."""
    frequencies, exact = RotaryFrequencies(8), RotaryFrequencies(8).values
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(frequencies.to(dtype).values, exact)
    assert frequencies.double().values.dtype == torch.float64
    model = make("rotary").bfloat16()
    assert model.wav2vec2.encoder.conformer.frequencies.values.dtype == torch.float32
    assert model.wav2vec2.encoder.layers[0].ffn_1.linear_1.weight.dtype == torch.bfloat16


def test_convolution_hears_only_its_utterance() -> None:
    """Parts of a row, and what is silent, against each alone between zeros."""
    torch.manual_seed(0)
    module = scatter(ConvModule(8, kernel=5, dropout=0.0)).double().eval()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    alone = [
        module(y, Surroundings([Part(slice(None), None)], x, None)) for y in x.split((4, 5), dim=1)
    ]
    parts = [Part(slice(0, 4), None), Part(slice(4, 9), None)]
    packed = module(x, Surroundings(parts, x, None))
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=EXACT)
    silent = torch.arange(9)[None] >= 4
    beside = module(x, Surroundings([Part(slice(None), None)], x, silent))
    torch.testing.assert_close(beside[:, :4], alone[0], rtol=0, atol=EXACT)


# --- the model -----------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("norm", ["layer", "group"])
@torch.no_grad()
def test_batches_and_packs_give_what_files_give_alone(kind: str, norm: str) -> None:
    """Whatever stands in the padding."""
    model = make(kind, extractor_norm=norm).double()
    model.wav2vec2.normalize = False  # takes its statistics in float32
    alone = [model(wav[None].double(), output_hidden_states=True) for wav in WAVS]
    batch = model(*padded(), output_hidden_states=True).rows()
    packed = model.forward_packed([wav.double() for wav in WAVS], output_hidden_states=True)
    for x, y, z in zip(alone, batch, packed, strict=True):
        agree(x, y)
        agree(x, z)


@KINDS
@pytest.mark.parametrize("padding", ["mask", "reference"])
@torch.no_grad()
def test_padding_leaks_where_it_shall(kind: str, padding: str) -> None:
    """As in fairseq and transformers: into all but the longest."""
    exact, leaky = make(kind).double(), make(kind, padding=padding).double()
    first, *others = zip(exact(*padded()).rows(), leaky(*padded()).rows(), strict=True)
    torch.testing.assert_close(first[0].logits, first[1].logits, rtol=0, atol=EXACT)
    assert all(float((x.logits - y.logits).abs().max()) > 1e-3 for x, y in others)


@KINDS
def test_every_parameter_that_learns_has_a_gradient(kind: str) -> None:
    """Layer drop included: DDP needs no search. The positions that nobody uses do not learn."""
    model = make(kind, layer_drop=0.5, dropout=0.1).train()
    out = model(WAVS[0][None].repeat(2, 1), torch.tensor([1.0, 0.5]))
    out.logits.square().mean().backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learning
    left = {name for name, _ in model.named_parameters()} - learning
    assert left == {"wav2vec2.mask_embedding"} | {name for name in left if ".positions." in name}
    assert len(left) == 4


def test_autocast_agrees() -> None:
    for kind in ("relative", "rotary"):
        model = make(kind).train()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(WAVS[0][None])
        out.logits.float().square().mean().backward()
        assert (out.logits.float() - model(WAVS[0][None]).logits).norm() < 0.05 * out.logits.norm()


@KINDS
def test_chunks_are_refused(kind: str) -> None:
    model, chunk = make(kind), ChunkConfig(8)
    with pytest.raises(NotStreamable, match=r"conformer look 3 frames ahead .* conformer=None"):
        model(WAVS[0][None], chunk=chunk)
    with pytest.raises(NotStreamable):
        model.forward_packed(WAVS, chunk=chunk)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"conformer": "absolute"},
            r"conformer='absolute', expected one of \('relative', 'rotary'",
        ),
        ({"conformer_kernel": 6}, "conformer_kernel=6, expected an odd number"),
        (
            {"norm_first": False},
            "norm_first=False, adapter_dim=None, lora_rank=None: expected norm_first=True",
        ),
        (
            {"adapter_dim": 4},
            "adapter_dim=4, lora_rank=None: expected norm_first=True, and no adapters",
        ),
        ({"conformer": "rotary", "heads": 8}, "heads=8: sine and cosine need an even 3"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wav2Vec2(**{**SHAPE, "conformer": "relative", **changes})


def test_the_encoder_needs_no_convolutional_positions() -> None:
    encoder = ContextEncoder(12, 2, 3, 24, norm_first=True, conformer="rotary", positions_groups=4)
    x = torch.randn(1, 9, 12)
    before = encoder.eval()(x)[0]
    nn.init.normal_(encoder.positions.conv.bias, std=10.0)
    assert torch.equal(encoder(x)[0], before)


# --- ready for use -------------------------------------------------------------------------------


@pytest.mark.skipif(not products.available(), reason="needs oneDNN on x86")
@KINDS
@torch.inference_mode()
def test_optimized_models_give_the_same_answers(kind: str) -> None:
    plain, fast = make(kind), optimize(make(kind))
    small = optimize(make(kind), "int8")
    kept = optimize(make(kind), "int8", keep_fp32=["projection", "encoder", "extractor"])
    left = {type(m).__name__ for m in small.wav2vec2.encoder.modules()}
    assert not left & {"Linear", "Pointwise", "ConvPositions"}
    assert left >= {"Int8Linear", "Conv1d", "BatchNorm1d"}
    packed = fast.forward_packed(WAVS, output_hidden_states=True)
    for wav, out in zip(WAVS, packed, strict=True):
        expected = plain(wav[None], output_hidden_states=True)
        agree(out, expected, 1e-5)  # float32 in another order
        agree(kept(wav[None], output_hidden_states=True), expected, 1e-5)
        error = small(wav[None]).logits - expected.logits
        assert 0 < error.norm() < 0.1 * expected.logits.norm()


def test_onnx_gives_the_same_answers(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="an optional package: extra onnx or parquet"
    )
    pytest.importorskip("onnxscript", reason="an optional package: extra onnx or parquet")
    model = make("relative", layers=1)
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    wavs = nn.utils.rnn.pad_sequence(WAVS, batch_first=True, padding_value=7.0)
    logits, frames = session.run(None, {"wavs": wavs.numpy(), "lengths": list(LENGTHS)})
    with torch.no_grad():
        for wav, row, n in zip(WAVS, logits, frames, strict=True):
            expected = model(wav[None]).logits[0]  # float32 in another order, values around 3
            torch.testing.assert_close(torch.from_numpy(row[:n]), expected, rtol=0, atol=2e-5)


# --- files ---------------------------------------------------------------------------------------


@KINDS
def test_folders_keep_everything(kind: str, tmp_path: Path) -> None:
    """Ours and transformers': weights, statistics, and configuration."""
    model = make(kind, dropout=0.1)
    save_asr(tmp_path / "ours", model, CharVocabulary(list("abcd")))
    export_hf(model, tmp_path / "hf")
    for back in (open_folder(tmp_path / "ours")[0], load_hf(tmp_path / "hf")):
        assert isinstance(back, Wav2Vec2CTC)
        state, expected = back.state_dict(), model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
        config = json.loads(json.dumps(back.wav2vec2.config))
        assert config == json.loads(json.dumps(model.wav2vec2.config))
        assert not back.wav2vec2.encoder.positions.conv.bias.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu' (expected 'swish')"),
        ({"hidden_act": None}, "hidden_act='gelu' (expected 'swish')"),  # left out: their default
        ({"position_embeddings_type": "absolute"}, "expected one of ('relative', 'rotary')"),
        ({"rotary_embedding_base": 500}, "rotary_embedding_base=500 (expected 10000)"),
        ({"add_adapter": True}, "add_adapter=True (expected False)"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3, the weights have 2"),
        ({"intermediate_size": 48}, "intermediate_size=48, the weights have 32"),
        ({"position_embeddings_type": "rotary"}, "1 missing: "),
        ({"conv_depthwise_kernel_size": 5}, "(24, 1, 7) instead of (24, 1, 5)"),
        ({"model_type": "wav2vec2", "hidden_act": "gelu"}, "unknown: wav2vec2_conformer."),
    ],
)
def test_bad_configurations_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    export_hf(make("relative"), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {k: v for k, v in config.items() if v is not None or k not in changes}
    path.write_text(json.dumps(kept))
    with pytest.raises(CheckpointMismatch, match=re.escape(message)):
        load_hf(tmp_path / "model")
