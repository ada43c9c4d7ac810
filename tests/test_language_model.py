"""Language models for a new language: what goes into the text, the search for weights, the recipe.

The recipe is run on a model that hears nothing: its logits are made so that one of two words that
sound alike is written, and only a language model can tell which.
"""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from w2v_plugin.beam import BeamSearch
from w2v_plugin.cli import parser
from w2v_plugin.commands import CannotStart, search_options
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.kneser_ney import estimate
from w2v_plugin.lm_text import read_lm_text
from w2v_plugin.lm_tuning import GRID, Weights, searches, tune
from w2v_plugin.ngrams import load_decoding, load_ngrams
from w2v_plugin.text import CharVocabulary
from w2v_plugin.vocabularies import build_vocabulary

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes"))
import language_model as recipe


def manifest(path: Path, texts: list[str]) -> Path:
    """With a tenth of a second of silence for each text."""
    wav = path.with_suffix(".wav")
    sf.write(wav, np.zeros(1600), 16000)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        rows.writerows([f"{path.stem}{n}", 0.1, wav, "s", text] for n, text in enumerate(texts))
    return path


# --- text ----------------------------------------------------------------------------------------


def test_manifests_are_taken_as_they_are_and_plain_text_is_normalized(tmp_path: Path) -> None:
    train = manifest(tmp_path / "train.csv", ["don't stop", "stop, now"])
    plain, packed = tmp_path / "news.txt", tmp_path / "more.txt.gz"
    plain.write_bytes(
        "\ufeff“Don\N{RIGHT SINGLE QUOTATION MARK}t stop!”, he said.\r\n\r\n  \r\n".encode()
    )
    packed.write_bytes(gzip.compress("Naïve 'cat'\n".encode()))
    text = read_lm_text([train, plain, packed], CharVocabulary())
    assert text.sentences == [
        ["DON'T", "STOP"],
        ["<unk>", "NOW"],
        ["DON'T", "STOP", "HE", "SAID"],
        ["<unk>", "CAT"],
    ]
    assert text.words == 8 and text.unknown == {"STOP,": 1, "NAÏVE": 1}
    assert "2 words (20.0%) have characters outside the model's vocabulary" in str(text)


def test_lower_case_and_other_scripts(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Grüße, WELT!\nനമസ്കാരം ലോകമേ.\n", encoding="utf-8")
    vocabulary = build_vocabulary(["grüße welt", "നമസ്കാരം ലോകമേ"])
    text = read_lm_text([path], vocabulary)
    assert text.sentences == [["grüße", "welt"], ["നമസ്കാരം", "ലോകമേ"]] and not text.unknown


@pytest.mark.parametrize("said", ["می\u200cروم", "t\u02bcáá diné\u02bc"], ids=["ZWNJ", "U+02BC"])
def test_plain_text_keeps_what_training_kept(tmp_path: Path, said: str) -> None:
    """Characters that are dropped or written differently unless somebody asks for them."""
    (tmp_path / "a.txt").write_text(f"«{said}»!\n", encoding="utf-8")
    text = read_lm_text([tmp_path / "a.txt"], build_vocabulary([said]))
    assert text.sentences == [said.split()] and not text.unknown


def test_plain_text_in_turkish_has_its_own_capitals(tmp_path: Path) -> None:
    """Other letters than those of training would be words of their own, and hide what is shared."""
    (tmp_path / "a.txt").write_text("Işık İstanbul!\nIlık su\n", encoding="utf-8")
    text = read_lm_text([tmp_path / "a.txt"], CharVocabulary("ışkistanbul"), {"ışık istanbul"})
    assert (text.sentences, text.shared) == ([["ılık", "su"]], 1)


def test_what_evaluation_asks_for_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One two.\nTwo three.\none two\n")
    text = read_lm_text([path], CharVocabulary(), without={"ONE TWO"})
    assert text.sentences == [["TWO", "THREE"]] and text.shared == 2
    assert "2 sentences left out: --dev or --test say the same" in str(text)


def test_texts_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\ntw\xf6\n")
    with pytest.raises(BadManifest, match=r"text\.txt:2: not UTF-8 text"):
        read_lm_text([path], CharVocabulary())
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"one\n" * 99)[:20])
    with pytest.raises(BadManifest, match=r"text\.gz:99: not UTF-8 text"):
        read_lm_text([tmp_path / "text.gz"], CharVocabulary())
    path.write_text("привет мир\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.txt: no word can be spelled with the letters"):
        read_lm_text([path], CharVocabulary())


