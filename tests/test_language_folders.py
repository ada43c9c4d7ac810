"""Folders of languages: adding one touches no other, and happens as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from w2v_plugin import language_folders
from w2v_plugin.adaptation import of_language, rebuilt
from w2v_plugin.checkpoints import load_checkpoint
from w2v_plugin.continuation import body_of
from w2v_plugin.conversion import convert, open_any, open_model
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.interfaces import Wav2Vec2ASR, Wav2Vec2Encoder
from w2v_plugin.language_folders import open_language, per_language, save_language
from w2v_plugin.languages import languages
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.streaming_asr import Wav2Vec2StreamingASR
from w2v_plugin.text import CharVocabulary

SHAPE = {"dim": 32, "layers": 2, "heads": 2, "ffn_dim": 64, "channels": (16,) * 7}
LIKE_MMS = {"extractor_norm": "layer", "norm_first": True, "conv_bias": True}
KINDS = {"mms": {"adapter_dim": 4}, "lora": {"lora_rank": 2, "lora_alpha": 6.0}}
LETTERS = {"deu": "aäz", "fra": "aéçz", "mal": ["ക", "ഖ", "ച്ച"]}
CPU = {"device": "cpu"}
TOLERANCE = 1e-5  # float32 rounding of other kernels; values are of order 1


def noise(samples: int = 8000) -> torch.Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(1))


def body() -> Wav2Vec2:
    torch.manual_seed(0)
    return Wav2Vec2(**SHAPE, **LIKE_MMS)


def trained(language: str, kind: str, shared: Wav2Vec2 | None = None) -> Wav2Vec2CTC:
    """With adapters and a head as from a training, which leaves the body alone."""
    new = rebuilt(shared or body(), "here", **KINDS[kind])
    model = Wav2Vec2CTC(new, vocab_size=5 + len(LETTERS[language])).eval().requires_grad_(False)
    torch.manual_seed(len(language) + ord(language[0]))
    for name, parameter in model.named_parameters():
        if of_language(name):
            nn.init.normal_(parameter, std=0.2)
    return model


def add(folder: Path, language: str, kind: str, **options: object) -> Wav2Vec2CTC:
    model = trained(language, kind)
    save_language(folder, model, CharVocabulary(LETTERS[language]), language, **options)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def answer(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(noise()).logits


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param


def test_every_language_answers_as_it_was_trained(kind: str, tmp_path: Path) -> None:
    models = {language: add(tmp_path / "m", language, kind) for language in LETTERS}
    assert languages(tmp_path / "m") == sorted(LETTERS)
    for language, model in models.items():
        opened, vocabulary = open_language(tmp_path / "m", language)
        assert torch.equal(answer(opened), answer(model))
        assert vocabulary.letters == list(LETTERS[language]) and not opened.training


def test_adding_a_language_touches_no_other(kind: str, tmp_path: Path) -> None:
    """The others' files byte by byte, and their logits bit by bit."""
    add(tmp_path, "deu", kind)
    before, expected = contents(tmp_path), answer(open_language(tmp_path, "deu")[0])
    add(tmp_path, "fra", kind)
    after = contents(tmp_path)
    assert sorted(after.keys() - before.keys()) == ["adapter.fra.safetensors"]
    assert [name for name in before if after[name] != before[name]] == ["vocab.json"]
    entries = [json.loads(files["vocab.json"])["deu"] for files in (before, after)]
    assert entries[0] == entries[1]
    assert torch.equal(answer(open_language(tmp_path, "deu")[0]), expected)


@pytest.mark.parametrize("stage", ["save_file", "_write_json"])
def test_a_full_disk_leaves_all_as_it_was(stage: str, kind: str, tmp_path: Path, monkeypatch):
    """To the byte, whatever could not be written."""

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    add(tmp_path / "m", "deu", kind)
    before = contents(tmp_path / "m")
    monkeypatch.setattr(language_folders, stage, full)
    with pytest.raises(OSError, match="No space"):
        add(tmp_path / "m", "fra", kind)
    assert contents(tmp_path / "m") == before
    with pytest.raises(OSError, match="No space"):
        add(tmp_path / "new", "fra", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_kill_leaves_a_folder_that_can_be_written_again(
    done: int, there: bool, tmp_path: Path, monkeypatch
) -> None:
    """Between any two renames, of a new folder and of one that gets a language."""

    class Killed(BaseException):
        pass

    replace, left = Path.replace, iter(range(done))

    def killed(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise Killed
        return replace(self, target)

    if there:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / ".newabc").mkdir()
    for language in ("deu", "fra"):
        left = iter(range(done))
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Path, "replace", killed)
            add(tmp_path / "m", language, "mms")
        if language not in (languages(tmp_path / "m") if (tmp_path / "m").exists() else ()):
            add(tmp_path / "m", language, "mms")
    assert languages(tmp_path / "m") == ["deu", "fra"]
    assert open_language(tmp_path / "m", "deu")[1].letters
    assert open_language(tmp_path / "m", "fra")[1].letters


