"""Which audio goes into which batch: a stream of batches that is a function of the seed alone.

Nothing here reads audio, so that an interrupted run finds its place again by counting. Ranks take
turns: of R ranks, rank r takes the batches r, r + R, r + 2 R ... of one stream, so that they hear
what a single process with R times as many micro-batches would hear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler

from w2v_plugin.frames import SAMPLE_RATE

Item = tuple[int, ...]  # how a source finds an utterance again


class Window(NamedTuple):
    """A part of an utterance, in samples at 16 kHz."""

    item: Item
    start: int
    samples: int


class Source(Protocol):
    """Utterances in an endless order, block by block, in one or more lanes side by side."""

    lanes: int

    def block(self, lane: int, number: int) -> tuple[list[Item], Tensor]:
        """Utterances of a block and their lengths (utterances,) in samples."""


def seeded(*key: int) -> torch.Generator:
    """A generator for this key, the same wherever and whenever it is made.

    Example
    -------
    >>> one, same, other = (torch.rand((), generator=seeded(3, n)) for n in (1, 1, 2))
    >>> bool(one == same), bool(one == other)
    (True, False)
    """
    total = 0
    for number in key:
        total = (total * 1_000_003 + number) % 2**63
    return torch.Generator().manual_seed(total)


def shares(seconds: list[float], temperature: float) -> list[float]:
    """How much of the training audio comes from each corpus: p ~ hours ** temperature.

    Parameters
    ----------
    seconds : list of float
        Of each corpus.
    temperature : float
        1: as the corpora are; 0: equal shares; between: small corpora are heard more often than
        they would be. 0.5 in XLSR (Conneau et al. 2020, section 3.2), which calls it alpha.

    Returns
    -------
    list of float
        They sum up to 1.

    Raises
    ------
    ValueError
        The temperature is outside [0, 1].

    Example
    -------
    >>> [round(share, 2) for share in shares([90.0, 10.0], 0.5)]
    [0.75, 0.25]
    """
    if not 0 <= temperature <= 1:
        raise ValueError(
            f"sampling_temperature is {temperature}, expected 0 (equal shares) to 1 (by hours)."
        )
    weights = [s**temperature for s in seconds]
    return [weight / sum(weights) for weight in weights]


def buckets(
    lengths: Tensor,
    budget: float,
    extent: Callable[[float, float], float],
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Indices in batches of similar length.

    Parameters
    ----------
    lengths : Tensor
        (utterances,) in any unit.
    budget : float
        Most that a batch may take; a longer utterance is a batch of its own.
    extent : callable
        What a row of a batch takes: `max` where batches are padded, `min` where cropped.
    generator : torch.Generator, optional
        Neighbors in length change places and batches come in random order; without it, longest
        first.

    Example
    -------
    >>> buckets(torch.tensor([1.0, 2.0, 1.1, 2.1]), 4.5, max)
    [[3, 1], [2, 0]]
    """
    key = lengths.double()
    if generator is not None:
        key = key * (1 + 0.1 * torch.rand(len(key), generator=generator, dtype=torch.float64))
    batches: list[list[int]] = []
    current: list[int] = []
    row = 0.0
    order = key.argsort(descending=True, stable=True)
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        row = extent(row, length) if current else length
        if current and row * (len(current) + 1) > budget:
            batches.append(current)
            current, row = [], length
        current.append(index)
    if current:
        batches.append(current)
    if generator is None:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class BatchStream(Sampler[list[Any]], ABC):
    """An endless stream of batches, cut into nominal epochs of equally many on every rank.

    The stream is made block by block. Batches come from `lanes` blocks in turn, so that several
    readers can each keep to a lane.

    Parameters
    ----------
    batches : int, optional
        Per epoch and rank; by default those of the first block.
    rank, ranks : int
        This process and how many there are.
    lanes : int
        Blocks side by side.
    """

    def __init__(
        self, batches: int | None = None, *, rank: int = 0, ranks: int = 1, lanes: int = 1
    ) -> None:
        self.rank, self.ranks, self.lanes = rank, ranks, lanes
        self.epoch = 1
        self.begins = [[0] for _ in range(lanes)]  # batches in a lane before each of its blocks
        self.current: dict[int, tuple[int, list[list[Any]]]] = {}  # lane -> block, as made last
        self.batches = batches or len(self.made(0, 0))

    @abstractmethod
    def one_block(self, lane: int, number: int) -> list[list[Any]]:
        """Batches of a block; a function of its arguments."""

    def set_epoch(self, epoch: int) -> None:
        """Called by SpeechBrain's Brain; epochs count from 1."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Any]]:
        begin = (self.epoch - 1) * self.batches
        for number in range(begin, begin + self.batches):
            yield self.batch(number * self.ranks + self.rank)

    def batch(self, number: int) -> list[Any]:
        """Batch `number` of the whole run, counted over all ranks."""
        number, lane = divmod(number, self.lanes)
        begins = self.begins[lane]
        while begins[-1] <= number:
            begins.append(begins[-1] + len(self.made(lane, len(begins) - 1)))
        block = bisect_right(begins, number) - 1
        return self.made(lane, block)[number - begins[block]]

    def made(self, lane: int, block: int) -> list[list[Any]]:
        """A block's batches; the latest of each lane are remembered."""
        if self.current.get(lane, (-1,))[0] != block:
            self.current[lane] = block, self.one_block(lane, block)
        return self.current[lane][1]


