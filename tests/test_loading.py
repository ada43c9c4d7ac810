"""Interface: options reach the model, and every way to run it gives the same answers."""

from __future__ import annotations

import logging

import pytest
import soundfile
import torch
from torch import Tensor

from w2v_plugin import products
from w2v_plugin.audio import read_audio
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import BadAudio
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.hf_export import export_hf
from w2v_plugin.interfaces import Wav2Vec2ASR, Wav2Vec2Encoder
from w2v_plugin.loading import Interface
from w2v_plugin.model import PADDING_MODES, Wav2Vec2
from w2v_plugin.overlap import Windows
from w2v_plugin.text import CharVocabulary

needs_packing = pytest.mark.skipif(not products.available(), reason="needs oneDNN on x86")


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def make(norm: str = "group", **options) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape = {"dim": 32, "layers": 2, "heads": 4, "ffn_dim": 64, "channels": (16,) * 7}
    shape |= {"positions_kernel": 16, "positions_groups": 4, "extractor_norm": norm}
    model = Wav2Vec2CTC(Wav2Vec2(**shape, **options), vocab_size=32).eval()
    with torch.no_grad():  # large weights, no favorite symbol: it says something
        model.head.weight.normal_(std=3.0)
        model.head.bias -= model(noise(16000)[None]).logits.mean((0, 1))
    return model


def make_asr(model: Wav2Vec2CTC | None = None, **run_opts) -> Wav2Vec2ASR:
    run_opts = {"device": "cpu"} | run_opts
    return Wav2Vec2ASR({"model": model or make()}, {"tokenizer": CharVocabulary()}, run_opts)


def make_encoder(**run_opts) -> Wav2Vec2Encoder:
    return Wav2Vec2Encoder({"wav2vec2": make().wav2vec2}, {}, {"device": "cpu"} | run_opts)


def kinds(interface: Interface) -> set[str]:
    return {type(module).__name__ for module in interface.mods.modules()}


@pytest.fixture
def files(tmp_path):
    """Six wav files of different lengths, not sorted by it."""
    paths = []
    for i, samples in enumerate([9000, 16000, 400, 12345, 7000, 30000]):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], noise(samples, i).numpy(), 16000, subtype="FLOAT")
    return paths


# --- options -------------------------------------------------------------------------------------


@needs_packing
def test_options_reach_the_model(caplog) -> None:
    """Precision, parts to keep, device; one line says what was chosen."""
    with caplog.at_level(logging.INFO, "w2v_plugin.loading"):
        asr = make_asr(precision="int8", keep_fp32=["encoder.layers.0"])
    assert {"Int8Linear", "Int8Conv", "PackedLinear"} <= kinds(asr)
    assert caplog.messages == ["Wav2Vec2ASR on cpu, int8 (as asked)"]
    assert str(asr.choice) == "cpu, int8 (as asked)" and str(asr.device) == "cpu"
    assert "Int8Linear" not in kinds(make_asr())
    run_opts = {"device": "cpu", "precision": "int8"}
    make_asr(**run_opts)
    assert run_opts == {"device": "cpu", "precision": "int8"}  # the caller's own


@needs_packing
def test_options_of_all_ways_to_load(tmp_path) -> None:
    """Model folders by run_opts, checkpoints by name."""
    save_asr(tmp_path / "asr", make(), CharVocabulary())
    save_pretrained(tmp_path / "pretrained", make().wav2vec2)
    export_hf(make().wav2vec2, tmp_path / "hf")
    options = {"precision": "int8", "keep_fp32": ["projection"]}
    run_opts = options | {"device": "cpu"}
    loaded = [
        Wav2Vec2ASR.from_hparams(tmp_path / "asr", run_opts=run_opts),
        Wav2Vec2Encoder.from_hparams(tmp_path / "pretrained", run_opts=run_opts),
        Wav2Vec2Encoder.from_checkpoint(tmp_path / "hf", device="cpu", **options),
    ]
    for interface in loaded:
        assert interface.choice.precision == "int8"
        assert {"Int8Linear", "PackedLinear"} <= kinds(interface)
    x, y, z = (model.mods[model.MODULES_NEEDED[0]] for model in loaded)
    wav = noise(9000)[None]
    with torch.inference_mode():
        assert torch.equal(x(wav).context, y(wav).context)
        assert torch.equal(y(wav).context, z(wav).context)