def test_a_folder_of_two_first_languages(tmp_path: Path) -> None:
    """Both begin it at the same time; neither is lost."""
    threads = []
    for name in ("deu", "fra"):
        arguments = (tmp_path / "m", trained(name, "mms"), CharVocabulary(LETTERS[name]), name)
        threads.append(threading.Thread(target=save_language, args=arguments))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert languages(tmp_path / "m") == ["deu", "fra"]
    assert open_language(tmp_path / "m", "deu")[1].letters


def test_two_trainings_may_end_at_the_same_time(tmp_path: Path, monkeypatch) -> None:
    """Whoever comes second waits, and finds the language of the first one in the vocabulary."""
    add(tmp_path, "deu", "mms")
    inside, go_on, write = threading.Event(), threading.Event(), language_folders._write_language

    def slow(new: Path, *rest: object) -> None:
        first = not inside.is_set()
        inside.set()
        if first:
            assert go_on.wait(20)
        write(new, *rest)

    monkeypatch.setattr(language_folders, "_write_language", slow)
    threads = [threading.Thread(target=add, args=(tmp_path, x, "mms")) for x in ("fra", "mal")]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    threads[1].join(0.3)  # it would be through by now, or else waits
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert sorted(json.loads((tmp_path / "vocab.json").read_text())) == sorted(LETTERS)


def test_the_body_is_a_pretrained_model(kind: str, tmp_path: Path) -> None:
    """Stored once, without adapters; for vectors, fine-tuning, and languages to come."""
    shared = body()
    add(tmp_path, "deu", kind)
    with torch.no_grad():
        expected = shared.eval()(noise()).context
        found = open_model(tmp_path)
        assert isinstance(found, Wav2Vec2) and torch.equal(found(noise()).context, expected)
        again = body_of(tmp_path, adapters=kind, **rank(kind)).eval()
        assert torch.equal(again(noise()).context, expected)
    vectors = Wav2Vec2Encoder.from_hparams(tmp_path, run_opts=CPU).encode_batch(noise())
    torch.testing.assert_close(vectors, expected, rtol=0, atol=TOLERANCE)
    spoken = Wav2Vec2Encoder.from_hparams(tmp_path, language="deu", run_opts=CPU)
    assert (spoken.encode_batch(noise()) - expected).abs().max() > 100 * TOLERANCE


def rank(kind: str) -> dict[str, object]:
    return KINDS[kind]


def test_a_file_of_a_language_has_published_names(kind: str, tmp_path: Path) -> None:
    add(tmp_path, "deu", kind)
    names = set(load_file(tmp_path / "adapter.deu.safetensors"))
    layer = "wav2vec2.encoder.layers.1."
    part = {"mms": "adapter_layer.linear_2.bias", "lora": "attention.q_proj.lora_B.weight"}[kind]
    assert {layer + part, "lm_head.weight", "lm_head.bias"} <= names
    assert len(names) == 2 + 2 * {"mms": 6, "lora": 8}[kind]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_interface_for_all(precision: str, kind: str, tmp_path: Path) -> None:
    """Switched there and back, also where the body has 8 bits."""
    for language in LETTERS:
        add(tmp_path, language, kind)
    options = {**CPU, "precision": precision}
    asr = Wav2Vec2ASR.from_hparams(source=tmp_path, language="deu", run_opts=options)
    wav, answers = noise()[0], {}
    for language in ("deu", "mal", "fra", "deu"):
        asr.set_language(language)
        assert asr.tokenizer.letters == list(LETTERS[language])
        [logits] = asr.logits([wav])
        direct = Wav2Vec2ASR.from_hparams(source=tmp_path, language=language, run_opts=options)
        torch.testing.assert_close(logits, direct.logits([wav])[0], rtol=0, atol=TOLERANCE)
        assert torch.equal(answers.setdefault(language, logits), logits)
        if precision == "fp32":
            exact = answer(open_language(tmp_path, language)[0])[0]
            torch.testing.assert_close(logits, exact, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="Choose one of deu, fra, mal"):
        asr.set_language("eng")


