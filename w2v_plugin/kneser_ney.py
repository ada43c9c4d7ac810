"""Sentences -> n-gram language model: modified Kneser-Ney smoothing, written as an ARPA file.

Chen and Goodman, *An Empirical Study of Smoothing Techniques for Language Modeling* (1998), in its
interpolated form. With c the count of an n-gram and h' the history h without its first word,

    P(w | h) = (c(h w) - D(c(h w))) / sum over v of c(h v) + gamma(h) P(w | h')

where gamma(h) gives back what the discounts took away. Only the highest order counts occurrences.
The lower ones are asked where the higher have seen nothing, so they count the different words that
an n-gram was seen after; an n-gram that begins with `<s>` has none before it, and keeps its
occurrences. Below the unigrams every word is as likely as any other, and `<unk>` is one of them.

An n-gram is a number, made from the number of the n-gram without its last word and that word, so
that counting is sorting. Surprising: `<s>` is a history but is never predicted, so it is in no sum.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from w2v_plugin.ngrams import END, START, UNKNOWN

UNK = UNKNOWN[0]
SYMBOLS = (UNK, START, END)  # the numbers 0, 1, 2
FALLBACK = (0.5, 1.0, 1.5)  # discounts where too few n-grams are there to estimate them from
NEVER = -99.0  # the logarithm of 0 in ARPA files

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """All n-grams of one length, k of them, sorted.

    Parameters
    ----------
    prefix, suffix : array
        (k,) number of the n-gram without its last and without its first word, in the order below.
    word : array
        (k,) number of the last word.
    probability : array
        (k,) of the last word after the others.
    backoff : array
        (k,) gamma of the n-gram as a history; 1 where nothing was seen after it.
    discounts : tuple of float
        Taken from counts of 1, of 2, and of 3 or more.
    """

    prefix: Ints
    suffix: Ints
    word: Ints
    probability: Floats
    backoff: Floats
    discounts: tuple[float, ...]


@dataclass(frozen=True)
class KneserNey:
    """A smoothed model: its words and, from unigrams up, its orders.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.ngrams import load_ngrams
    >>> model = estimate([["a", "cat"], ["a", "dog"], ["a", "cat"]], order=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.write(Path(folder, "lm.arpa"))
    ...     lm = load_ngrams(Path(folder, "lm.arpa"))
    >>> _, after_a = lm.score(lm.start(), "a")
    >>> lm.score(after_a, "cat")[0] > lm.score(after_a, "dog")[0]
    True
    """

    words: list[str]
    orders: list[Order]

    def write(self, path: str | Path) -> None:
        """Write an ARPA file, whole or not at all; log10 with 7 decimals, as KenLM's float32."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("w", encoding="utf-8", newline="\n") as file:
                self._write(file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)  # after a full disk, or Ctrl-C

    def _write(self, file: TextIO) -> None:
        file.write("\\data\\\n")
        for n, order in enumerate(self.orders, start=1):
            file.write(f"ngram {n}={len(order.word)}\n")
        texts = [""]
        for n, order in enumerate(self.orders, start=1):
            pairs = zip(order.prefix.tolist(), order.word.tolist(), strict=True)
            texts = [f"{texts[history]} {self.words[word]}".lstrip() for history, word in pairs]
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(_lines(order, texts, highest=n == len(self.orders)))
        file.write("\n\\end\\\n")


def estimate(sentences: Iterable[Sequence[str]], order: int = 4) -> KneserNey:
    """Count and smooth.

    A second and 0.1 GB for 30 000 sentences of 15 words, order 4; both grow with the text.

    Parameters
    ----------
    sentences : iterable of sequence of str
        Words; `<unk>` stands for one that the model shall not know. Empty sentences do not count.
    order : int
        Words in the longest n-grams; less where no sentence, with its two ends, is as long.

    Returns
    -------
    KneserNey
        Where discounts cannot be estimated, for want of n-grams that were seen once, twice, three
        and four times, those of that order are 0.5, 1 and 1.5.

    Raises
    ------
    ValueError
        There are no words, or `order` is less than 1, or a sentence has `<s>`, `</s>` or a word
        with spaces.

    Example
    -------
    >>> model = estimate([["a", "cat"], ["a", "dog"]], order=2)
    >>> model.words
    ['<unk>', '<s>', '</s>', 'a', 'cat', 'dog']
    >>> float(model.orders[0].probability.sum())  # of <s> it is 0
    1.0
    """
    if order < 1:
        raise ValueError(f"order={order}, expected at least 1: words in the longest n-grams.")
    words, tokens, left = _numbered(sentences)
    return KneserNey(words, _smooth(list(_count(tokens, left, len(words), order))))


def _numbered(sentences: Iterable[Sequence[str]]) -> tuple[list[str], Ints, Ints]:
    """Words; numbers of all tokens, with the ends; tokens left from each to the sentence's end."""
    number = {symbol: index for index, symbol in enumerate(SYMBOLS)}
    lines: list[list[int]] = []
    for sentence in filter(len, sentences):
        for word in sentence:
            if word in (START, END) or word.split() != [word]:
                raise ValueError(
                    f"{word!r} cannot be a word: expected neither {START}, {END} nor spaces. "
                    "Take it out of the text."
                )
        lines.append([1, *(number.setdefault(word, len(number)) for word in sentence), 2])
    if len(number) == len(SYMBOLS):
        raise ValueError("There is no word to make a language model of. Give a text.")
    tokens = np.fromiter(chain.from_iterable(lines), np.int64)
    left = np.concatenate([np.arange(len(line), 0, -1) for line in lines])
    return list(number), tokens, left


class Counts(NamedTuple):
    """What was seen of the n-grams of one length; the first three are as in `Order`."""

    prefix: Ints
    suffix: Ints
    word: Ints
    occurrences: Ints
    initial: NDArray[np.bool_]  # begins with <s>


def _count(tokens: Ints, left: Ints, vocabulary: int, order: int) -> Iterator[Counts]:
    """From unigrams up, as long as there are any."""
    every, none = np.arange(vocabulary), np.zeros(vocabulary, np.int64)
    yield Counts(none, none, every, np.bincount(tokens, minlength=vocabulary), every == 1)
    numbers = tokens  # of the n-gram that begins at each token
    for n in range(2, min(order, int(left.max())) + 1):
        begins = np.flatnonzero(left >= n)
        pairs = numbers[begins] * vocabulary + tokens[begins + n - 1]
        pairs, first, inverse, occurrences = np.unique(
            pairs, return_index=True, return_inverse=True, return_counts=True
        )
        first = begins[first]
        prefix, word = np.divmod(pairs, vocabulary)
        yield Counts(prefix, numbers[first + 1], word, occurrences, tokens[first] == 1)
        numbers = np.full_like(tokens, -1)
        numbers[begins] = inverse


def _smooth(seen: list[Counts]) -> list[Order]:
    """Probabilities of each order, mixed with those of the order below."""
    orders: list[Order] = []
    vocabulary = len(seen[0].word)
    lower = np.full(vocabulary, 1 / (vocabulary - 1))  # of all words but <s>
    for n, (prefix, suffix, word, count, initial) in enumerate(seen):
        if n + 1 < len(seen):
            after = np.bincount(seen[n + 1].suffix, minlength=len(word))  # so many words
            count = np.where(initial, count, after)
        if n == 0:
            count = np.where(initial, 0, count)
        discounts = _discounts(count)
        taken = np.asarray((0.0, *discounts))[np.minimum(count, 3)]
        histories = len(orders[-1].word) if orders else 1
        total = np.bincount(prefix, count, histories)
        weight = np.bincount(prefix, taken, histories) / np.maximum(total, 1)
        probability = (count - taken) / total[prefix] + weight[prefix] * lower[suffix]
        if orders:  # nothing was discounted where nothing was seen
            orders[-1] = replace(orders[-1], backoff=np.where(total > 0, weight, 1.0))
        else:
            probability[initial] = 0.0
        orders.append(Order(prefix, suffix, word, probability, np.ones(len(word)), discounts))
        lower = probability
    return orders


def _discounts(counts: Ints) -> tuple[float, ...]:
    """What is best taken from counts of 1, 2 and more: equation 26 of the paper."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < d < k for k, d in enumerate(found, start=1)) else FALLBACK


def _lines(order: Order, texts: list[str], *, highest: bool) -> Iterator[str]:
    possible = order.probability > 0
    logs = np.where(possible, np.log10(np.where(possible, order.probability, 1.0)), NEVER)
    backoffs = np.log10(order.backoff)
    for text, log, backoff in zip(texts, logs.tolist(), backoffs.tolist(), strict=True):
        yield f"{log:.7f}\t{text}\n" if highest else f"{log:.7f}\t{text}\t{backoff:.7f}\n"