# --- weights -------------------------------------------------------------------------------------


def valley(best: Weights) -> Callable[[Weights | None], list[str]]:
    """Texts with more word errors the further the weights are from the best."""

    def decode(weights: Weights | None) -> list[str]:
        assert weights is not None
        far = (
            abs(weights.alpha - best.alpha) / 0.2
            + abs(weights.beta - best.beta) / 0.75
            + abs(weights.oov - best.oov) / 3
        )
        return ["wrong " * round(10 * far)]

    return decode


@pytest.mark.parametrize(
    "best", [Weights(0.8, 1.125, -4.5), Weights(1.5, -1.5, 0.0), Weights(0.1, 4.5, -14.5)]
)
def test_the_search_ends_in_the_valley(best: Weights) -> None:
    found, trials = tune(valley(best), ["right"])
    assert len({trial.weights for trial in trials}) == len(trials) < 60  # nothing twice
    # within a step of the last size of the best, or nearer
    assert abs(found.alpha - best.alpha) <= 0.1 and abs(found.beta - best.beta) <= 0.375
    assert abs(found.oov - best.oov) <= 1.5
    assert min(trials, key=lambda trial: trial.badness).word_errors == next(
        trial.word_errors for trial in trials if trial.weights == found
    )


def test_of_equally_good_settings_the_middle_is_taken() -> None:
    grid = [Weights(alpha, 0.0, -10.0) for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)]

    def decode(weights: Weights | None) -> list[str]:
        assert weights is not None
        return ["" if weights.alpha == 0.1 or weights.beta or weights.oov > -10 else "right"]

    found, _ = tune(decode, ["right"], grid)
    assert 0.3 < found.alpha < 0.9 and found.beta == 0


def test_weights_stay_possible() -> None:
    """However much the references like it, no negative weight and no bonus for unknown words."""
    seen: list[Weights] = []

    def decode(weights: Weights | None) -> list[str]:
        assert weights is not None
        seen.append(weights)
        return ["wrong " * round(100 * (weights.alpha + 1) - weights.oov)]

    tune(decode, ["right"])
    assert min(w.alpha for w in seen) > 0 and max(w.oov for w in seen) == 0


def spelled(text: str, vocabulary: CharVocabulary, doubt: dict[int, str] | None = None) -> Any:
    """(frames, vocab) that say a text, with letters that are as likely at some places."""
    tokens = vocabulary.encode_text(text)
    logits = torch.zeros(2 * len(tokens), len(vocabulary))
    for place, token in enumerate(tokens):
        logits[2 * place, token] = logits[2 * place + 1, vocabulary.get_blank_index()] = 12.0
    for place, letter in (doubt or {}).items():
        logits[2 * place, vocabulary.lab2ind[letter]] = 12.5  # more likely, in fact
    return logits


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_searches_give_what_beam_search_gives(tmp_path: Path, workers: int) -> None:
    vocabulary = CharVocabulary()
    estimate([["A", "CAT"], ["THE", "CAT"]], order=2).write(tmp_path / "lm.arpa")
    logits = [spelled(text, vocabulary, {2: "R"}) for text in ("A CAT", "THE CAT", "CAT")]
    weights = Weights(1.0, 1.0, -10.0)
    with searches(tmp_path / "lm.arpa", vocabulary, logits, beam=9, workers=workers) as decode:
        alone, found = decode(None), decode(weights)
    lm = load_ngrams(tmp_path / "lm.arpa")
    search = BeamSearch(vocabulary, lm=lm, beam=9, alpha=1.0, beta=1.0, oov=-10.0)
    expected = [search(x[None], torch.tensor([len(x)]))[0].text for x in logits]
    assert found == expected == ["A CAT", "THE CAT", "CAT"]
    assert alone == ["A RAT", "THR CAT", "CAR"]