@pytest.mark.parametrize(
    ("run_opts", "message"),
    [
        ({"precision": "int4"}, "precision='int4', expected one of"),
        ({"device": "tpu"}, "device='tpu' cannot be used here"),
        ({"keep_fp32": ["head"]}, "keep_fp32: no part is called head"),
        ({"precision": "int8", "compile": True}, "compile=True works with"),
    ],
)
def test_wrong_options_are_refused(run_opts, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_asr(**run_opts)


@needs_packing
def test_a_model_serves_one_interface() -> None:
    """A second one would pack what is packed."""
    model = make()
    make_asr(model)
    with pytest.raises(ValueError, match=r"optimized already\. Load it again"):
        Wav2Vec2Encoder({"wav2vec2": model.wav2vec2}, {}, {"device": "cpu"})


def test_a_folder_without_head_cannot_transcribe() -> None:
    with pytest.raises(ValueError, match=r"Wav2Vec2ASR needs modules \['model'\], got"):
        Wav2Vec2ASR({"wav2vec2": make().wav2vec2}, {"tokenizer": CharVocabulary()})


# --- one answer ----------------------------------------------------------------------------------


@needs_packing
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_batch_says_what_its_files_say_alone(files, norm, precision) -> None:
    """Texts, tokens, times and vectors, in 8 bits, too."""
    asr = make_asr(make(norm), precision=precision)
    alone = [asr.transcribe_file(path) for path in files]
    assert len(set(alone)) == len(alone)
    for batch_s in (0.1, 1.7, 60):
        assert list(asr.transcribe_files(files, batch_s=batch_s)) == list(
            zip(files, alone, strict=True)
        )
    wavs = [read_audio(path) for path in files]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lengths = torch.tensor([len(wav) for wav in wavs])
    assert asr.transcribe_batch(batch, lengths / lengths.max())[0] == alone
    encoder = make_encoder(precision=precision)
    for (_, vectors), path in zip(encoder.encode_files(files), files, strict=True):
        assert torch.equal(vectors, encoder.encode_file(path))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_accelerators_get_padded_batches_and_say_the_same(files, monkeypatch, norm) -> None:
    """What cannot be packed is sorted and padded; padding="exact" makes it no difference."""
    asr, plain = make_asr(make(norm)), make(norm)
    expected = list(asr.transcribe_files(files, batch_s=2.0))
    monkeypatch.setattr(Interface, "_packs", False)
    assert list(asr.transcribe_files(files, batch_s=2.0)) == expected
    wavs = [read_audio(path) for path in files]
    for logits, wav in zip(asr.logits(wavs, None), wavs, strict=True):
        right = plain(wav[None]).logits[0].detach()
        torch.testing.assert_close(logits, right, rtol=0, atol=1e-4)  # weights of 3


@pytest.mark.parametrize("padding", PADDING_MODES)
def test_padding_means_what_it_says(padding) -> None:
    """A model that shall hear padding gets it: its batch is not its files."""
    asr, plain, wavs = (
        make_asr(make(padding=padding)),
        make(padding=padding),
        [noise(8000), noise(20000)],
    )
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    expected = plain(batch, torch.tensor([0.4, 1.0])).rows()
    answers = asr.logits(wavs, None)
    for logits, right in zip(answers, expected, strict=True):
        torch.testing.assert_close(logits, right.logits[0].detach(), rtol=0, atol=1e-4)
    alone = asr.logits(wavs[:1], None)[0]
    assert torch.allclose(alone, answers[0], atol=1e-4) == (padding == "exact")


def test_what_is_compiled_is_used(monkeypatch) -> None:
    """The compiler sees `forward`; batches must go there."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: None)
    asr, calls = make_asr(compile=True), []
    model = asr.mods["model"]
    model.register_forward_hook(lambda *_: calls.append(1))
    expected = make_asr().logits([noise(8000), noise(5000, 1)], None)
    answers = asr.logits([noise(8000), noise(5000, 1)], None)
    assert calls == [1]
    for x, y in zip(answers, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


# --- bad files -----------------------------------------------------------------------------------


def test_a_long_file_that_breaks_off_does_not_stop_the_others(files, tmp_path) -> None:
    """Found while its beginning is transcribed already; texts and vectors of the others stay."""
    bad = tmp_path / "bad.wav"
    wav = noise(30 * 16000)
    wav[25 * 16000] = float("nan")
    soundfile.write(bad, wav.numpy(), 16000, "FLOAT")
    asr, encoder = make_asr(), make_encoder()
    asr.windows = encoder.windows = Windows(4.0, 1.0)
    paths = [*files[:2], bad, *files[2:]]
    for call in (asr.transcribe_files, asr.transcripts, encoder.encode_files):
        results = list(call(paths, batch_s=100.0))
        assert [path for path, _ in results] == paths
        bad_ones = [path for path, result in results if isinstance(result, BadAudio)]
        assert bad_ones == [bad]
    with pytest.raises(BadAudio, match=r"bad\.wav: holds NaN"):
        asr.transcribe_file(bad)


def test_overflow_is_an_error(monkeypatch) -> None:
    """No text from logits that are no numbers."""
    asr = make_asr()
    with torch.no_grad():
        asr.mods["model"].head.bias[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r'gave NaN or infinity in fp32.*"bf16"'):
        asr.transcribe_batch(noise(8000)[None])
