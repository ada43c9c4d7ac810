"""Kneser-Ney: a second way to compute it, sums over all words, and three readers of the file."""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from speechbrain.lm.arpa import read_arpa
from speechbrain.lm.ngram import BackoffNgramLM

from w2v_plugin.kneser_ney import FALLBACK, KneserNey, estimate
from w2v_plugin.ngrams import KenLM, load_ngrams

EXACT = {"rel": 1e-12}  # a handful of float64 operations each
FILE = {"abs": 1e-6}  # 7 decimals of up to four logarithms


def corpus(sentences: int = 300, words: int = 200, seed: int = 0) -> list[list[str]]:
    """Random text in which some words, and some pairs, are far more frequent than others."""
    rng = np.random.default_rng(seed)
    text = []
    for _ in range(sentences):
        sentence = [int(rng.zipf(1.6)) % words]
        for _ in range(rng.integers(0, 7)):
            follows = (sentence[-1] * 3 + 1) % words
            sentence.append(follows if rng.random() < 0.4 else int(rng.zipf(1.6)) % words)
        text.append([f"w{word}" for word in sentence])
    return text


class BruteForce:
    """The formula as the paper writes it: recursion over dictionaries, sums over the vocabulary."""

    def __init__(self, sentences: list[list[str]], order: int) -> None:
        self.order = order
        self.vocabulary = {word for s in sentences for word in s} | {"</s>", "<unk>"}
        occurrences: Counter[tuple[str, ...]] = Counter()
        for sentence in sentences:
            padded = ("<s>", *sentence, "</s>")
            for n in range(1, order + 1):
                occurrences.update(padded[i : i + n] for i in range(len(padded) - n + 1))
        before: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for ngram in occurrences:
            before[ngram[1:]].add(ngram[0])
        self.counts = {
            ngram: count if len(ngram) == order or ngram[0] == "<s>" else len(before[ngram])
            for ngram, count in occurrences.items()
        }
        self.counts["<s>",] = 0

        self.discounts = {n: self.estimated(n) for n in range(1, order + 1)}

    def estimated(self, n: int) -> list[float]:
        same = [count for ngram, count in self.counts.items() if len(ngram) == n]
        n1, n2, n3, n4 = (same.count(k) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        return [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]

    def __call__(self, history: tuple[str, ...], word: str) -> float:
        history = history[-(self.order - 1) :] if self.order > 1 else ()
        return self.interpolated(history, word)

    def interpolated(self, history: tuple[str, ...], word: str) -> float:
        n = len(history) + 1
        lower = self.interpolated(history[1:], word) if history else 1 / len(self.vocabulary)
        seen = {v: self.counts.get((*history, v), 0) for v in self.vocabulary}
        total = sum(seen.values())
        if not total:
            return lower
        taken = {v: self.discounts[n][min(count, 3)] for v, count in seen.items()}
        return (seen[word] - taken[word] + sum(taken.values()) * lower) / total


def probability(model: KneserNey, history: tuple[str, ...], word: str) -> float:
    """By backing off, in float64, as readers of the file do."""
    number = {w: i for i, w in enumerate(model.words)}
    tables: list[dict[tuple[int, ...], tuple[float, float]]] = []
    names: list[tuple[int, ...]] = [()]
    for order in model.orders:
        names = [(*names[h], w) for h, w in zip(order.prefix, order.word, strict=True)]
        tables.append(
            dict(zip(names, zip(order.probability, order.backoff, strict=True), strict=True))
        )
    ngram = tuple(number[w] for w in (*history, word))[-len(tables) :]
    weight = 1.0
    while ngram not in tables[len(ngram) - 1]:
        if ngram[:-1] in tables[len(ngram) - 2]:
            weight *= tables[len(ngram) - 2][ngram[:-1]][1]
        ngram = ngram[1:]
    return weight * tables[len(ngram) - 1][ngram][0]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_the_formula_of_the_paper(order: int) -> None:
    """Histories of two words, seen or not, and many words."""
    text = corpus()
    model, expected = estimate(text, order), BruteForce(text, order)
    for n, level in enumerate(model.orders, start=1):
        assert level.discounts == pytest.approx(expected.discounts[n][1:], **EXACT)
        assert level.discounts != FALLBACK
    words = ["w2", "w1", "w4", "w13", text[7][-1], "</s>", "<unk>"]
    for first, second, word in product(["<s>", *words[:5]], words[:5], words):
        history = (first, second)
        assert probability(model, history, word) == pytest.approx(expected(history, word), **EXACT)
    for word in words:
        assert probability(model, ("<s>",), word) == pytest.approx(
            expected(("<s>",), word), **EXACT
        )


def test_probabilities_sum_to_one_after_any_history() -> None:
    model = estimate(corpus(), order=3)
    words = [word for word in model.words if word != "<s>"]
    rng = np.random.default_rng(0)
    histories = [tuple(rng.choice(words, 2).tolist()) for _ in range(10)]
    for history in [(), ("<s>",), ("<s>", "w1"), ("w1", "w4"), ("w4",), *histories]:
        total = math.fsum(probability(model, history, word) for word in words)
        assert total == pytest.approx(1.0, abs=1e-12)  # two hundred terms


def test_continuations_are_counted_not_occurrences() -> None:
    """FRANCISCO is frequent, but only after SAN: elsewhere it is less likely than rarer words."""
    text = [["san", "francisco"]] * 20 + [[f"the{i}", "cup"] for i in range(6)]
    model = estimate(text, order=2)
    assert probability(model, ("san",), "francisco") > 0.9
    assert probability(model, ("cup",), "cup") > 2 * probability(model, ("cup",), "francisco")


def test_the_order_is_no_more_than_the_text_has() -> None:
    assert len(estimate([["a"], ["b"]], order=5).orders) == 3  # <s> a </s>
    assert len(estimate([["a", "b", "c"], []], order=2).orders) == 2


@pytest.mark.parametrize(
    "text", [[["a"]], [["a", "b"]] * 7, [["a"], ["a", "a"], ["b", "a", "b"]], [["<unk>", "a"]]]
)
def test_tiny_texts_fall_back_to_fixed_discounts(text: list[list[str]]) -> None:
    model = estimate(text, order=3)
    assert all(order.discounts == FALLBACK for order in model.orders)
    words = [word for word in model.words if word != "<s>"]
    for history in [(), ("<s>",), ("a",), ("<s>", "a"), ("<unk>", "a")]:
        found = [probability(model, history, word) for word in words]
        assert min(found) > 0 and math.fsum(found) == pytest.approx(1.0, abs=1e-14)


def test_what_is_no_text_is_refused() -> None:
    for text in ([], [[]], [["<unk>"]]):
        with pytest.raises(ValueError, match="no word to make a language model of"):
            estimate(text)
    for word in ("<s>", "</s>", "two words", "no\N{NO-BREAK SPACE}break", ""):
        with pytest.raises(ValueError, match="cannot be a word"):
            estimate([["a", word]])
    with pytest.raises(ValueError, match="order=0"):
        estimate([["a"]], order=0)


# --- the file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[KneserNey, Path]:
    model, path = estimate(corpus(), order=3), tmp_path_factory.mktemp("lm") / "lm.arpa"
    model.write(path)
    return model, path


def histories(model: KneserNey) -> list[tuple[tuple[str, ...], str]]:
    """Sentences that begin as the text, and others, word by word."""
    rng = np.random.default_rng(1)
    words = [word for word in model.words if word not in ("<s>", "<unk>")]
    sentences = [*corpus()[:30], *(rng.choice(words, 6).tolist() for _ in range(30))]
    padded = [["<s>", *sentence, "</s>"] for sentence in sentences]
    return [(tuple(s[max(0, i - 2) : i]), s[i]) for s in padded for i in range(1, len(s))]


def test_our_reader_gives_the_probabilities_back(written: tuple[KneserNey, Path]) -> None:
    model, path = written
    lm = load_ngrams(path)
    assert sorted(lm.words) == sorted(model.words[3:])
    for history, word in histories(model):
        state = lm.start() if history[0] == "<s>" else ()
        for earlier in history[history[0] == "<s>" :]:
            _, state = lm.score(state, earlier)
        expected = math.log(probability(model, history, word))
        assert lm.score(state, word)[0] == pytest.approx(expected, **FILE)


def test_speechbrains_reader_gives_the_probabilities_back(written: tuple[KneserNey, Path]) -> None:
    model, path = written
    counts, ngrams, backoffs = read_arpa(io.StringIO(path.read_text()))
    assert list(counts.values()) == [len(order.word) for order in model.orders]
    lm = BackoffNgramLM(ngrams, backoffs)
    for history, word in histories(model):
        expected = math.log10(probability(model, history, word))
        assert lm.logprob(word, history) == pytest.approx(expected, **FILE)


def test_kenlm_gives_the_probabilities_back(written: tuple[KneserNey, Path]) -> None:
    pytest.importorskip("kenlm", reason="the optional package kenlm is not installed")
    model, path = written
    lm = KenLM(path)
    for history, word in histories(model):
        state = lm.start() if history[0] == "<s>" else lm._new_state()
        for earlier in history[history[0] == "<s>" :]:
            _, state = lm.score(state, earlier)
        expected = math.log(probability(model, history, word))
        assert lm.score(state, word)[0] == pytest.approx(expected, abs=1e-5)  # float32


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text("before")
    broken = KneserNey(["a"], estimate([["a", "b"]]).orders)  # words are missing
    with pytest.raises(IndexError):
        broken.write(path)
    assert path.read_text() == "before"
