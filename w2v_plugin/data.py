"""Manifests -> SpeechBrain datasets and batches.

A manifest is a CSV with the columns ID, duration, wav, spk_id, wrd. Rows that cannot be used are
left out here, each with its file, line and reason in the log; a file that turns out to be
unreadable in the middle of a run is left out of its batch and counted, and the run goes on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.logger import get_logger
from torch import Tensor
from torch.utils.data import Sampler

from w2v_plugin.audio import read_audio
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.frames import (
    HOP,
    RECEPTIVE_FIELD,
    SAMPLE_RATE,
    absolute_lengths,
    frame_lengths,
)
from w2v_plugin.manifests import read_manifest
from w2v_plugin.text import CharVocabulary, ctc_frames

logger = get_logger(__name__)


@dataclass
class AudioReader:
    """Reads waveforms, keeps them in memory if asked to, and counts what it could not read."""

    keep: bool = False
    failed: dict[str, str] = field(default_factory=dict)  # path -> reason
    kept: dict[str, Tensor] = field(default_factory=dict)  # path -> int16 samples

    def __call__(self, path: str) -> Tensor | None:
        """(samples,) float32, or None for a file that cannot be used."""
        if path in self.kept:
            return self.kept[path].float() / 32768
        if path in self.failed:
            return None
        try:
            wav = read_audio(path)
        except BadAudio as error:
            self.failed[path] = str(error)
            logger.warning("Left out (%d so far): %s", len(self.failed), error)
            return None
        if self.keep:  # and give out what later uses will get, or a resumed run would differ
            self.kept[path] = (wav * 32768).round().clamp(-32768, 32767).short()
            return self.kept[path].float() / 32768
        return wav


def speech_dataset(
    manifest: str | Path,
    *,
    vocabulary: CharVocabulary | None = None,
    min_s: float = 0.1,
    max_s: float = 30.0,
    keep_audio: bool = False,
) -> DynamicItemDataset:
    """Utterances of a manifest, ready for a Brain.

    Parameters
    ----------
    manifest : str or Path
        CSV as written by the scripts in `recipes/prepare`.
    vocabulary : CharVocabulary, optional
        Encode the transcripts; without it only audio is given out.
    min_s, max_s : float
        Shorter and longer utterances (seconds) are left out.
    keep_audio : bool
        Keep decoded audio in memory (115 MB per hour) after its first use.

    Returns
    -------
    DynamicItemDataset
        Items `id`, `sig` (samples,) or None, and with a vocabulary `tokens`, `wrd`.

    Raises
    ------
    BadManifest
        The manifest is malformed, or no utterance is left.
    """
    rows, left_out = {}, []
    for row in read_manifest(manifest):
        reason = unusable(row, vocabulary, min_s, max_s)
        if reason:
            left_out.append(f"{manifest}:{row['line']}: {row['ID']}: {reason}")
        else:
            rows[row["ID"]] = {**row, "duration": float(row["duration"])}
    for message in left_out:
        logger.warning("Left out %s", message)
    if not rows:
        raise BadManifest("\n".join([f"{manifest}: no usable utterance.", *left_out[:5]]))
    hours = sum(row["duration"] for row in rows.values()) / 3600
    logger.info("%s: %d utterances, %.2f h; %d left out", manifest, len(rows), hours, len(left_out))
    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(AudioReader(keep_audio), takes="wav", provides="sig")
    keys = ["id", "sig"]
    if vocabulary is not None:
        dataset.add_dynamic_item(
            lambda text: torch.tensor(vocabulary.encode_text(text)), takes="wrd", provides="tokens"
        )
        keys += ["tokens", "wrd"]
    dataset.set_output_keys(keys)
    return dataset


def unusable(
    row: dict[str, str], vocabulary: CharVocabulary | None, min_s: float, max_s: float
) -> str:
    """Why a row cannot be used, or an empty string."""
    seconds = float(row["duration"])
    if not min_s <= seconds <= max_s:
        return f"{seconds:.2f} s, outside [{min_s}, {max_s}] s"
    if not Path(row["wav"]).is_file():
        return f"no such file: {row['wav']}"
    if vocabulary is None:
        return ""
    if not row["wrd"].strip():
        return "empty transcript"
    if unknown := vocabulary.unknown(row["wrd"]):
        return f"characters outside the vocabulary: {' '.join(unknown)}"
    needed = ctc_frames(vocabulary.encode_text(row["wrd"]))
    if needed > (frames := frame_lengths(round(seconds * SAMPLE_RATE))):
        return f"the transcript needs {needed} frames, the audio has {frames}"
    return ""


def collate(examples: list[dict[str, Any]]) -> PaddedBatch:
    """Pad to the longest; examples without audio are dropped.

    If nothing is left, the batch is one frame of silence with an empty transcript: it has no
    masked frame and no character, so its loss is (about) nothing.
    """
    usable = [example for example in examples if example["sig"] is not None]
    if not usable:
        silence = {**examples[0], "sig": torch.zeros(RECEPTIVE_FIELD)}
        if "tokens" in silence:
            silence.update(tokens=torch.zeros(0, dtype=torch.long), wrd="")
        usable = [silence]
    return PaddedBatch(usable)


class BucketSampler(Sampler[list[int]]):
    """Batches of similar length under an audio budget, a fixed number per nominal epoch.

    The stream of batches is a pure function of `seed`, so that a resumed run sees the batches
    that the uninterrupted one would have seen. Passes over the data follow each other without
    a gap; an epoch is `batches` consecutive batches of that stream, whatever the corpus size.

    Parameters
    ----------
    durations : list of float
        Seconds per utterance.
    budget_s : float
        Padded seconds per batch; a longer utterance is a batch of its own.
    batches : int, optional
        Batches per epoch; by default one pass over the data.
    crop_s : float, optional
        Utterances count as at most this long.
    seed : int
        Of the order.
    shuffle : bool
        False: sorted by length, one pass, always the same (for evaluation).

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
        crop_s: float = float("inf"),
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.durations = torch.tensor([min(d, crop_s) for d in durations], dtype=torch.float64)
        self.budget_s, self.seed, self.shuffle = budget_s, seed, shuffle
        self.batches = batches or len(self.one_pass(0))
        self.epoch = 1
        self.begins = [0]  # batches in the stream before each pass, as far as known

    def set_epoch(self, epoch: int) -> None:
        """Called by SpeechBrain's Brain; epochs count from 1."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def one_pass(self, number: int) -> list[list[int]]:
        """Batches of one pass over the data."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        noise = torch.rand(len(self.durations), generator=generator, dtype=torch.float64)
        key = self.durations * (1 + 0.1 * noise) if self.shuffle else self.durations
        batches: list[list[int]] = []
        current: list[int] = []
        longest = 0.0
        for index in key.argsort(descending=True).tolist():
            longest = max(longest, float(self.durations[index]))
            if current and longest * (len(current) + 1) > self.budget_s:
                batches.append(current)
                current, longest = [], float(self.durations[index])
            current.append(index)
        batches.append(current)
        if not self.shuffle:
            return batches
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def __iter__(self) -> Iterator[list[int]]:
        begin = (self.epoch - 1) * self.batches if self.shuffle else 0
        end, number = begin + self.batches, bisect_right(self.begins, begin) - 1
        while self.begins[number] < end:
            batches = self.one_pass(number)
            first = self.begins[number]
            if len(self.begins) == number + 1:
                self.begins.append(first + len(batches))
            yield from batches[max(begin - first, 0) : end - first]
            number += 1


def durations(dataset: DynamicItemDataset) -> list[float]:
    """Seconds per utterance, in the order of the dataset."""
    return [dataset.data[name]["duration"] for name in dataset.data_ids]


def by_length(dataset: DynamicItemDataset, budget_s: float) -> dict[str, Any]:
    """Loader settings for evaluation: sorted by length, everything once."""
    sampler = BucketSampler(durations(dataset), budget_s=budget_s, shuffle=False)
    return {"batch_sampler": sampler, "collate_fn": collate}


def crop(wavs: Tensor, wav_lens: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Cut a random window of at most `samples` out of each row.

    Returns
    -------
    tuple of Tensor
        (batch, at most samples) and new relative lengths.
    """
    if wavs.shape[1] <= samples:
        return wavs, wav_lens
    lengths = absolute_lengths(wav_lens, wavs.shape[1])
    room = (lengths - samples + 1).clamp(min=1)
    start = (torch.rand(len(wavs), device=wavs.device) * room).long() // HOP * HOP
    index = start[:, None] + torch.arange(samples, device=wavs.device)
    return wavs.gather(1, index), lengths.clamp(max=samples) / samples
