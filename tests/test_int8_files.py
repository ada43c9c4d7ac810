"""INT8 files: a quarter of the size, read like any other, the answers of INT8 from float32."""

import pytest
import torch

from w2v_plugin import Wav2Vec2, Wav2Vec2ASR, Wav2Vec2CTC, Wav2Vec2Encoder
from w2v_plugin.compression import optimize
from w2v_plugin.conversion import convert, open_folder
from w2v_plugin.folders import load_pretrained, save_asr, save_pretrained
from w2v_plugin.int8_files import SCALE, shrink, widen
from w2v_plugin.text import CharVocabulary

SHAPE = {"dim": 64, "layers": 2, "heads": 4, "ffn_dim": 128, "channels": (32,) * 7}
WAVS = 0.1 * torch.randn(2, 12000, generator=torch.Generator().manual_seed(4))
CPU = {"device": "cpu"}


@pytest.fixture
def model() -> Wav2Vec2CTC:
    torch.manual_seed(0)
    return Wav2Vec2CTC(Wav2Vec2(**SHAPE), 32).eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_every_matrix_is_shrunk_and_nothing_else(model) -> None:
    """Norms, biases, the mask embedding and the first convolution stay."""
    state = model.wav2vec2.state_dict()
    small = shrink(state)
    quantized = {key.removesuffix(SCALE) for key in small if key.endswith(SCALE)}
    assert "encoder.positions.conv.weight" in quantized  # folded
    assert {key for key in quantized if key.startswith("extractor")} == {
        f"extractor.layers.{i}.conv.weight" for i in range(1, 7)
    }
    for key, tensor in small.items():
        if key not in quantized and not key.endswith(SCALE):
            assert torch.equal(tensor, state[key]), key


def test_values_are_within_half_a_step(model) -> None:
    """And the largest of each output is exact."""
    weight = model.wav2vec2.encoder.layers[0].ffn_in.weight.detach()
    small = shrink({"weight": weight, "x.weight": weight})
    widen(small)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((small["x.weight"] - weight).abs() <= 0.5001 * step).all())


def test_a_kept_part_stays(model) -> None:
    state = model.wav2vec2.state_dict()
    small = shrink(state, keep_fp32=["encoder.layers.1"])
    key = "encoder.layers.{}.attention.q.weight"
    assert torch.equal(small[key.format(1)], state[key.format(1)])
    assert small[key.format(0)].dtype == torch.int8


def test_shrinking_twice_changes_nothing(model) -> None:
    """What `optimize` finds in a file is what was written."""
    once = shrink(model.wav2vec2.state_dict())
    wide = dict(once)
    widen(wide)
    again = shrink(wide)
    for key, tensor in once.items():
        if tensor.dtype == torch.int8:
            assert torch.equal(tensor, again[key]), key


def test_a_folder_is_a_quarter_and_transcribes_alike(model, tmp_path) -> None:
    """Precision and kept parts come with the folder; positions are quantized in the file only."""
    save_asr(tmp_path / "full", model, CharVocabulary())
    report = convert(tmp_path / "full", tmp_path / "small", to="ours", precision="int8")
    assert report.read
    sizes = [(tmp_path / kind / "wav2vec2.ckpt").stat().st_size for kind in ("small", "full")]
    assert sizes[0] < 0.4 * sizes[1]  # tiny matrices: norms, biases and the container weigh more
    asr = Wav2Vec2ASR.from_hparams(tmp_path / "small", run_opts=CPU)
    assert asr.choice.precision == "int8"
    with torch.inference_mode():
        exact = model(WAVS).logits
        direct = optimize(open_folder(tmp_path / "full")[0], "int8")(WAVS).logits
        got = asr.mods["model"](WAVS).logits
    assert relative(got, exact) < 0.1
    assert relative(got, direct) < 0.05
    auto = Wav2Vec2ASR.from_hparams(tmp_path / "small", run_opts=CPU | {"precision": "auto"})
    assert str(auto.choice) == "cpu, int8 (as the weights are stored)"
    full = Wav2Vec2ASR.from_hparams(tmp_path / "small", run_opts=CPU | {"precision": "fp32"})
    assert full.choice.precision == "fp32"
    assert relative(full.mods["model"](WAVS).logits, exact) < 0.05


def test_kept_parts_are_remembered_by_the_folder(model, tmp_path) -> None:
    save_pretrained(tmp_path, model.wav2vec2, precision="int8", keep_fp32=["encoder.layers.0"])
    encoder = Wav2Vec2Encoder.from_hparams(tmp_path, run_opts=CPU)
    kinds = [type(layer.ffn_in).__name__ for layer in encoder.mods["wav2vec2"].encoder.layers]
    assert kinds == ["PackedLinear", "Int8Linear"]


def test_fine_tuning_starts_from_it(model, tmp_path) -> None:
    save_pretrained(tmp_path, model.wav2vec2, precision="int8")
    other = Wav2Vec2(**SHAPE).eval()
    load_pretrained(tmp_path, other)
    assert relative(other(WAVS).context, model.wav2vec2(WAVS).context) < 0.05


def test_what_cannot_be_is_refused(model, tmp_path) -> None:
    save_asr(tmp_path / "full", model, CharVocabulary())
    with pytest.raises(ValueError, match='add to="ours"'):
        convert(tmp_path / "full", tmp_path / "a", precision="int8")
    with pytest.raises(ValueError, match=r"expected .fp32. or .int8. for a file"):
        convert(tmp_path / "full", tmp_path / "a", to="ours", precision="bf16")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="optimized, which cannot be saved"):
        save_pretrained(tmp_path / "b", optimize(model).wav2vec2)


def test_a_damaged_vocabulary_is_noticed(model, tmp_path) -> None:
    """SpeechBrain would go on with the default one."""
    save_asr(tmp_path, model, CharVocabulary("AB"))
    (tmp_path / "tokenizer.ckpt").write_text("{{{")
    with pytest.raises(RuntimeError, match=r"tokenizer\.ckpt: damaged"):
        Wav2Vec2ASR.from_hparams(tmp_path, run_opts=CPU)