@pytest.mark.slow
def test_processes_that_search_say_nothing_of_ctrl_c(tmp_path: Path) -> None:
    """Neither while they start nor later: the one who waits for them does."""
    estimate([["A", "CAT"]], order=2).write(tmp_path / "lm.arpa")
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, signal, threading, torch
from w2v_plugin.lm_tuning import searches
from w2v_plugin.text import CharVocabulary

def main(decodings):
    logits = [torch.zeros(10, 32)] * 4
    with searches({str(tmp_path / "lm.arpa")!r}, CharVocabulary(), logits, beam=9, workers=2) as go:
        for _ in range(decodings):
            go(None)
        threading.Timer(0.5, os.killpg, (0, signal.SIGINT)).start()
        while True:
            go(None)

if __name__ == "__main__":
    for decodings in (0, 1):
        try:
            main(decodings)
        except KeyboardInterrupt:
            print("interrupted")
""")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, start_new_session=True, check=True
    )
    assert (done.stdout, done.stderr) == (2 * "interrupted\n", "")


def test_beam_search_with_pieces_of_words(tmp_path: Path) -> None:
    """A language model's words are spelled with pieces of any length."""
    vocabulary = build_vocabulary(["banana bandana ananas"] * 3, "bpe", 8)
    assert vocabulary.pieces and max(map(len, vocabulary.letters)) > 1
    estimate([["banana", "ananas"]], order=2).write(tmp_path / "lm.arpa")
    logits = spelled("banana ananas", vocabulary)
    for options in ({}, {"lm": load_ngrams(tmp_path / "lm.arpa")}):
        found = BeamSearch(vocabulary, **options)(logits[None], torch.tensor([len(logits)]))
        assert found[0].text == "banana ananas"


def test_the_command_line_takes_the_folder_and_weights_of_its_own(tmp_path: Path) -> None:
    estimate([["A", "CAT"]], order=2).write(tmp_path / "lm.arpa")
    tuned = {"alpha": 0.9, "beta": -0.5, "oov": -4.0, "beam": 20}
    (tmp_path / "decoding.json").write_text(json.dumps(tuned))
    for command in ("transcribe", "stream"):
        plain = [command, "talk.wav", "--model", "m", "--lm", str(tmp_path)]
        options = search_options(parser().parse_args(plain))
        assert "CAT" in options.pop("lm") and options == tuned
        options = search_options(parser().parse_args([*plain, "--alpha", "0.2", "--beam", "7"]))
        assert (options["alpha"], options["beta"], options["beam"]) == (0.2, -0.5, 7)
        with pytest.raises(CannotStart, match=r"--lm: .*decoding\.json cannot be read"):
            search_options(parser().parse_args([*plain[:-1], str(tmp_path.parent)]))


# --- the recipe ----------------------------------------------------------------------------------


class HearsHomophones:
    """In place of a model: says the texts of manifests in turn, with B and P confused."""

    def __init__(self, texts: list[str], vocabulary: CharVocabulary | None = None) -> None:
        self.tokenizer = vocabulary or CharVocabulary()
        self.texts = iter(texts)
        self.choice = SimpleNamespace(device=torch.device("cpu"))

    def logits(self, wavs: list[torch.Tensor]) -> list[torch.Tensor]:
        text = next(self.texts)
        other = {"B": "P", "P": "B"}
        doubt = {n: other[letter] for n, letter in enumerate(text) if letter in other}
        return [spelled(text, self.tokenizer, doubt)]


