"""MMS: models with language adapters, saved by transformers, in every language."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

from w2v_plugin.adaptation import of_language, rebuilt
from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
from w2v_plugin.conversion import convert
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.decoding import greedy
from w2v_plugin.language_folders import save_language
from w2v_plugin.languages import set_language
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary

TOLERANCE = 1e-5  # float32 rounding of different operation orders; values are of order 1
LETTERS = {"eng": "abcdef", "fra": "abcdéèçà", "mal": "കഖഗ"}
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "|")


def scatter(model: Wav2Vec2ForCTC, seed: int) -> None:
    """Fresh norms and biases are ones and zeros: let no two parameters be confused."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.lm_head.weight[1:4], model.lm_head.bias[1:4] = 0.0, -1e3  # special symbols


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = Wav2Vec2Config(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=(24,) * 7,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        adapter_attn_dim=8,
        vocab_size=len(SPECIALS) + len(LETTERS["eng"]),
    )
    model = Wav2Vec2ForCTC(config)
    scatter(model, 0)
    model.save_pretrained(tmp_path)
    for seed, (language, letters) in enumerate(LETTERS.items()):
        other = Wav2Vec2Config.from_dict(
            {**config.to_dict(), "vocab_size": len(SPECIALS) + len(letters)}
        )
        trained = Wav2Vec2ForCTC(other)
        scatter(trained, seed + 1)
        parts = {key: value.detach() for key, value in trained._get_adapters().items()}
        if language == "fra":
            torch.save(parts, tmp_path / "adapter.fra.bin")
        else:
            save_file(parts, tmp_path / f"adapter.{language}.safetensors", {"format": "pt"})
    vocabularies = {
        language: {symbol: i for i, symbol in enumerate([*SPECIALS, *letters])}
        for language, letters in LETTERS.items()
    }
    (tmp_path / "nested.json").write_text(json.dumps(vocabularies))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "nested.json"), target_lang="eng")
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def normalized_wav() -> tuple[Tensor, Tensor]:
    wav = torch.randn(1, 16000, generator=torch.Generator().manual_seed(1))
    centered = wav - wav.mean()
    return wav, centered / (centered.var(correction=0) + 1e-7).sqrt()


@torch.no_grad()
def test_every_language_answers_as_in_transformers(folder: Path) -> None:
    """The language of the file, then switching as `load_adapter` and `set_target_lang` do."""
    theirs = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    ours = load_checkpoint(folder)
    wav, values = normalized_wav()
    assert float((ours(wav).logits - theirs(values).logits).abs().max()) < TOLERANCE
    assert load_vocabulary(folder, ours).letters == list(LETTERS["eng"])
    for language in ("fra", "mal", "eng", "fra"):
        theirs.load_adapter(language)
        tokenizer.set_target_lang(language)
        vocabulary = set_language(ours, folder, language)
        out, expected = ours(wav), theirs(values).logits
        assert float((out.logits - expected).abs().max()) < TOLERANCE
        text = vocabulary.decode_tokens(greedy(out.logits, out.frame_lengths)[0])
        [theirs_text] = tokenizer.batch_decode(expected.argmax(-1))
        assert text and text == " ".join(theirs_text.split())
        direct = load_checkpoint(folder, language=language)
        assert torch.equal(direct(wav).logits, out.logits)


@torch.no_grad()
def test_our_folder_of_languages_in_transformers(tmp_path: Path) -> None:
    """Trained here one by one, and there: the language asked for, switching, and its symbols."""
    torch.manual_seed(0)
    shape = {"dim": 48, "layers": 3, "heads": 4, "ffn_dim": 96, "channels": (24,) * 7}
    body = Wav2Vec2(**shape, extractor_norm="layer", norm_first=True, conv_bias=True)
    ours = {}
    for language, letters in LETTERS.items():
        vocabulary = CharVocabulary(letters)
        adapted = rebuilt(body, "here", adapter_dim=8)
        ours[language] = Wav2Vec2CTC(adapted, vocab_size=len(vocabulary)).eval()
        for name, parameter in ours[language].named_parameters():
            if of_language(name):
                parameter.add_(0.2 * torch.randn_like(parameter))
        save_language(tmp_path / "ours", ours[language], vocabulary, language)
    convert(tmp_path / "ours", tmp_path / "theirs")
    wav, normalized = normalized_wav()
    first = Wav2Vec2ForCTC.from_pretrained(tmp_path / "theirs").eval()
    torch.testing.assert_close(
        first(normalized).logits, ours["eng"](wav).logits, rtol=0, atol=TOLERANCE
    )
    theirs = Wav2Vec2ForCTC.from_pretrained(
        tmp_path / "theirs", target_lang="mal", ignore_mismatched_sizes=True
    ).eval()
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "theirs")
    for language in ("mal", "fra", "eng", "mal"):
        if language != "mal" or theirs.lm_head.out_features != len(SPECIALS) + 3:
            theirs.load_adapter(language, local_files_only=True)
        tokenizer.set_target_lang(language)
        logits = ours[language](wav).logits
        torch.testing.assert_close(theirs(normalized).logits, logits, rtol=0, atol=TOLERANCE)
        vocabulary = CharVocabulary(LETTERS[language])
        tokens = [i for i in logits[0].argmax(-1).tolist() if i > 4]
        [found] = tokenizer.batch_decode([tokens], group_tokens=False)
        assert tokens and found == vocabulary.decode_tokens(tokens)
