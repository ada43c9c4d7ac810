"""The ONNX file gives our answers in onnxruntime, for other batches than it was traced with."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.decoding import greedy
from w2v_plugin.model import PADDING_MODES, Wav2Vec2
from w2v_plugin.onnx_export import Graph, export_onnx
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.text import CharVocabulary

onnx = pytest.importorskip("onnx", reason="an optional package: extra onnx or parquet")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="an optional package: extra onnx or parquet"
)
pytest.importorskip("onnxscript", reason="an optional package: extra onnx or parquet")

SMALL: dict[str, Any] = {
    "dim": 32,
    "layers": 2,
    "heads": 4,
    "ffn_dim": 48,
    "channels": (16,) * 7,
    "positions_kernel": 15,
    "positions_groups": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "group": {},
    "layer": {
        "extractor_norm": "layer",
        "conv_bias": True,
        "norm_first": True,
        "normalize": False,
        "adapter_dim": 4,
    },
}
BATCHES = [[16_000], [720], [400], [20_000, 20_000], [32_123, 400, 9_999, 719], [5_000] * 5]
TOLERANCE = 2e-5  # float32 rounding of values around 3, in another order of summation


def make(family: str, **options: Any) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    wav2vec2 = Wav2Vec2(**SMALL, **FAMILIES[family], **options)
    for layer in wav2vec2.extractor.layers:
        if layer.norm is not None:  # ones and zeros would hide an exchanged weight
            torch.nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.norm.bias, -0.5, 0.5)
    return Wav2Vec2CTC(wav2vec2, vocab_size=32).eval()


def padded(lengths: list[int], extra: int = 0, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Noise of several loudnesses and offsets, and the valid samples of each row."""
    generator = torch.Generator().manual_seed(sum(lengths))
    wavs = torch.full((len(lengths), max(lengths) + extra), fill)
    for i, n in enumerate(lengths):
        wavs[i, :n] = torch.randn(n, generator=generator) * 0.3 ** (i + 1) + 0.1 * i
    return wavs, torch.tensor(lengths)


