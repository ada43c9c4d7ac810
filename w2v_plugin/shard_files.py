"""Corpora in tar files (WebDataset's format), for disks and networks that dislike small files.

A shard holds, for each utterance, `KEY.flac` (or .wav, .ogg ...: the bytes of the original file)
and `KEY.json` (its row of the manifest). Beside the shards, `index.jsonl` has one line for each,
with the samples of every utterance. From the index alone follows what is heard when; a shard is
only opened once its time has come, and is read from beginning to end, as disks and servers like it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from w2v_plugin.errors import BadManifest
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.manifests import read_manifest

INDEX = "index.jsonl"
NOT_AUDIO = {"json", "txt"}


def webdataset() -> Any:
    """The library that opens shards, or what to do where it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise ImportError(
            "Shards need the package webdataset: pip install 'w2v_plugin[shards]'."
        ) from error
    return webdataset


@dataclass(frozen=True)
class ShardSummary:
    """What `write_shards` wrote; `print` it."""

    index: Path
    shards: int
    utterances: int
    seconds: float
    skipped: int

    def __str__(self) -> str:
        line = f"{self.index}: {self.shards} shards, {self.utterances} utterances"
        line += f", {self.seconds / 3600:.2f} h"
        return line + (f"; {self.skipped} could not be read" if self.skipped else "")


def write_shards(
    manifest: str | Path, folder: str | Path, *, name: str, shard_mb: float = 500, seed: int = 0
) -> ShardSummary:
    """Pack the audio of a manifest, in random order: a shard shall be like the corpus.

    Parameters
    ----------
    manifest : str or Path
        CSV as written by the other scripts in `recipes/prepare`.
    folder : str or Path
        Where `NAME-000000.tar` ... and `index.jsonl` go. The index is written last: without it, the
        shards are not complete.
    name : str
        What the shards are called.
    shard_mb : float
        A shard is closed when it has at least so many million bytes.
    seed : int
        Of the order.

    Returns
    -------
    ShardSummary
        Its counts; files that cannot be read are left out.

    Raises
    ------
    BadManifest
        The manifest is malformed, or none of its files can be read.
    """
    rows = read_manifest(manifest)
    random.Random(seed).shuffle(rows)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    lines: list[dict[str, Any]] = []
    skipped = 0
    writer, size = None, 0
    for number, row in enumerate(tqdm(rows, desc=str(folder), disable=None)):
        path = Path(row["wav"])
        try:
            audio = path.read_bytes()
        except OSError as error:
            tqdm.write(f"{manifest}:{row['line']}: {row['ID']}: left out: {error}")
            skipped += 1
            continue
        if writer is None:
            shard, size = f"{name}-{len(lines):06d}.tar", 0
            writer = webdataset().TarWriter(str(folder / shard), encoder=False, mtime=0)
            lines.append({"shard": shard, "samples": {}})
        key = f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]', '_', row['ID'])[-60:]}"
        about = {"id": row["ID"], "duration": row["duration"], "speaker": row["spk_id"]}
        text = json.dumps({**about, "text": row["wrd"]}, ensure_ascii=False)
        suffix = path.suffix.lstrip(".").lower()
        size += writer.write({"__key__": key, suffix: audio, "json": text.encode()})
        lines[-1]["samples"][key] = round(row["duration"] * SAMPLE_RATE)
        if size >= shard_mb * 1e6:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    if not lines:
        raise BadManifest(f"{manifest}: none of its {len(rows)} audio files can be read.")
    return _write_index(folder / INDEX, lines, skipped)


def _write_index(path: Path, lines: list[dict[str, Any]], skipped: int) -> ShardSummary:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for line in lines:
            seconds = sum(line["samples"].values()) / SAMPLE_RATE
            counts = {"utterances": len(line["samples"]), "hours": round(seconds / 3600, 6)}
            file.write(json.dumps({"shard": line["shard"], **counts, "samples": line["samples"]}))
            file.write("\n")
    part.replace(path)
    samples = [n for line in lines for n in line["samples"].values()]
    return ShardSummary(path, len(lines), len(samples), sum(samples) / SAMPLE_RATE, skipped)


