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
from w2v_plugin.conversion import convert, load_pretraining, open_folder
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.hf_export import export_hf
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer
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


QUANTIZERS = {
    "gumbel": GumbelQuantizer(8, groups=2, codes=5, dim=6),
    "nearest": NearestQuantizer(8, groups=2, codes=5, dim=6, commitment=0.5),
}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_heads_of_pretraining_survive_our_folder(tmp_path: Path, kind: str) -> None:
    """Weights, counters and settings; evaluation gives the same losses and codes."""
    quantizer = QUANTIZERS[kind]
    model = Wav2Vec2Pretraining(tiny(), quantizer, dim=4, negatives=7, mask_length=3).eval()
    model.quantizer.updates += 17  # where the temperature schedule is
    save_pretrained(tmp_path / "a", model)
    convert(tmp_path / "a", tmp_path / "b", to="ours")
    back = load_pretraining(tmp_path / "b")
    assert same_state(back, model) and back.config == model.config and not back.training
    assert back.quantizer.config == {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in model.quantizer.config.items()
    }
    wavs = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1))
    for seed in range(2):
        x, y = (m(wavs, generator=torch.Generator().manual_seed(seed)) for m in (model, back))
        assert torch.equal(x.loss, y.loss) and torch.equal(x.quantized.codes, y.quantized.codes)


def test_a_pretrained_folder_becomes_transformers_and_back(tmp_path: Path) -> None:
    """With its head; only the counter of updates has no place there."""
    model = Wav2Vec2Pretraining(tiny(), QUANTIZERS["gumbel"], dim=4)
    model.quantizer.updates.zero_()
    save_pretrained(tmp_path / "a", model)
    convert(tmp_path / "a", tmp_path / "b")
    assert same_state(load_checkpoint(tmp_path / "b"), model)
    convert(tmp_path / "b", tmp_path / "c", to="ours")
    assert same_state(load_pretraining(tmp_path / "c"), model)
    assert not (tmp_path / "b" / "vocab.json").exists()


def test_a_nearest_quantizer_stays_behind_with_a_word(tmp_path: Path, caplog) -> None:
    """transformers has none: it gets the body, and the report names what it does not get."""
    model = Wav2Vec2Pretraining(tiny(), QUANTIZERS["nearest"], dim=4)
    save_pretrained(tmp_path / "a", model)
    report = convert(tmp_path / "a", tmp_path / "b")
    back = load_checkpoint(tmp_path / "b")
    assert isinstance(back, Wav2Vec2) and same_state(back, model.wav2vec2)
    assert "no NearestQuantizer; the body is written as a Wav2Vec2Model" in caplog.text
    assert "ignored project_context.bias: transformers knows no NearestQuantizer" in str(report)
    assert not any(name.startswith("wav2vec2.") for name in report.ignored)


def test_a_small_folder_keeps_its_head_whole(tmp_path: Path) -> None:
    """INT8 is for the body; codes are too few to be worth it."""
    model = Wav2Vec2Pretraining(tiny(), QUANTIZERS["gumbel"], dim=4)
    save_pretrained(tmp_path, model, precision="int8")
    back = load_pretraining(tmp_path)
    assert same_state(back.quantizer, model.quantizer) and not same_state(back, model)


def test_models_without_a_quantizer_are_named(tmp_path: Path) -> None:
    """A body, a fine-tuned model, and what is no model at all."""
    save_pretrained(tmp_path / "a", tiny())
    with pytest.raises(CheckpointMismatch, match=r"a Wav2Vec2, without .* version 0\.1\.0 hold"):
        load_pretraining(tmp_path / "a")
    save_asr(tmp_path / "b", Wav2Vec2CTC(tiny(), vocab_size=7), VOCABULARIES["ours"])
    with pytest.raises(CheckpointMismatch, match="a Wav2Vec2CTC, without the quantizer"):
        load_pretraining(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_pretraining(tmp_path / "c")
    (tmp_path / "hyperparams.yaml").write_text("seed: 1")
    with pytest.raises(FileNotFoundError, match=r"inside an output folder is called model/"):
        load_pretraining(tmp_path)


def test_damaged_heads_are_named(tmp_path: Path) -> None:
    """Half a copy, a head of another shape, settings of another version."""
    save_pretrained(tmp_path, Wav2Vec2Pretraining(tiny(), QUANTIZERS["gumbel"], dim=4))
    state = torch.load(tmp_path / "pretraining.ckpt", weights_only=True)
    torch.save({**state, "project_targets.bias": torch.zeros(9)}, tmp_path / "pretraining.ckpt")
    with pytest.raises(CheckpointMismatch, match=r"project_targets\.bias \(9,\) instead of \(4,\)"):
        load_pretraining(tmp_path)
    (tmp_path / "pretraining.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"pretraining\.ckpt"):
        load_pretraining(tmp_path)
    torch.save(state, tmp_path / "pretraining.ckpt")
    text = (tmp_path / "hyperparams.yaml").read_text().replace("GumbelQuantizer", "Unheard")
    (tmp_path / "hyperparams.yaml").write_text(text)
    with pytest.raises(CheckpointMismatch, match=r"KeyError: 'Unheard'.*version that wrote it"):
        load_pretraining(tmp_path)


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
