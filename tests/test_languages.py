"""Switching languages: all of it or nothing, back and forth, and what wrong adapters are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.hf_checkpoints import hf_name
from w2v_plugin.hf_export import export_hf
from w2v_plugin.languages import languages, set_language
from w2v_plugin.model import Wav2Vec2

LETTERS = {"eng": "ab", "fra": "abé", "zho-script_simplified": "你好吗好"[:3]}
ADAPTER = "wav2vec2.encoder.layers.0.adapter_layer.linear_1.weight"


def mms(outputs: int) -> Wav2Vec2CTC:
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    layer = {"extractor_norm": "layer", "norm_first": True, "conv_bias": True}
    return Wav2Vec2CTC(
        Wav2Vec2(**shape, **layer, adapter_dim=4, positions_kernel=8), vocab_size=outputs
    ).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A body with English in it, and adapters of three languages."""
    torch.manual_seed(0)
    folder, vocabularies = tmp_path / "mms", {}
    for i, (language, letters) in enumerate(LETTERS.items()):
        symbols = ["<pad>", "|", *letters]
        vocabularies[language] = {symbol: row for row, symbol in enumerate(symbols)}
        model = mms(len(symbols))
        if i == 0:
            export_hf(model, folder)
        state = {hf_name(key): value for key, value in model.state_dict().items()}
        part = {k: v for k, v in state.items() if "adapter" in k or "head" in k}
        if language == "fra":
            torch.save(part, folder / "adapter.fra.bin")
        else:
            save_file(part, folder / f"adapter.{language}.safetensors")
    (folder / "vocab.json").write_text(json.dumps(vocabularies))
    (folder / "tokenizer_config.json").write_text('{"target_lang": "eng"}')
    return folder


def answer(model: Wav2Vec2CTC) -> torch.Tensor:
    wav = torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(wav).logits


def test_back_and_forth_is_where_it_was(folder: Path) -> None:
    """To the bit; the body is never touched, and every language answers in its own way."""
    model = load_checkpoint(folder)
    assert load_vocabulary(folder, model).letters == ["a", "b"]
    body = {k: v.clone() for k, v in model.state_dict().items() if "adapter" not in k}
    before, answers = answer(model), {}
    for language in (*LETTERS, "eng"):
        vocabulary = set_language(model, folder, language)
        assert vocabulary.letters == list(LETTERS[language])
        assert model.head.out_features == len(vocabulary) == 2 + len(LETTERS[language])
        answers[language] = answer(model)
        direct = load_checkpoint(folder, language=language)
        assert torch.equal(answer(direct), answers[language])
        assert load_vocabulary(folder, direct, language).lab2ind == vocabulary.lab2ind
    assert torch.equal(answers["eng"], before)
    assert not torch.equal(answers["fra"], answers["zho-script_simplified"])
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in body.items() if not k.startswith("head"))


@pytest.mark.parametrize("language", ["deu", "../eng", ""])
def test_unknown_languages_are_told_which_there_are(folder: Path, language: str) -> None:
    model = load_checkpoint(folder)
    message = "Choose one of eng, fra, zho-script_simplified"
    with pytest.raises(ValueError, match=message):
        set_language(model, folder, language)
    if language:
        with pytest.raises(ValueError, match=message):
            load_vocabulary(folder, model, language)
    assert languages(folder) == sorted(LETTERS)


def test_hub_languages_are_those_of_the_vocabulary(folder: Path, monkeypatch) -> None:
    """The files of a repository cannot be listed without asking more of the hub."""
    import speechbrain.utils.fetching

    monkeypatch.setattr(speechbrain.utils.fetching, "fetch", lambda name, source: folder / name)
    assert languages("org/mms") == sorted(LETTERS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(ADAPTER), f"1 missing: {ADAPTER}"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unknown: extra"),
        (lambda state: state.update({ADAPTER: torch.zeros(8, 16)}), "1 misshapen"),
    ],
)
def test_adapters_of_another_model_change_nothing(folder: Path, change, message: str) -> None:
    model = load_checkpoint(folder)
    before, path = answer(model), folder / "adapter.zho-script_simplified.safetensors"
    change(state := load_file(path))
    save_file(state, path)
    with pytest.raises(CheckpointMismatch, match=message):
        set_language(model, folder, "zho-script_simplified")
    assert torch.equal(answer(model), before)


def test_a_vocabulary_of_another_size_changes_nothing(folder: Path) -> None:
    model = load_checkpoint(folder)
    before = answer(model)
    vocabularies = json.loads((folder / "vocab.json").read_text())
    vocabularies["fra"]["à"] = 5
    (folder / "vocab.json").write_text(json.dumps(vocabularies))
    with pytest.raises(ValueError, match="6 symbols for 5 outputs"):
        set_language(model, folder, "fra")
    assert torch.equal(answer(model), before)


def test_the_language_stays_on_the_models_device_and_in_its_precision(folder: Path) -> None:
    model = load_checkpoint(folder).double()
    model.head.requires_grad_(False)
    set_language(model, folder, "fra")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not model.head.weight.requires_grad
