"""Language models: backoff by hand, every way in which a file can be broken, KenLM's answers."""

from __future__ import annotations

import gzip
import json
import math
import sys
from pathlib import Path

import pytest

from w2v_plugin.ngrams import ArpaLM, KenLM, NgramLM, load_decoding, load_ngrams

ARPA = """\
made by hand

\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.5
-1.0\t</s>
-0.5\tHELLO\t-0.25
-0.75\tWORLD

\\2-grams:
-0.1\t<s> HELLO\t-0.125
-0.2\tHELLO WORLD
-0.3\tWORLD </s>
-0.4\tWORLD HELLO

\\3-grams:
-0.05\t<s> HELLO WORLD

\\end\\
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def log10(lm: NgramLM, *words: str) -> list[float]:
    """Score of each word of a sentence."""
    state, scores = lm.start(), []
    for word in words:
        score, state = lm.score(state, word)
        scores.append(score / math.log(10))
    return scores


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("HELLO WORLD </s>", [-0.1, -0.05, -0.3]),  # (HELLO WORLD) has no weight: 0
        ("WORLD HELLO HELLO", [-0.5 - 0.75, -0.4, -0.25 - 0.5]),
        ("HELLO HELLO", [-0.1, -0.125 - 0.25 - 0.5]),  # back off twice
        ("NEW WORLD WORLD", [-0.5 - 1.5, -0.75, -0.75]),
        ("</s>", [-0.5 - 1.0]),
    ],
)
def test_scores_are_those_computed_by_hand(path: Path, sentence: str, expected: list) -> None:
    # one product and one quotient: a few ulp
    assert log10(load_ngrams(path), *sentence.split()) == pytest.approx(expected, rel=1e-14)


def test_probabilities_of_a_history_sum_to_one(tmp_path: Path) -> None:
    """A bigram model with weights that make it a distribution."""
    weight = math.log10((1 - 0.6) / (1 - 0.5))
    path = tmp_path / "lm.arpa"
    path.write_text(
        f"\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n{math.log10(0.5)} A {weight}\n"
        f"{math.log10(0.3)} B\n{math.log10(0.2)} </s>\n\n\\2-grams:\n{math.log10(0.6)} A A\n\n"
        "\\end\\\n"
    )
    lm = load_ngrams(path)
    state = lm.score(lm.start(), "A")[1]
    total = sum(math.exp(lm.score(state, word)[0]) for word in ("A", "B", "</s>"))
    assert total == pytest.approx(1.0, abs=1e-12)  # logarithms and back


def test_words_are_known_or_not(path: Path) -> None:
    lm = load_ngrams(path)
    assert sorted(lm.words) == ["HELLO", "WORLD"]
    assert "HELLO" in lm and "NEW" not in lm


def test_gzip_under_any_name(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "model"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert log10(load_ngrams(packed), "HELLO") == log10(load_ngrams(str(path)), "HELLO")


@pytest.mark.parametrize("unknown", ["<unk>", "<UNK>"])
def test_an_unknown_word_by_either_name(path: Path, unknown: str) -> None:
    path.write_text(ARPA.replace("<unk>", unknown))
    lm = load_ngrams(path)
    assert log10(lm, "NEW") == pytest.approx([-2.0])
    assert len(lm.words) == 2


def test_without_unk_a_word_is_as_rare_as_the_rarest(path: Path) -> None:
    path.write_text(ARPA.replace("-1.5\t<unk>\n", "").replace("1=5", "1=4"))
    assert log10(load_ngrams(path), "NEW") == pytest.approx([-0.5 - 0.75])


def test_without_sentence_ends_nothing_is_said_of_them(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 A\n\n\\end\\\n")
    lm = load_ngrams(path)
    assert lm.start() == () and log10(lm, "A", "</s>") == [-1.0, 0.0]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("lines", range(2, ARPA.count("\n")))
def test_a_truncated_file_is_refused_wherever_it_ends(path: Path, lines: int) -> None:
    path.write_text("".join(ARPA.splitlines(keepends=True)[:lines]))
    with pytest.raises(ValueError, match=r"lm\.arpa: not a whole ARPA file"):
        load_ngrams(path)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ngram 2=4", "ngram 2=5"),
        ("ngram 2=4\n", ""),
        ("ngram 1=5", "ngram"),
        ("-0.75\tWORLD", "much\tWORLD"),
        ("\\data\\", "data"),
        ("\\2-grams:", "\\x-grams:"),
        (ARPA[ARPA.index("\\1") : ARPA.index("\\2")], ""),
        (ARPA, ""),
        (ARPA, "\\data\\\nngram 2=1\n\n\\2-grams:\n-1 A B\n\n\\end\\\n"),
        (ARPA, "\\data\\\nngram 1=1\n\n\\1-grams:\n-1 </s>\n\n\\end\\\n"),
    ],
)
def test_a_broken_file_is_refused(path: Path, old: str, new: str) -> None:
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(ValueError, match=r"lm\.arpa: not a whole ARPA file"):
        load_ngrams(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="not a whole ARPA file"):
        load_ngrams(path)
    path.write_bytes(gzip.compress(ARPA.encode())[:60])
    with pytest.raises(ValueError, match="not a whole ARPA file"):
        load_ngrams(path)
    with pytest.raises(FileNotFoundError):
        load_ngrams(tmp_path / "none.arpa")


def test_a_binary_file_needs_kenlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None)  # as if it were not installed
    path = tmp_path / "lm.bin"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(ImportError, match=r"pip install .w2v_plugin\[lm\]"):
        load_ngrams(path)


def test_a_broken_binary_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    path = tmp_path / "lm.bin"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(ValueError, match=r"lm\.bin: kenlm cannot read it"):
        load_ngrams(path)


def test_kenlm_gives_the_same_scores(path: Path) -> None:
    """On every sentence of three words; KenLM computes in float32."""
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    path.write_text(ARPA.removeprefix("made by hand\n\n"))  # which KenLM does not take
    theirs, ours = KenLM(path), load_ngrams(path)
    assert isinstance(ours, ArpaLM) and not theirs.words
    words = ("HELLO", "WORLD", "NEW", "</s>")
    for sentence in ((a, b, c) for a in words for b in words for c in words):
        assert log10(ours, *sentence) == pytest.approx(log10(theirs, *sentence), abs=1e-5)
    assert "HELLO" in theirs and "NEW" not in theirs
    assert KenLM(path, ["NEW", "WORLD"]).words == ["WORLD"]


def test_a_folder_brings_its_weights(path: Path, tmp_path: Path) -> None:
    weights = {"alpha": 0.7, "beta": -1.0, "oov": -4.0, "beam": 20}
    (tmp_path / "decoding.json").write_text(json.dumps(weights | {"commit": "abc"}))
    options = load_decoding(tmp_path)
    assert log10(options.pop("lm"), "HELLO") == log10(load_ngrams(path), "HELLO")
    assert options == weights
    alone = load_decoding(path)
    assert [*alone] == ["lm"] and "HELLO" in alone["lm"]


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"alpha": 1}', '{"alpha": "much", "beta": 0, "oov": 0, "beam": 1}']
)
def test_a_folder_without_weights_is_refused(path: Path, content: str | None) -> None:
    if content is not None:
        (path.parent / "decoding.json").write_text(content)
    with pytest.raises(ValueError, match=r"decoding\.json cannot be read .* Run the recipe again"):
        load_decoding(path.parent)


def test_a_folder_without_ngrams_is_refused(tmp_path: Path) -> None:
    (tmp_path / "decoding.json").write_text('{"alpha": 1, "beta": 0, "oov": 0, "beam": 1}')
    with pytest.raises(FileNotFoundError, match=r"lm\.arpa"):
        load_decoding(tmp_path)
