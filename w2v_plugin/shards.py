"""Training audio from shards: read in streams, in an order that follows from the seed alone.

Each rank has four lanes. All shards, shuffled anew in each pass, are dealt out to the lanes of all
ranks; a lane cuts what it gets into blocks and shuffles batches within a block. Batch k of a rank
is made from its lane k % 4, so that 1, 2 or 4 workers read nothing twice, and any number of them
makes the same batches.

What is in a block follows from the index. A resumed run therefore counts its way to where it
stopped and opens only the shards that it still needs; and a shard that is broken leaves gaps in
batches but shifts nothing.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.data import Dataset

from w2v_plugin.corpora import Corpus, ManifestSpeech, Mixture
from w2v_plugin.data import AudioReader
from w2v_plugin.errors import BadManifest
from w2v_plugin.sampling import Item, Window, seeded
from w2v_plugin.shard_files import ShardIndex, read_shard

LANES = 4  # per rank
Audio = dict[Item, tuple[str, bytes]]  # key and bytes of the file
BLOCK_S = 900.0  # seconds of audio in a block: 15 minutes, 30 MB of FLAC


class Lane:
    """The order in which one lane goes through one corpus.

    Parameters
    ----------
    index : ShardIndex
        Of the corpus.
    lane, lanes : int
        This lane and how many there are on all ranks.
    seed : int
        Of this corpus' order.
    """

    def __init__(self, index: ShardIndex, lane: int, lanes: int, seed: int) -> None:
        self.index, self.lane, self.lanes, self.seed = index, lane, lanes, seed
        self.shards: list[int] = []  # as visited
        self.begins = [0]  # utterances before each visit

    def visit(self, number: int) -> int:
        """The shard that is visited as number `number`; of all lanes, in turn, all shards."""
        passes, place = divmod(self.lane + number * self.lanes, len(self.index.urls))
        generator = seeded(self.seed, passes)
        return int(torch.randperm(len(self.index.urls), generator=generator)[place])

    def span(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(visit, first, last) of the utterances [begin, end) of the lane."""
        while self.begins[-1] < end:
            self.shards.append(self.visit(len(self.shards)))
            self.begins.append(self.begins[-1] + self.index.counts[self.shards[-1]])
        visit = bisect_right(self.begins, begin) - 1
        while begin < end:
            base, stop = self.begins[visit], min(self.begins[visit + 1], end)
            if begin < stop:
                yield visit, begin - base, stop - base
            begin, visit = max(begin, stop), visit + 1


