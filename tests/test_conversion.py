"""Conversion: bit-exact there and back, complete or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
from w2v_plugin.conversion import convert, open_folder
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.hf_export import export_hf
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.text import CharVocabulary

VOCABULARIES = {
    "ours": CharVocabulary("ab"),
    "last": CharVocabulary.from_symbols(
        {"b": 0, "|": 1, "é": 2, "a": 3, "<unk>": 4, "'": 5, "[PAD]": 6}, "[PAD]"
    ),
}


def tiny(**changes) -> Wav2Vec2:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    return Wav2Vec2(**{**shape, "positions_kernel": 8, "positions_groups": 4, **changes}).eval()


def same_state(x: nn.Module, y: nn.Module) -> bool:
    a, b = x.state_dict(), y.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
@pytest.mark.parametrize(
    "changes", [{}, {"extractor_norm": "layer", "norm_first": True, "adapter_dim": 4}]
)
def test_there_and_back_changes_no_bit(tmp_path: Path, vocabulary, changes: dict) -> None:
    """ours -> transformers -> ours -> transformers, with vocabulary and settings."""
    model = Wav2Vec2CTC(tiny(**changes), vocab_size=7).eval()
    save_asr(tmp_path / "a", model, vocabulary)
    report = convert(tmp_path / "a", tmp_path / "b")
    assert report.format == "w2v_plugin" and report.read == len(model.state_dict())
    assert convert(tmp_path / "b", tmp_path / "c", to="ours").format == "transformers"
    convert(tmp_path / "c", tmp_path / "d")
    for name in ("model.safetensors", "config.json", "vocab.json", "tokenizer_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    back, symbols = open_folder(tmp_path / "c")
    assert same_state(back, model) and symbols is not None
    assert symbols.lab2ind == vocabulary.lab2ind
    assert symbols.get_blank_index() == vocabulary.get_blank_index()
    plain = [json.loads(json.dumps(m.wav2vec2.config)) for m in (model, back)]
    assert plain[0] == plain[1]


def test_transformers_to_transformers_keeps_every_tensor(tmp_path: Path) -> None:
    """From the file of one to that of the other; the vocabulary is written anew."""
    export_hf(Wav2Vec2CTC(tiny(), vocab_size=7), tmp_path / "a", VOCABULARIES["last"])
    convert(tmp_path / "a", tmp_path / "b")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    loaded = load_checkpoint(tmp_path / "b")
    assert load_vocabulary(tmp_path / "b", loaded).lab2ind == VOCABULARIES["last"].lab2ind


def test_bodies_are_converted_without_heads(tmp_path: Path) -> None:
    """A pretrained model folder has none; transformers' pretraining heads stay behind in ours."""
    quantizer = GumbelQuantizer(8, groups=2, codes=5, dim=6)
    export_hf(model := Wav2Vec2Pretraining(tiny(), quantizer, dim=4), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="ours")
    convert(tmp_path / "b", tmp_path / "c")
    back = load_checkpoint(tmp_path / "c")
    assert isinstance(back, Wav2Vec2) and same_state(back, model.wav2vec2)
    assert not (tmp_path / "c" / "vocab.json").exists()
    convert(tmp_path / "a", tmp_path / "d")
    assert same_state(load_checkpoint(tmp_path / "d"), model)


@pytest.mark.parametrize(
    ("to", "writer"), [("hf", "w2v_plugin.hf_export.save_file"), ("ours", "torch.save")]
)
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, writer: str
) -> None:
    """Neither the folder nor a part of it, and the source is as it was."""
    export_hf(Wav2Vec2CTC(tiny(), vocab_size=7), tmp_path / "a", VOCABULARIES["ours"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}

    def full_disk(content: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(writer, full_disk)
        convert(tmp_path / "a", tmp_path / "b", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    convert(tmp_path / "a", tmp_path / "b", to=to)


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "a", tiny())
    for target in ("a", "b"):
        (tmp_path / target).mkdir(exist_ok=True)
        (tmp_path / target / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="Choose another folder"):
            convert(tmp_path / "a", tmp_path / target)
        assert (tmp_path / target / "notes.txt").read_text() == "mine"


def test_bad_sources_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(tmp_path / "absent", tmp_path / "b")
    save_asr(tmp_path / "a", Wav2Vec2CTC(tiny(), vocab_size=7), VOCABULARIES["ours"])
    (tmp_path / "a" / "head.ckpt").write_bytes(b"half")
    with pytest.raises(CheckpointMismatch, match="Is the file complete"):
        convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=r"to='onnx', expected one of \('hf', 'ours'\)"):
        convert(tmp_path / "a", tmp_path / "b", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