def test_streams_in_a_language(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared = Wav2Vec2(**SHAPE, **LIKE_MMS, normalize=False)
    model = trained("deu", kind, shared)
    save_language(tmp_path, model, CharVocabulary(LETTERS["deu"]), "deu")
    asr = Wav2Vec2StreamingASR.from_hparams(source=tmp_path, run_opts=CPU)  # the only language
    assert asr.tokenizer.letters == list(LETTERS["deu"])
    assert isinstance(asr.transcribe_batch(noise())[0][0], str)


def test_languages_are_asked_for_by_name(kind: str, tmp_path: Path) -> None:
    add(tmp_path / "m", "deu", kind)
    add(tmp_path / "m", "fra", kind)
    for open_it in (open_any, Wav2Vec2ASR.from_hparams, open_language):
        with pytest.raises(ValueError, match=r"several languages. Choose one of deu, fra\."):
            open_it(tmp_path / "m")
        with pytest.raises(ValueError, match=r"no language='eng'. Choose one of deu, fra\."):
            open_it(tmp_path / "m", language="eng")
    save_asr(tmp_path / "one", trained("deu", kind), CharVocabulary(LETTERS["deu"]))
    for open_it in (open_any, Wav2Vec2ASR.from_hparams, open_language):
        with pytest.raises(ValueError, match="has no languages to choose from"):
            open_it(tmp_path / "one", language="deu")
    with pytest.raises(ValueError, match="is no local folder"):
        Wav2Vec2ASR.from_hparams("org/model", language="deu")


def test_one_language_alone_is_a_plain_model(kind: str, tmp_path: Path) -> None:
    """In our format and in transformers'; LoRA becomes part of the weights."""
    model = add(tmp_path / "m", "deu", kind)
    add(tmp_path / "m", "fra", kind)
    convert(tmp_path / "m", tmp_path / "ours", to="ours", language="deu")
    convert(tmp_path / "m", tmp_path / "hf", language="deu")
    for found in (open_any(tmp_path / "ours")[0], load_checkpoint(tmp_path / "hf")):
        assert found.wav2vec2.config["lora_rank"] is None
        torch.testing.assert_close(answer(found), answer(model), rtol=0, atol=TOLERANCE)
    assert per_language(tmp_path / "ours") is None


def test_lora_by_language_is_nothing_for_transformers(tmp_path: Path) -> None:
    add(tmp_path / "m", "deu", "lora")
    with pytest.raises(ValueError, match=r"Choose one of deu with --language: it is merged"):
        convert(tmp_path / "m", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_blanks_that_differ_cannot_go_together(tmp_path: Path) -> None:
    add(tmp_path / "m", "deu", "mms")
    symbols = {"|": 0, "<pad>": 1, "a": 2, **{f"[{i}]": i for i in range(3, 9)}}
    vocabulary = CharVocabulary.from_symbols(symbols, "<pad>")
    save_language(tmp_path / "m", trained("fra", "mms"), vocabulary, "fra")
    assert answer(open_language(tmp_path / "m", "fra")[0]).shape[-1] == 9
    with pytest.raises(ValueError, match="blank of deu is output 0, that of fra 1"):
        convert(tmp_path / "m", tmp_path / "hf")


@pytest.mark.parametrize("language", ["", "../deu", "a b", False, None, 3, "deu\n"])
def test_names_that_are_none(language: object, tmp_path: Path) -> None:
    """--language no is False in YAML."""
    with pytest.raises(ValueError, match="expected letters, digits, - and _"):
        save_language(tmp_path, trained("deu", "mms"), CharVocabulary("aäz"), language)
    assert not any(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    add(folder, "deu", "mms")
    before, vocabulary = contents(folder), CharVocabulary(LETTERS["fra"])
    with pytest.raises(FileExistsError, match="has deu already"):
        add(folder, "deu", "mms")
    with pytest.raises(CheckpointMismatch, match=r"adapter_dim': 4}, this model has {'lora_rank"):
        add(folder, "fra", "lora")
    other = body()
    other.encoder.layers[1].ffn_in.bias.data[3] += 1e-7
    with pytest.raises(CheckpointMismatch, match=r"1 weights differ, encoder.layers.1.ffn_in.bias"):
        save_language(folder, trained("fra", "mms", other), vocabulary, "fra")
    with pytest.raises(ValueError, match="The vocabulary of fra: 8 symbols for 9 outputs"):
        save_language(folder, trained("fra", "mms"), CharVocabulary("abc"), "fra")
    with pytest.raises(ValueError, match="A vocabulary of pieces"):
        pieces = CharVocabulary(LETTERS["fra"], pieces="a model of sentencepiece")
        save_language(folder, trained("fra", "mms"), pieces, "fra")
    with pytest.raises(ValueError, match="Call its blank <pad>"):
        symbols = {str(i): i for i in range(9)}
        numbers = CharVocabulary.from_symbols(symbols, "0")
        language_folders.check_language(
            tmp_path / "none yet", trained("fra", "mms"), numbers, "fra"
        )
    with pytest.raises(ValueError, match="A body with no adapters"):
        save_language(folder, Wav2Vec2CTC(body(), vocab_size=9), vocabulary, "fra")
    assert contents(folder) == before
    save_pretrained(tmp_path / "plain", body())
    with pytest.raises(FileExistsError, match="something else than a folder of languages"):
        add(tmp_path / "plain", "deu", "mms")


def test_a_language_can_be_replaced_when_asked_to(tmp_path: Path) -> None:
    add(tmp_path, "deu", "mms")
    add(tmp_path, "fra", "mms")
    model = trained("deu", "mms")
    model.head.bias += 1.0
    save_language(tmp_path, model, CharVocabulary(LETTERS["deu"]), "deu", replace=True)
    assert torch.equal(answer(open_language(tmp_path, "deu")[0]), answer(model))
    assert languages(tmp_path) == ["deu", "fra"]
