"""Published models that shall stream: nearly the same function, without a look at the whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.conversion import load_pretraining, open_any
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import BadAudio, CheckpointMismatch, NotStreamable
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.hf_export import export_hf
from w2v_plugin.inputs import CannotStart
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.streamable import likeness, to_streamable
from w2v_plugin.text import CharVocabulary

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes"))
import make_streamable

FAMILIES = {
    "base": {},
    "base with biases": {"conv_bias": True},
    "base, as it is": {"normalize": False},
    "large": {"extractor_norm": "layer", "conv_bias": True, "norm_first": True},
}


def make(family: str = "base", **changes) -> Wav2Vec2:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (16,) * 7}
    shape |= {"positions_kernel": 8, "positions_groups": 4}
    model = Wav2Vec2(**shape | FAMILIES[family] | changes).eval()
    for name, parameter in model.extractor.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    return model


def speech(seconds: float, seed: int, loudness: float = 0.05) -> Tensor:
    """Noise of one color, loud and quiet in turn."""
    generator = torch.Generator().manual_seed(seed)
    samples = int(seconds * 16_000)
    noise = torch.randn(samples + 2, generator=generator).unfold(0, 3, 1).mean(1)
    return loudness * noise * (1 + torch.sin(torch.arange(samples) / 2000))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_streams_and_does_nearly_the_same(family: str) -> None:
    """On audio like that which was measured."""
    model = make(family)
    copy = to_streamable(model, [speech(4, seed) for seed in range(3)])
    found = likeness(model, copy, [speech(2, 7)])
    assert found.latents > 0.99 and found.context > 0.99
    state, wav, chunk = copy.init_state(), speech(1, 8), ChunkConfig(8, 16)
    out, _ = copy.step(wav[None], state, chunk, last=True)
    with torch.no_grad():
        expected = copy(wav[None], chunk=chunk).context
    assert float((out.context - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_exact_on_what_was_measured(family: str) -> None:
    """One utterance has the statistics of that utterance."""
    model, wav = make(family).double(), speech(2, 1).double()
    copy = to_streamable(model, [wav]).double()
    with torch.no_grad():
        before, after = (m.extract(wav[None])[0] for m in (model, copy))
    tolerance = 5e-3 if family == "large" else 1e-5  # its first norm adds 1e-5 to the variance,
    assert float((before - after).abs().max()) < tolerance  # which is 400 times smaller now


def test_loudness_is_that_of_the_audio() -> None:
    """The same audio at other levels: the copies answer as one."""
    model, wav = make("base"), speech(2, 1)
    quiet, loud = (to_streamable(model, [level * wav]) for level in (0.1, 1.0))
    with torch.no_grad():
        one, other = quiet.extract(0.1 * wav[None])[0], loud.extract(wav[None])[0]
    assert float((one - other).abs().max()) < 1e-2


@pytest.mark.parametrize("wavs", [[], [torch.zeros(16_000)], [torch.zeros(0)]])
def test_silence_teaches_nothing(wavs: list[Tensor]) -> None:
    with pytest.raises(BadAudio, match="half a minute"):
        to_streamable(make(), wavs)


def test_a_conformer_cannot() -> None:
    with pytest.raises(NotStreamable, match="conformer"):
        to_streamable(make("large", conformer="rotary"), [speech(1, 0)])


def test_transformers_has_no_such_model(tmp_path: Path) -> None:
    copy = to_streamable(make(), [speech(1, 0)])
    with pytest.raises(CheckpointMismatch, match="extractor_norm='none'"):
        export_hf(copy, tmp_path / "hf")
    with pytest.raises(CheckpointMismatch, match="causal_positions=True"):
        export_hf(make(causal_positions=True), tmp_path / "hf")


# --- the recipe ----------------------------------------------------------------------------------


@pytest.fixture
def audio(tmp_path: Path) -> str:
    folder = tmp_path / "audio"
    folder.mkdir()
    for seed in range(4):
        soundfile.write(folder / f"{seed}.wav", speech(2, seed).numpy(), 16_000)
    return str(folder)


def test_a_fine_tuned_model_keeps_its_head(audio: str, tmp_path: Path, capsys) -> None:
    model = Wav2Vec2CTC(make(), vocab_size=32).eval()
    save_asr(tmp_path / "model", model, CharVocabulary())
    new = tmp_path / "streamable"
    make_streamable.main([str(tmp_path / "model"), str(new), "--audio", audio, "--seconds", "4"])
    found, vocabulary = open_any(new)
    assert vocabulary is not None and torch.equal(found.head.weight, model.head.weight)
    found.wav2vec2.check_streamable()
    alike = re.search(
        r"on other audio: latents ([\d.]+), context ([\d.]+)", capsys.readouterr().out
    )
    assert alike is not None and min(map(float, alike.groups())) > 0.99


def test_a_pretrained_model_keeps_its_codes(audio: str, tmp_path: Path, capsys) -> None:
    model = Wav2Vec2Pretraining(make(), GumbelQuantizer(16, codes=20, dim=8), dim=8).eval()
    save_pretrained(tmp_path / "model", model)
    new = tmp_path / "streamable"
    make_streamable.main([str(tmp_path / "model"), str(new), "--audio", audio])
    found = load_pretraining(new)
    assert torch.equal(found.quantizer.codebook, model.quantizer.codebook)
    found.wav2vec2.check_streamable()
    assert "there was no more" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["base", "large"])
def test_a_model_of_transformers(family: str, audio: str, tmp_path: Path) -> None:
    """With its vocabulary. What is written streams as it is."""
    model = Wav2Vec2CTC(make(family), vocab_size=32).eval()
    export_hf(model, tmp_path / "hf", CharVocabulary())
    make_streamable.main([str(tmp_path / "hf"), str(tmp_path / "new"), "--audio", audio])
    found, vocabulary = open_any(tmp_path / "new")
    assert vocabulary is not None and vocabulary.letters == CharVocabulary().letters
    wav, chunk = speech(1, 9)[None], ChunkConfig(8, 16)
    out, _ = found.eval().step(wav, found.init_state(), chunk, last=True)
    with torch.no_grad():
        expected = found(wav, chunk=chunk).logits
    assert float((out.logits - expected).abs().max()) < 1e-5


def test_a_folder_is_not_overwritten(audio: str, tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"exists\. Choose another folder"):
        make_streamable.main([str(tmp_path / "model"), str(tmp_path), "--audio", audio])


def test_audio_to_fit_to_and_other_audio_to_compare(audio: str) -> None:
    """Four files of 2 s: no more of each than asked for, and none twice."""
    fit, compare = make_streamable.read_some([audio], 1.0)
    assert [len(wav) for wav in (*fit, *compare)] == [16_000, 16_000]
    assert not torch.equal(fit[0], compare[0])
    fit, compare = make_streamable.read_some([audio], 3.0)
    assert [len(fit), len(compare)] == [2, 2]
    fit, compare = make_streamable.read_some([audio], 30.0)
    assert [len(fit), len(compare)] == [4, 0]


def test_clicks_count_for_nothing() -> None:
    """Pieces that are shorter than the first convolution have no statistics."""
    wavs = [speech(1, 0)]
    one, other = to_streamable(make(), wavs), to_streamable(make(), [*wavs, torch.zeros(9)])
    weights = [copy.extractor.layers[0].conv.weight for copy in (one, other)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=0)  # 9 samples of 16 000 in the loudness