TRAIN = ["A BIG PIG", "THE BIG BOY", "A PIG AND A BOY", "THE BOY HAS A PET", "A BEE"]
DEV, TEST = ["THE BIG PIG", "A BOY HAS A PIG"], ["THE PET AND THE BOY", "A BIG BOY"]


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: list[str]) -> None:
    monkeypatch.setattr(recipe, "load", lambda *_, **__: HearsHomophones(said))
    recipe.make(recipe.parse([*arguments, "--model", "heard", "--workers", "1"]))


def test_the_recipe_from_texts_to_decoding(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, dev = manifest(tmp_path / "train.csv", [*TRAIN, DEV[0]]), tmp_path / "dev.csv"
    manifest(dev, DEV)
    test = manifest(tmp_path / "test.csv", TEST)
    silent = manifest(tmp_path / "silent.csv", ["", DEV[1]])  # as text.py leaves what is no word
    arguments = ["--text", str(train), "--dev", str(dev), "--test", str(test), str(silent)]
    run(monkeypatch, [*arguments, "--out", str(tmp_path / "lm")], [*DEV, *TEST, "A", DEV[1]])
    report = json.loads((tmp_path / "lm" / "results.json").read_text())
    assert report["text"]["sentences_left_out"] == 1 and report["text"]["sentences"] == 5
    assert report["dev"]["greedy"]["errors"] == 4 and report["dev"]["greedy"]["WER"] == 50.0
    assert report["dev"]["language model"]["errors"] == 0
    assert report["test"][str(test)]["greedy"]["WER"] > 40
    assert report["test"][str(test)]["language model"]["WER"] == 0
    assert report["test"][str(test)]["OOV"] == 0 < report["test"][str(test)]["perplexity"] < 12
    assert len(report["trials"]) >= len(GRID)
    assert set(report["sha256"]) == {str(train), str(dev), str(test), str(silent)}
    assert report["test"][str(silent)]["language model"]["errors"] == 1  # an insertion
    printed = capsys.readouterr().out
    assert "1 sentences left out" in printed and "gain 50.00 points of WER" in printed
    options = load_decoding(tmp_path / "lm")
    logits = HearsHomophones(TEST).logits([])[0]
    [found] = BeamSearch(CharVocabulary(), **options)(logits[None], torch.tensor([len(logits)]))
    assert found.text == TEST[0]


def test_perplexity_and_unknown_words(tmp_path: Path) -> None:
    """Of two equally likely words and the end: each of the three has a third."""
    path = tmp_path / "lm.arpa"
    third = "-0.47712125"
    path.write_text(
        f"\\data\\\nngram 1=3\n\n\\1-grams:\n{third} A\n{third} B\n{third} </s>\n\n\\end\\\n"
    )
    found = recipe.fit(load_ngrams(path), ["A B", "B C"])
    assert found == {"OOV": 25.0, "perplexity": 3.0, "words": 4}


def test_the_gain_has_an_interval_of_its_own() -> None:
    """Two systems that fail together: their difference is sure though their rates are not."""
    references = ["a b", "c d", "e f", "g h"]
    worse = ["x y", "c x", "z z", "g x"]  # each a word worse than the other, all the time
    better = ["a y", "c d", "e z", "g h"]
    rates = recipe.error_rates(references, {"greedy": worse, "language model": better})
    assert rates["greedy"]["WER"] == 75.0 and rates["language model"]["WER"] == 25.0
    assert rates["gain"] == {"points": 50.0, "points_95": [50.0, 50.0]}
    low, high = rates["greedy"]["WER_95"]
    assert low < 75 < high
    single = recipe.error_rates(["a b"], {"greedy": ["a"], "language model": ["a b"]})
    assert (single["greedy"]["WER_95"], single["gain"]["points_95"]) == (None, None)


def test_wrong_calls_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = str(manifest(tmp_path / "train.csv", TRAIN))
    dev = str(manifest(tmp_path / "dev.csv", DEV))
    empty = str(manifest(tmp_path / "empty.csv", ["", ""]))
    other = str(manifest(tmp_path / "other.csv", ["ZEBRA"]))
    new = ["--out", str(tmp_path / "new")]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text("{}")
    for arguments, message in [
        (["--text", train, dev, "--dev", dev, *new], r"dev\.csv is both --text and what is eval"),
        (["--text", train, "--dev", dev, "--test", dev, *new], "name the same manifest"),
        (["--text", "none.txt", "--dev", dev, *new], r"none\.txt: no such file"),
        (["--text", train, "--dev", dev, "--out", str(tmp_path / "old")], "holds a language model"),
        (["--text", train, "--dev", empty, *new], r"empty\.csv: no text"),
        (["--text", train, "--dev", other, *new], "none of its words occurs in the text"),
    ]:
        with pytest.raises(CannotStart, match=message):
            run(monkeypatch, arguments, [*DEV, *DEV])
    assert not (tmp_path / "new" / "decoding.json").exists()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (CannotStart("no model"), 2, "language_model.py: error: no model\n"),
        (
            KeyboardInterrupt(),
            130,
            "\nlanguage_model.py: interrupted; the same command begins anew\n",
        ),
    ],
    ids=["wrong call", "Ctrl-C"],
)
def test_what_ends_it_is_told_in_a_line(
    error: BaseException,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(recipe, "make", fail)
    arguments = ["--text", "a.csv", "--dev", "b.csv", "--model", "m", "--out", "lm"]
    assert (recipe.main(arguments), capsys.readouterr().err) == (status, words)


def test_weights_are_kept_when_a_test_cannot_be_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuning takes long; what comes after it must not lose it."""
    train, dev = manifest(tmp_path / "train.csv", TRAIN), manifest(tmp_path / "dev.csv", DEV)
    test = manifest(tmp_path / "test.csv", TEST)
    arguments = ["--text", str(train), "--dev", str(dev), "--test", str(test)]
    test.with_suffix(".wav").unlink()
    with pytest.raises(BadAudio, match="no such file"):
        run(monkeypatch, [*arguments, "--out", str(tmp_path / "lm")], [*DEV, *TEST])
    assert load_decoding(tmp_path / "lm")["alpha"] > 0
    manifest(tmp_path / "test.csv", TEST)  # again, with its audio
    run(monkeypatch, [*arguments, "--out", str(tmp_path / "lm")], [*DEV, *TEST])
    assert json.loads((tmp_path / "lm" / "results.json").read_text())["test"]


def test_texts_that_leave_nothing_are_told_why(tmp_path: Path) -> None:
    """Empty, or all of it is what is tested."""
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="there is no text in it"):
        read_lm_text([tmp_path / "empty.txt"], CharVocabulary())
    (tmp_path / "same.txt").write_text("a cat")
    with pytest.raises(ValueError, match="All 1 sentences are left out: --dev or --test say"):
        read_lm_text([tmp_path / "same.txt"], CharVocabulary(), without={"A CAT"})


def test_characters_that_the_model_cannot_say_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = manifest(tmp_path / "dev.csv", ["A BOY", "Ä PIG", "2 BOYS"])
    spoken = recipe.listen(HearsHomophones(["A BOY", "A PIG", "BOYS"]), dev)
    assert spoken.texts == ["A BOY", "Ä PIG", "2 BOYS"] and len(spoken.logits) == 3
    assert "2 texts have characters that the model cannot say" in capsys.readouterr().out


def test_texts_without_spaces_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dev = manifest(tmp_path / "dev.csv", ["今日はいい天気です"])
    with pytest.raises(CannotStart, match="have no spaces between words"):
        recipe.sentences_of(dev, build_vocabulary(["今日はいい天気です"]))
    boundless = CharVocabulary.from_symbols({"-": 0, "A": 1}, blank="-")
    monkeypatch.setattr(recipe, "load", lambda *_, **__: HearsHomophones([], boundless))
    train = str(manifest(tmp_path / "train.csv", TRAIN))
    arguments = ["--text", train, "--dev", str(dev), "--model", "m", "--out", str(tmp_path / "x")]
    with pytest.raises(CannotStart, match="no word boundaries"):
        recipe.make(recipe.parse(arguments))
