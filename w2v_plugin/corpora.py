"""Several corpora as one source of training audio, small ones heard more often than they are large.

A corpus has an order of its own, pass after pass, each shuffled anew. A block takes from every
corpus as many utterances as its share demands, going on where the last block stopped: shares hold
to the utterance, and none of a corpus is heard twice before all others were heard once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.logger import get_logger
from torch import Tensor
from torch.utils.data import Dataset

from w2v_plugin.data import AudioReader, usable_rows
from w2v_plugin.frames import SAMPLE_RATE, SHORTEST_S
from w2v_plugin.sampling import Item, Window, seeded, shares

logger = get_logger(__name__)


@dataclass(frozen=True)
class Corpus:
    """A corpus in numbers."""

    name: str
    utterances: int
    seconds: float


class Mixture:
    """How many utterances of each corpus a block takes.

    Parameters
    ----------
    corpora : sequence of Corpus
        What is mixed.
    temperature : float
        See `shares`.
    block_s : float, optional
        Seconds of audio in a block; by default all of the corpora.

    Example
    -------
    >>> mixture = Mixture([Corpus("de", 900, 9000.0), Corpus("ka", 50, 1000.0)], 0.5)
    >>> mixture.spans(0), mixture.spans(1)
    ([(0, 750), (0, 125)], [(750, 1500), (125, 250)])
    >>> print(mixture)
    de: 2.50 h, 900 utterances, 75.0 % of training
    ka: 0.28 h, 50 utterances, 25.0 % of training
    """

    def __init__(
        self, corpora: Sequence[Corpus], temperature: float = 1.0, block_s: float | None = None
    ) -> None:
        self.corpora = list(corpora)
        seconds = [corpus.seconds for corpus in corpora]
        self.shares = shares(seconds, temperature)
        self.seconds = sum(seconds)
        block_s = self.seconds if block_s is None else block_s
        self.per_block = [
            share * block_s * corpus.utterances / corpus.seconds
            for share, corpus in zip(self.shares, corpora, strict=True)
        ]

    def spans(self, block: int) -> list[tuple[int, int]]:
        """(begin, end) of each corpus' part of a block, in utterances since the start."""
        return [(round(block * n), round((block + 1) * n)) for n in self.per_block]

    def __str__(self) -> str:
        return "\n".join(
            f"{corpus.name}: {corpus.seconds / 3600:.2f} h, {corpus.utterances} utterances, "
            f"{100 * share:.1f} % of training"
            for corpus, share in zip(self.corpora, self.shares, strict=True)
        )


class ManifestSpeech(Dataset):
    """Windows of the utterances of one or several manifests; a `Source` of one lane.

    Parameters
    ----------
    manifests : mapping of str to path
        By the name of the corpus.
    min_s : float
        Shorter utterances are left out. There is no longest: only windows are read.
    temperature : float
        See `shares`.
    seed : int
        Of the order.
    keep_audio : bool
        Keep decoded audio in memory (115 MB per hour and worker) after its first use.

    Raises
    ------
    BadManifest
        A manifest is malformed, or none of its utterances is usable.
    """

    lanes = 1

    def __init__(
        self,
        manifests: Mapping[str, str | Path],
        *,
        min_s: float = SHORTEST_S,
        temperature: float = 1.0,
        seed: int = 0,
        keep_audio: bool = False,
    ) -> None:
        self.seed, self.reader = seed, AudioReader(keep_audio)
        self.names: list[list[tuple[str, str]]] = []  # per corpus: (id, path)
        self.lengths: list[Tensor] = []  # per corpus: samples
        corpora = []
        for name, manifest in manifests.items():
            rows = usable_rows(manifest, min_s=min_s)
            prefix = f"{name}/" if name else ""
            self.names.append([(prefix + key, row["wav"]) for key, row in rows.items()])
            seconds = [row["duration"] for row in rows.values()]
            self.lengths.append(torch.tensor([round(s * SAMPLE_RATE) for s in seconds]))
            corpora.append(Corpus(name or str(manifest), len(rows), sum(seconds)))
        self.mixture = Mixture(corpora, temperature)

    def block(self, lane: int, number: int) -> tuple[list[Item], Tensor]:
        """The utterances of a pass, as (corpus, row)."""
        items: list[Item] = []
        lengths = []
        for corpus, (begin, end) in enumerate(self.mixture.spans(number)):
            rows = self.rows(corpus, begin, end)
            items += [(corpus, row) for row in rows.tolist()]
            lengths.append(self.lengths[corpus][rows])
        return items, torch.cat(lengths)

    def rows(self, corpus: int, begin: int, end: int) -> Tensor:
        """Rows of a corpus at places [begin, end) of its order."""
        size = len(self.names[corpus])
        parts = [torch.zeros(0, dtype=torch.long)]
        while begin < end:
            number, first = divmod(begin, size)
            order = torch.randperm(size, generator=seeded(self.seed, corpus, number))
            parts.append(order[first : first + end - begin])
            begin += len(parts[-1])
        return torch.cat(parts)

    def __getitem__(self, window: Window) -> dict[str, Any]:
        """`id` and `sig` (samples,), None where it cannot be used."""
        corpus, row = window.item
        name, path = self.names[corpus][row]
        return {"id": name, "sig": self.reader.window(path, window.start, window.samples)}
