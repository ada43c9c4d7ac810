"""What `convert` writes, transformers and torchaudio read to the same answers and texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

from w2v_plugin.conversion import convert
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.decoding import greedy
from w2v_plugin.folders import save_asr
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary

TOLERANCE = 1e-5  # float32 rounding of different operation orders; values are of order 1
FAMILIES = {
    "group": {"extractor_norm": "group", "norm_first": False, "conv_bias": False},
    "layer": {"extractor_norm": "layer", "norm_first": True, "conv_bias": True},
}
VOCABULARIES = {
    "published": CharVocabulary("abc"),
    "fairseq": CharVocabulary.from_symbols(
        {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "|": 4, "é": 5, "b": 6, "'": 7}, "<s>"
    ),
    "torchaudio": CharVocabulary.from_symbols(
        {label: i for i, label in enumerate("-|ETAONI")}, blank="-"
    ),
    "last": CharVocabulary.from_symbols(
        {"b": 0, "c": 1, "|": 2, "é": 3, "a": 4, "'": 5, "[UNK]": 6, "[PAD]": 7}, "[PAD]"
    ),
}


@pytest.mark.parametrize("symbols", VOCABULARIES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_others_load_the_folder_to_the_same_answers(
    family: str, symbols: str, tmp_path: Path
) -> None:
    """Logits of transformers and of torchaudio's importer, texts of transformers' processor."""
    torch.manual_seed(0)
    vocabulary = VOCABULARIES[symbols]
    shape = {"dim": 48, "layers": 2, "heads": 4, "ffn_dim": 96, "channels": (24,) * 7}
    ours = Wav2Vec2CTC(Wav2Vec2(**shape, **FAMILIES[family]), vocab_size=8).eval()
    for parameter in ours.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    ours.head.weight.mul_(20.0)  # so that a random model says more than one symbol
    for label, row in vocabulary.lab2ind.items():
        if vocabulary.is_special(label) and label != vocabulary.blank_label:
            ours.head.weight[row], ours.head.bias[row] = 0.0, -1e3  # transformers spells them out
    save_asr(tmp_path / "ours", ours, vocabulary)
    convert(tmp_path / "ours", tmp_path / "hf")

    wav = 0.1 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(1))
    logits = ours(wav).logits
    theirs = Wav2Vec2ForCTC.from_pretrained(tmp_path / "hf").eval()
    processor = Wav2Vec2Processor.from_pretrained(tmp_path / "hf")
    batch = processor(wav[0].numpy(), sampling_rate=16000, return_tensors="pt")
    expected = theirs(batch.input_values).logits
    scale = float(ours.head.weight.abs().max())
    assert float((logits - expected).abs().max()) < TOLERANCE * scale
    imported = import_huggingface_model(theirs).eval()
    assert float((logits - imported(batch.input_values)[0]).abs().max()) < TOLERANCE * scale

    rows = greedy(logits, torch.tensor([49]), vocabulary.get_blank_index())
    text = vocabulary.decode_tokens(rows[0])
    assert len(set(text)) > 2
    [theirs_text] = processor.batch_decode(expected.argmax(-1))
    assert " ".join(theirs_text.split()) == text  # two boundaries are one space for us
    assert len(processor.tokenizer) == 8 and theirs.config.pad_token_id == (
        vocabulary.get_blank_index()
    )


def test_the_preprocessor_is_transformers_own(tmp_path: Path) -> None:
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    model = Wav2Vec2CTC(Wav2Vec2(**shape, normalize=False), vocab_size=8)
    save_asr(tmp_path / "ours", model, VOCABULARIES["published"])
    convert(tmp_path / "ours", tmp_path / "hf")
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "hf")
    assert not extractor.do_normalize and not extractor.return_attention_mask