class ShardIndex:
    """The shards of a corpus; their utterances are looked up in the file when they are needed.

    Parameters
    ----------
    path : str or Path
        `index.jsonl`.
    urls : str, optional
        Where the shards are, `{}` stands for the name: `https://host/{}`, or a shell command,
        `pipe:aws s3 cp s3://bucket/{} -`. By default, beside the index.
    min_s : float
        Shorter utterances are not there.

    Raises
    ------
    BadManifest
        The index is missing or malformed, a shard beside it is missing, or nothing is left.
    """

    def __init__(self, path: str | Path, urls: str | None = None, min_s: float = 0.1) -> None:
        self.path, self.min_samples = Path(path), round(min_s * SAMPLE_RATE)
        if not self.path.is_file():
            raise BadManifest(f"{path}: no such index. Write it with recipes/prepare/shards.py.")
        if urls is not None and "{}" not in urls:
            raise BadManifest(f"shard_urls is {urls!r}, expected {{}} where the shard's name goes.")
        self.urls: list[str] = []
        self.counts: list[int] = []  # usable utterances per shard
        self.places: list[int] = []  # of its line in the file
        samples = place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                shard, lengths = self._parsed(line, number)
                self.urls.append(urls.replace("{}", shard) if urls else str(self.beside(shard)))
                self.counts.append(len(lengths))
                self.places.append(place)
                samples += sum(lengths.values())
                place += len(line)
        self.seconds, self.utterances = samples / SAMPLE_RATE, sum(self.counts)
        if self.utterances == 0:
            raise BadManifest(f"{path}: no utterance of {min_s:g} s or more.")

    def beside(self, shard: str) -> Path:
        """A shard in the folder of the index."""
        path = self.path.parent / shard
        if not path.is_file():
            raise BadManifest(
                f"{path}: no such shard, but {self.path} lists it. Copy it there, or say with "
                "shard_urls where it is."
            )
        return path

    def _parsed(self, line: bytes, number: int) -> tuple[str, dict[str, int]]:
        try:
            entry = json.loads(line)
            shard, samples = entry["shard"], entry["samples"]
            return shard, {k: int(n) for k, n in samples.items() if n >= self.min_samples}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadManifest(
                f"{self.path}:{number}: not a line of a shard index ({error!r}). Write it again "
                "with recipes/prepare/shards.py."
            ) from error

    def lengths(self, shard: int) -> dict[str, int]:
        """Samples of a shard's utterances by key, in the order of the shard."""
        with self.path.open("rb") as file:
            file.seek(self.places[shard])
            return self._parsed(file.readline(), shard + 1)[1]


def read_shard(url: str, complain: Callable[[str], None]) -> Iterator[tuple[str, bytes]]:
    """Utterances of a shard, as far as it can be read.

    Parameters
    ----------
    url : str
        A path, http(s) or another address that webdataset opens, or `pipe:` and a shell command.
    complain : callable
        Gets the reason if something cannot be read; what can, is still given.

    Yields
    ------
    tuple
        Key and the bytes of the audio file.
    """
    library = webdataset()
    problems: list[Exception] = []

    def note(error: Exception) -> bool:
        problems.append(error)
        return True  # go on

    try:
        stream = library.gopen(url)
    except OSError as error:
        complain(f"{url}: {error}")
        return
    finished = False
    try:
        tar = library.tariterators.tar_file_expander([{"url": url, "stream": stream}], note)
        for sample in library.tariterators.group_by_keys(tar, handler=note):
            audio = [key for key in sample if key[0] != "_" and key not in NOT_AUDIO]
            if audio:
                yield sample["__key__"], sample[audio[0]]
        finished = True
    finally:
        try:
            stream.close()
        except OSError as error:
            if finished:  # a command that is stopped early fails: that is no news
                note(error)
    if problems:
        complain(f"{url}: {problems[0].args[0] if problems[0].args else problems[0]!r}")