class BucketSampler(BatchStream):
    """Whole utterances in padded batches of similar length under an audio budget.

    Passes over the data follow each other without a gap; an epoch is `batches` consecutive batches,
    whatever the corpus size.

    Parameters
    ----------
    durations : list of float
        Seconds per utterance.
    budget_s : float
        Padded seconds per batch; a longer utterance is a batch of its own.
    batches : int, optional
        Batches per epoch; by default one pass over the data.
    seed : int
        Of the order.
    shuffle : bool
        False: sorted by length, one pass, always the same (for evaluation).
    rank, ranks : int
        This process and how many there are.

    Example
    -------
    >>> list(BucketSampler([1.0, 2.0, 1.1, 2.1], budget_s=4.5, shuffle=False))
    [[3, 1], [2, 0]]
    """

    def __init__(
        self,
        durations: list[float],
        *,
        budget_s: float,
        batches: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.durations = torch.tensor(durations, dtype=torch.float64)
        self.budget_s, self.seed, self.shuffle = budget_s, seed, shuffle
        super().__init__(batches, rank=rank, ranks=ranks)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch if self.shuffle else 1

    def one_block(self, lane: int, number: int) -> list[list[int]]:
        """Batches of one pass over the data."""
        generator = seeded(self.seed, number) if self.shuffle else None
        return buckets(self.durations, self.budget_s, max, generator)


class CropSampler(BatchStream):
    """Random windows in batches without padding, under an audio budget (as in fairseq).

    All windows of a batch are as long as its shortest utterance, at most `crop_s`. An utterance
    gives one window in a pass, or about as many as `crop_s` fits into it, each at a random place:
    an hour of speech in one file is heard as often as an hour in a thousand.

    Parameters
    ----------
    source : Source
        Of utterances; it decides their order.
    budget_s : float
        Seconds per batch.
    crop_s : float
        Longest window, in seconds.
    batches : int, optional
        Batches per epoch; by default those of the first block.
    seed : int
        Of batches and windows.
    rank, ranks : int
        This process and how many there are.

    Example
    -------
    >>> class Two:
    ...     lanes = 1
    ...     def block(self, lane, number):
    ...         return [(0,), (1,)], torch.tensor([32000, 40000])
    >>> ((a, b),) = CropSampler(Two(), budget_s=4, crop_s=15)
    >>> a.samples, b.samples, sorted(w.item for w in (a, b))
    (32000, 32000, [(0,), (1,)])
    """

    def __init__(
        self,
        source: Source,
        *,
        budget_s: float,
        crop_s: float,
        batches: int | None = None,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source, self.seed = source, seed
        self.budget, self.crop = budget_s * SAMPLE_RATE, round(crop_s * SAMPLE_RATE)
        super().__init__(batches, rank=rank, ranks=ranks, lanes=source.lanes)

    def one_block(self, lane: int, number: int) -> list[list[Window]]:
        """Batches of windows from one block of the source."""
        items, lengths = self.source.block(lane, number)
        windows = (lengths.double() / self.crop).round().long().clamp(min=1)
        which = torch.arange(len(items)).repeat_interleave(windows)
        generator = seeded(self.seed, lane, number)
        sizes = lengths[which].clamp(max=self.crop)
        batches = []
        for rows in buckets(sizes, self.budget, min, generator):
            samples = int(sizes[rows].min())
            room = lengths[which[rows]] - samples + 1
            starts = torch.rand(len(rows), generator=generator, dtype=torch.float64) * room
            chosen = zip(which[rows].tolist(), starts.long().tolist(), strict=True)
            batches.append([Window(items[i], start, samples) for i, start in chosen])
        return batches