def run(path: Path, wavs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"wavs": wavs.numpy(), "lengths": lengths.numpy()})
    return tuple(map(torch.from_numpy, outputs))


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wav2Vec2CTC, Path]:
    """A group-norm CTC model with a vocabulary, and its file."""
    model, path = make("group"), tmp_path_factory.mktemp("group") / "new" / "model.onnx"
    export_onnx(model, path, vocabulary=CharVocabulary())
    return model, path


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wav2Vec2, Path]:
    """A layer-norm model with adapters and no head, in training mode; its file as beyond 2 GB."""
    from torch.onnx._internal.exporter import _onnx_program

    model, path = make("layer", dropout=0.5).wav2vec2, tmp_path_factory.mktemp("layer") / "m.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
        export_onnx(model.train(), path)
    return model, path


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("family", ["group", "layer"])
def test_onnxruntime_gives_the_answer_of_each_file_alone(
    family: str, lengths: list[int], request: pytest.FixtureRequest
) -> None:
    """Whatever stands in the padding, NaN included."""
    model, path = request.getfixturevalue(family)
    wavs, _ = padded(lengths, extra=333, fill=float("nan"))
    values, frames = run(path, wavs, torch.tensor(lengths))
    model.eval()
    for i, n in enumerate(lengths):
        with torch.no_grad():
            out = model(wavs[i : i + 1, :n])
        ours = out.context if out.logits is None else out.logits
        assert frames[i] == ours.shape[1]
        torch.testing.assert_close(values[i, : frames[i]], ours[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["group", "layer"])
def test_rows_without_a_frame_disturb_no_other(family: str, request: pytest.FixtureRequest) -> None:
    """Less than 25 ms, nothing at all, and lengths that cannot be."""
    _, path = request.getfixturevalue(family)
    wavs, _ = padded([8_000] * 4)
    values, frames = run(path, wavs, torch.tensor([8_000, 399, 0, 9_000]))
    assert frames.tolist() == [24, 0, 0, 24]
    assert values.isfinite().all()
    alone, _ = run(path, wavs[:1], torch.tensor([8_000]))
    torch.testing.assert_close(values[:1], alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_traced_is_the_model(family: str, padding: str) -> None:
    """In float64, where the two differ by the order of summation only, in every padding mode."""
    model = make(family, padding=padding).double()
    wavs, lengths = padded([12_000, 7_000, 5_001], fill=1.0)
    wavs = wavs.double()
    with torch.no_grad():
        out = model(wavs, lengths / wavs.shape[1])
        values, frames = Graph(model).eval()(wavs, lengths)
    assert torch.equal(frames, out.frame_lengths)
    assert out.logits is not None
    for mine, yours, n in zip(values, out.logits, frames, strict=True):
        torch.testing.assert_close(mine[:n], yours[:n], rtol=1e-10, atol=1e-10)


def test_the_file_says_what_is_needed_to_decode(group: tuple[Wav2Vec2CTC, Path]) -> None:
    """From the file alone, with onnxruntime and json, to the text that we read."""
    model, path = group
    session = onnxruntime.InferenceSession(path)
    info = session.get_modelmeta().custom_metadata_map
    assert {k: v for k, v in info.items() if k != "vocabulary"} == {
        "sample_rate": "16000",
        "hop": "320",
        "receptive_field": "400",
        "padding": "exact",
        "blank": "0",
        "word_boundary": "|",
    }
    wavs, lengths = padded([40_000])
    logits, _ = session.run(None, {"wavs": wavs.numpy(), "lengths": lengths.numpy()})
    symbols = {index: symbol for symbol, index in json.loads(info["vocabulary"]).items()}
    best = logits[0].argmax(-1)
    kept = best[np.append(True, best[1:] != best[:-1]) & (best != int(info["blank"]))]
    text = "".join(" " if symbols[i] == info["word_boundary"] else symbols[i] for i in kept)
    with torch.no_grad():
        out = model(wavs)
    vocabulary = CharVocabulary()
    tokens = greedy(out.logits, out.frame_lengths, vocabulary.get_blank_index())[0]
    assert tokens
    assert kept.tolist() == tokens
    # the random model says special symbols, too, which are not text
    letters = [i for i in tokens if not vocabulary.is_special(symbols[i])]
    assert "".join(symbols[i] for i in letters).replace("|", " ").split() == (
        vocabulary.decode_tokens(tokens).split()
    )
    assert len(text) >= len(letters)


def test_the_file_is_small_sound_and_anonymous(group: tuple[Wav2Vec2CTC, Path]) -> None:
    """Named axes, folded weight norm, nothing random, no traces of this machine, model intact."""
    model, path = group
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*file.graph.input, *file.graph.output)
    }
    assert axes == {
        "wavs": ["batch", "samples"],
        "lengths": ["batch"],
        "logits": ["batch", "frames", 32],
        "frame_lengths": ["batch"],
    }
    names = [tensor.name for tensor in file.graph.initializer]
    assert "model.wav2vec2.encoder.positions.weight" in names
    assert not [name for name in names if "parametrizations" in name or "mask_embedding" in name]
    assert not {"Dropout", "RandomNormalLike", "RandomUniformLike"} & {
        node.op_type for node in file.graph.node
    }
    content = path.read_bytes()
    assert b".py" not in content and str(Path(__file__).parent.parent).encode() not in content
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "wav2vec2.encoder.positions.conv.parametrizations.weight.original0" in model.state_dict()
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_a_model_stays_in_its_mode(layer: tuple[Wav2Vec2, Path]) -> None:
    """Tracing works on a copy that shares the weights."""
    model = layer[0].train()
    traced = Graph(model).eval()
    assert all(module.training for module in model.modules())
    assert traced.model.projection.linear.weight is model.projection.linear.weight


def test_weights_beyond_2_gb_lie_beside_the_file(layer: tuple[Wav2Vec2, Path]) -> None:
    """Where onnxruntime finds them (above), though both were written in another folder."""
    _, path = layer
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size > 0
    with pytest.raises(FileExistsError, match=r"m\.onnx\.data exists"):
        export_onnx(make("layer"), path.with_name("m.onnx.data"))


def test_nothing_is_left_of_a_file_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after some bytes; before that, everything went well."""

    class Program:
        model = None

        def save(self, path: Path) -> None:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: Program())
    monkeypatch.setattr("w2v_plugin.onnx_export._label", lambda *args: None)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(make("group"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("precious")
    with pytest.raises(FileExistsError, match="Choose another name"):
        export_onnx(make("group"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "precious"


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    body = Wav2Vec2(**SMALL)
    with pytest.raises(ValueError, match=r"Wav2Vec2Pretraining.*export `model\.wav2vec2`"):
        export_onnx(Wav2Vec2Pretraining(body, GumbelQuantizer(16)), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another precision"):
        export_onnx(make("group").half(), path)
    with pytest.raises(ValueError, match="no outputs to name"):
        export_onnx(body, path, vocabulary=CharVocabulary())
    with pytest.raises(ValueError, match="8 symbols for 32 outputs"):
        export_onnx(make("group"), path, vocabulary=CharVocabulary("ABC"))
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'onnxscript: pip install "w2v_plugin\[onnx\]"'):
        export_onnx(make("group"), tmp_path / "model.onnx")
