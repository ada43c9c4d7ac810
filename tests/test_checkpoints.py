"""The format of a checkpoint is told by what is there, and so is its vocabulary."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pytest
import torch
import torchaudio
from safetensors.torch import load_file

from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.fairseq_checkpoints import fairseq_name
from w2v_plugin.hf_export import export_hf
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary
from w2v_plugin.torchaudio_checkpoints import torchaudio_name

NAME = "wav2vec2_fairseq_base_ls960_asr_ls960.pth"  # a file that torchaudio publishes


def ctc(outputs: int = 32) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape = {"dim": 64, "layers": 1, "heads": 1, "ffn_dim": 32, "channels": (8,) * 7}
    body = Wav2Vec2(**shape, normalize=False, normalize_eps=1e-5, positions_kernel=8)
    return Wav2Vec2CTC(body, vocab_size=outputs).eval()


def torchaudio_state(model: Wav2Vec2CTC) -> dict[str, torch.Tensor]:
    names = {key: torchaudio_name(key) for key in model.state_dict()}
    return {names[key]: value for key, value in model.state_dict().items() if names[key]}


def answer(model: Wav2Vec2CTC) -> torch.Tensor:
    wav = torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(wav).logits


def test_a_folder_or_its_weights_file_is_transformers(tmp_path: Path, caplog) -> None:
    """With the report in the log."""
    export_hf(model := ctc(), tmp_path / "hf", CharVocabulary())
    with caplog.at_level(logging.INFO, logger="w2v_plugin"):
        for source in (tmp_path / "hf", tmp_path / "hf" / "model.safetensors"):
            loaded = load_checkpoint(str(source))
            assert torch.equal(answer(loaded), answer(model))
            assert load_vocabulary(source, loaded).lab2ind == CharVocabulary().lab2ind
    assert "in the format of transformers -> Wav2Vec2CTC" in caplog.text


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_state_dict_is_torchaudios(tmp_path: Path, prefix: str) -> None:
    """Heads of 64 channels; no normalization for group norm; eps as in its bundles."""
    state = torchaudio_state(model := ctc())
    state = {prefix + key: value for key, value in state.items()}
    torch.save(state, tmp_path / "own.pt")
    loaded = load_checkpoint(tmp_path / "own.pt")
    assert loaded.load_report.format == "torchaudio" and not loaded.wav2vec2.normalize
    assert torch.equal(answer(loaded), answer(model))
    with pytest.raises(FileNotFoundError, match="no file name that torchaudio publishes"):
        load_vocabulary(tmp_path / "own.pt", loaded)


@pytest.mark.parametrize("outputs", [32, 29])
def test_a_published_file_loses_the_outputs_that_nobody_trained(
    tmp_path: Path, outputs: int
) -> None:
    """32 in the file, 29 in torchaudio's pipeline; a state dict saved from there has 29 already."""
    torch.save(torchaudio_state(model := ctc(outputs)), tmp_path / NAME)
    loaded = load_checkpoint(tmp_path / NAME)
    rows = [row for row in range(32) if outputs == 29 or row not in (1, 2, 3)][:29]
    # fewer rows may be multiplied in another order: the rounding of float32
    torch.testing.assert_close(answer(loaded), answer(model)[..., rows], rtol=1e-5, atol=1e-6)
    labels = torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H.get_labels()
    vocabulary = load_vocabulary(tmp_path / NAME, loaded)
    assert tuple(vocabulary.ind2lab[i] for i in range(29)) == labels
    assert vocabulary.get_blank_index() == 0 and vocabulary.decode_tokens([0, 7, 1, 8]) == "I H"


def test_a_file_with_a_configuration_is_fairseqs(tmp_path: Path) -> None:
    model = ctc(5)
    state = {fairseq_name(key, fine_tuned=True): v for key, v in model.state_dict().items()}
    convs = [(8, k, s) for k, s in zip((10, 3, 3, 3, 3, 2, 2), (5, *(2,) * 6), strict=True)]
    body = {
        "conv_feature_layers": str(convs),
        "encoder_embed_dim": 64,
        "encoder_layers": 1,
        "encoder_attention_heads": 1,
        "encoder_ffn_embed_dim": 32,
        "conv_pos": 8,
    }
    args = argparse.Namespace(w2v_args=argparse.Namespace(**body), normalize=False)
    torch.save({"args": args, "model": state}, tmp_path / "tuned.pt")
    loaded = load_checkpoint(tmp_path / "tuned.pt")
    assert torch.equal(answer(loaded), answer(model))
    with pytest.raises(FileNotFoundError, match=r"dict\.ltr\.txt"):
        load_vocabulary(tmp_path / "tuned.pt", loaded)
    (tmp_path / "dict.ltr.txt").write_text("| 9\n")
    assert load_vocabulary(tmp_path / "tuned.pt", loaded).get_blank_index() == 0


def test_damaged_files_say_so(tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(CheckpointMismatch, match=r"half\.pt: .* Is the file complete"):
        load_checkpoint(tmp_path / "half.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointMismatch, match="not the names of a Wav2Vec2Model"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_language_needs_adapters(tmp_path: Path) -> None:
    export_hf(ctc(), tmp_path / "hf")
    with pytest.raises(ValueError, match="Wav2Vec2CTC without language adapters"):
        load_checkpoint(tmp_path / "hf", language="eng")


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    """Special symbols that the head cannot say are the exception: some tokenizers add them."""
    folder = tmp_path / "hf"
    export_hf(ctc(), folder, CharVocabulary())
    model = load_checkpoint(folder)
    export_hf(ctc(), tmp_path / "short", CharVocabulary("ABC"))
    with pytest.raises(ValueError, match=r"8 symbols for 32 outputs .* without a symbol: 8, 9"):
        load_vocabulary(tmp_path / "short", model)
    export_hf(ctc(), tmp_path / "long", CharVocabulary([*CharVocabulary().letters, "é"]))
    with pytest.raises(ValueError, match=r"33 symbols for 32 outputs .* without an output: é"):
        load_vocabulary(tmp_path / "long", model)
    (folder / "added_tokens.json").write_text('{"<extra>": 32}')
    assert len(load_vocabulary(folder, model)) == 32


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    """Every tensor bit for bit, against the file itself."""
    export_hf(ctc(), tmp_path / "hf")
    loaded = load_checkpoint(tmp_path / "hf")
    state, renamed = load_file(tmp_path / "hf" / "model.safetensors"), loaded.load_report.renamed
    own = loaded.state_dict()
    assert len(own) == len(state)
    assert all(torch.equal(own[renamed.get(key, key)], value) for key, value in state.items())