class ShardSpeech(Dataset):
    """Windows of the utterances in shards of one or several corpora; a `Source`.

    Parameters
    ----------
    indices : mapping of str to path
        `index.jsonl` by the name of the corpus.
    urls : str, optional
        Where the shards are; see `ShardIndex`.
    min_s : float
        Shorter utterances are left out.
    temperature : float
        See `shares`.
    seed : int
        Of the order.
    ranks : int
        Processes that train together.
    block_s : float
        Seconds of audio among which a lane shuffles, and holds encoded in memory.

    Raises
    ------
    BadManifest
        An index is missing or malformed, or a shard is missing.
    ImportError
        webdataset is not installed.
    """

    def __init__(
        self,
        indices: Mapping[str, str | Path],
        *,
        urls: str | None = None,
        min_s: float = 0.1,
        temperature: float = 1.0,
        seed: int = 0,
        ranks: int = 1,
        block_s: float = BLOCK_S,
    ) -> None:
        self.lanes, self.reader = LANES * ranks, AudioReader()
        found = {name: ShardIndex(path, urls, min_s) for name, path in indices.items()}
        corpora = [
            Corpus(name or str(index.path), index.utterances, index.seconds)
            for name, index in found.items()
        ]
        self.mixture = Mixture(corpora, temperature, block_s)
        self.prefixes = [f"{name}/" if name else "" for name in found]
        self.orders = [
            [Lane(index, lane, self.lanes, (seed * 1009 + corpus)) for lane in range(self.lanes)]
            for corpus, index in enumerate(found.values())
        ]
        self.forget()

    def forget(self) -> None:
        """Close all shards. Workers start so: what another process has open is not for them."""
        self.process = os.getpid()
        self.streams: dict[tuple[int, int], tuple[int, Iterator[tuple[str, bytes]]]] = {}
        self.held: dict[int, tuple[int, Audio]] = {}  # lane -> block and what is in it

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked."""
        return {**self.__dict__, "streams": {}, "held": {}}

    def block(self, lane: int, number: int) -> tuple[list[Item], Tensor]:
        """Utterances as (lane, block, corpus, visit, place in the shard)."""
        items: list[Item] = []
        lengths: list[int] = []
        for corpus, visit, first, last in self.parts(lane, number):
            items += [(lane, number, corpus, visit, place) for place in range(first, last)]
            lengths += islice(self.keys(corpus, lane, visit).values(), first, last)
        return items, torch.tensor(lengths, dtype=torch.long)

    def parts(self, lane: int, number: int) -> Iterator[tuple[int, int, int, int]]:
        """(corpus, visit, first, last) of which a block consists."""
        for corpus, (begin, end) in enumerate(self.mixture.spans(number)):
            for part in self.orders[corpus][lane].span(begin, end):
                yield corpus, *part

    def keys(self, corpus: int, lane: int, visit: int) -> dict[str, int]:
        """Samples by key in the shard of a visit."""
        order = self.orders[corpus][lane]
        return order.index.lengths(order.shards[visit])

    def url(self, corpus: int, lane: int, visit: int) -> str:
        """Address of the shard of a visit."""
        order = self.orders[corpus][lane]
        return order.index.urls[order.shards[visit]]

    def __getitems__(self, windows: list[Window]) -> list[dict[str, Any]]:
        """`id` and `sig` (samples,) for each, None where it cannot be used."""
        if self.process != os.getpid():
            self.forget()
        lane, block = windows[0].item[:2]
        if self.held.get(lane, (-1,))[0] != block:
            self.held[lane] = block, {}  # the old one first: not two in memory
            self.held[lane] = block, dict(self.load(lane, block))
        return [self.cut(window, self.held[lane][1]) for window in windows]

    def load(self, lane: int, block: int) -> Iterator[tuple[Item, tuple[str, bytes]]]:
        """Read the shards on, as far as this block goes."""
        list(self.parts(lane, block))  # a worker's lanes have not gone anywhere yet
        for corpus, visit, first, last in self.parts(lane, block):
            keys = list(self.keys(corpus, lane, visit))
            wanted = {keys[place]: place for place in range(first, last)}
            for key, audio in self.stream(corpus, lane, visit):
                if key in wanted:
                    yield (lane, block, corpus, visit, wanted.pop(key)), (key, audio)
                if not wanted:
                    break
            if wanted:
                url = self.url(corpus, lane, visit)
                self.reader.warn(url, f"{url}: {len(wanted)} or more utterances are not in it.")

    def stream(self, corpus: int, lane: int, visit: int) -> Iterator[tuple[str, bytes]]:
        """The shard of a visit, from where it was left."""
        if self.streams.get((corpus, lane), (-1,))[0] != visit:
            url = self.url(corpus, lane, visit)
            stream = read_shard(url, lambda reason: self.reader.warn(url, reason))
            self.streams[corpus, lane] = visit, stream
        return self.streams[corpus, lane][1]

    def cut(self, window: Window, held: Audio) -> dict[str, Any]:
        """One window, from what is held of its block."""
        lane, _, corpus, visit, place = window.item
        if window.item not in held:
            return {"id": f"{self.url(corpus, lane, visit)}:{place}", "sig": None}
        key, audio = held[window.item]
        name = self.prefixes[corpus] + key
        wav = self.reader.window(name, window.start, window.samples, io.BytesIO(audio))
        return {"id": name, "sig": wav}


def pretraining_speech(
    train: str | Path | Mapping[str, str | Path],
    *,
    shard_urls: str | None = None,
    keep_audio: bool = False,
    ranks: int = 1,
    **settings: Any,
) -> ManifestSpeech | ShardSpeech:
    """Training audio as a recipe names it.

    Parameters
    ----------
    train : path or mapping
        A manifest, the `index.jsonl` of shards, or several of the same kind by the names of the
        corpora: a mapping, or a YAML file that holds one, with paths relative to it.
    shard_urls : str, optional
        See `ShardIndex`.
    keep_audio : bool
        See `ManifestSpeech`; shards are always read again.
    ranks : int
        Processes that train together.
    **settings
        `min_s`, `temperature`, `seed`: see `ManifestSpeech`.

    Raises
    ------
    BadManifest
        A file cannot be used, or manifests are mixed with shards.
    """
    corpora = named_corpora(train)
    sharded = {str(path).endswith(".jsonl") for path in corpora.values()}
    if len(sharded) != 1:
        raise BadManifest(
            f"train_csv: {dict(corpora)}: expected one or more corpora, all of them manifests or "
            "all of them indices of shards (.jsonl). recipes/prepare/shards.py packs manifests."
        )
    if sharded == {True}:
        return ShardSpeech(corpora, urls=shard_urls, ranks=ranks, **settings)
    return ManifestSpeech(corpora, keep_audio=keep_audio, **settings)


def named_corpora(train: str | Path | Mapping[str, str | Path]) -> Mapping[str, str | Path]:
    """Paths by the names of the corpora; the name of a single one is empty."""
    if isinstance(train, Mapping):
        return train
    path = Path(train)
    if path.suffix not in (".yaml", ".yml"):
        return {"": path}
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadManifest(f"{path}: cannot be read as YAML: {error}") from error
    if not (isinstance(listed, dict) and all(isinstance(one, str) for one in listed.values())):
        raise BadManifest(
            f"{path}: expected a line `name: path` for each corpus, the path a manifest or an "
            "index.jsonl."
        )
    return {str(name): path.parent / one for name, one in listed.items()}
