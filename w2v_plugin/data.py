"""Manifests -> SpeechBrain datasets and batches.

A manifest is a CSV with the columns ID, duration, wav, spk_id, wrd. Rows that cannot be used are
left out here, each with its file, line and reason in the log; a file that turns out to be
unreadable in the middle of a run is left out of its batch, named once in the log and counted at
the end of each epoch, and the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.logger import get_logger
from torch import Tensor
from torch.utils.data import Dataset

from w2v_plugin.audio import read_audio, read_window
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.frames import (
    HOP,
    RECEPTIVE_FIELD,
    SAMPLE_RATE,
    SHORTEST_S,
    frame_lengths,
)
from w2v_plugin.manifests import read_manifest
from w2v_plugin.sampling import BucketSampler, CropSampler, Source
from w2v_plugin.text import CharVocabulary, ctc_frames

logger = get_logger(__name__)


SILENCE = 1e-4  # -80 dB: three steps of 16 bits
EMPTY_BATCHES = 100  # in a row that end the run: the disk is gone, or all of the audio is bad


@dataclass
class AudioReader:
    """Reads waveforms, keeps them in memory if asked to, and names what it could not read, once."""

    keep: bool = False
    failed: dict[str, str] = field(default_factory=dict)  # file -> reason
    warned: set[str] = field(default_factory=set)
    kept: dict[str, Tensor] = field(default_factory=dict)  # file -> int16 samples

    def __call__(self, path: str) -> Tensor | None:
        """(samples,) float32, or None for a file that cannot be used."""
        if path in self.kept:
            return self.kept[path].float() / 32768
        if path in self.failed:
            return None
        try:
            wav = read_audio(path)
        except BadAudio as error:
            self.leave_out(path, str(error))
            return None
        if self.keep:  # and give out what later uses will get, or a resumed run would differ
            self.kept[path] = (wav * 32768).round().clamp(-32768, 32767).short()
            return self.kept[path].float() / 32768
        return wav

    def window(
        self, name: str, start: int, samples: int, source: BinaryIO | None = None
    ) -> Tensor | None:
        """(samples,) of a file (or of its bytes, `source`), or None if they cannot be used.

        One frame may be missing at the end; silence cannot be used.
        """
        if name in self.failed:
            return None
        if self.keep and source is None:
            whole = self(name)
            wav = whole if whole is None else whole[start : start + samples]
        else:
            try:
                wav = read_window(source or name, start, samples, name)
            except BadAudio as error:
                self.leave_out(name, str(error))
                return None
        if wav is None:
            return None
        if len(wav) < max(samples - HOP, RECEPTIVE_FIELD):
            ends = (start + len(wav)) / SAMPLE_RATE
            self.leave_out(name, f"{name}: ends at {ends:.2f} s, earlier than was listed.")
            return None
        if float(wav.std()) < SILENCE:
            seconds = f"{start / SAMPLE_RATE:.1f}-{(start + samples) / SAMPLE_RATE:.1f} s"
            self.warn(name, f"{name}: silent at {seconds} (below -80 dB).")
            return None  # but elsewhere there may be speech
        return wav

    def leave_out(self, name: str, reason: str) -> None:
        """Do not try this file again."""
        self.warn(name, reason)
        self.failed[name] = reason

    def warn(self, name: str, reason: str) -> None:
        if name not in self.warned:
            self.warned.add(name)
            message = f"Left out ({len(self.warned)} so far): {reason}"
            logger.warning(message, main_process_only=False)


def speech_dataset(
    manifest: str | Path,
    *,
    vocabulary: CharVocabulary | None = None,
    min_s: float = SHORTEST_S,
    max_s: float = 30.0,
    keep_audio: bool = False,
    evaluation: bool = False,
) -> DynamicItemDataset:
    """Utterances of a manifest, ready for a Brain.

    Parameters
    ----------
    manifest : str or Path
        CSV as written by the scripts in `recipes/prepare`.
    vocabulary : CharVocabulary, optional
        Encode the transcripts; without it only audio is given out.
    min_s, max_s : float
        Shorter and longer utterances (seconds) are left out; the longer ones in training only.
    keep_audio : bool
        Keep decoded audio in memory (115 MB per hour) after its first use.
    evaluation : bool
        Keep utterances longer than `max_s`, and those whose transcripts the vocabulary cannot
        spell, or CTC cannot say in so few frames: to leave them out would flatter. What cannot be
        said counts as errors.

    Returns
    -------
    DynamicItemDataset
        Items `id`, `sig` (samples,) or None, and with a vocabulary `tokens`, `wrd`.

    Raises
    ------
    BadManifest
        The manifest is malformed, or no utterance is left.
    """
    rows = usable_rows(
        manifest, vocabulary=vocabulary, min_s=min_s, max_s=max_s, evaluation=evaluation
    )
    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(AudioReader(keep_audio), takes="wav", provides="sig")
    keys = ["id", "sig"]
    if vocabulary is not None:
        dataset.add_dynamic_item(
            lambda text: torch.tensor(vocabulary.encode_known(text), dtype=torch.long),
            takes="wrd",
            provides="tokens",
        )
        keys += ["tokens", "wrd"]
    dataset.set_output_keys(keys)
    return dataset


def usable_rows(
    manifest: str | Path,
    *,
    vocabulary: CharVocabulary | None = None,
    min_s: float = SHORTEST_S,
    max_s: float = math.inf,
    evaluation: bool = False,
) -> dict[str, dict[str, Any]]:
    """Rows of a manifest by ID; the others are logged with their reasons. See `speech_dataset`."""
    rows, left_out, unsayable = {}, [], 0
    max_s = math.inf if evaluation else max_s
    for row in read_manifest(manifest):
        reason = unusable(row, vocabulary, min_s, max_s)
        if reason and not (evaluation and reason == unspeakable(row, vocabulary)):
            left_out.append(f"{manifest}:{row['line']}: {row['ID']}: {reason}")
            continue
        if reason:
            unsayable += 1
            logger.warning(
                "Counts as errors: %s:%s: %s: %s", manifest, row["line"], row["ID"], reason
            )
        rows[row["ID"]] = row
    for message in left_out:
        logger.warning("Left out %s", message)
    if not rows:
        raise BadManifest("\n".join([f"{manifest}: no usable utterance.", *left_out[:5]]))
    hours = sum(row["duration"] for row in rows.values()) / 3600
    logger.info("%s: %d utterances, %.2f h; %d left out", manifest, len(rows), hours, len(left_out))
    if unsayable:
        logger.warning("%s: the model cannot say all of %d utterances", manifest, unsayable)
    return rows


def unusable(
    row: dict[str, str], vocabulary: CharVocabulary | None, min_s: float, max_s: float
) -> str:
    """Why a row cannot be used, or an empty string."""
    seconds = float(row["duration"])
    if not min_s <= seconds <= max_s:
        return f"{seconds:.2f} s, outside [{min_s}, {max_s}] s"
    if not Path(row["wav"]).is_file():
        return f"no such file: {row['wav']}"
    if vocabulary is not None and not row["wrd"].strip():
        return "empty transcript"
    return unspeakable(row, vocabulary)


def unspeakable(row: dict[str, str], vocabulary: CharVocabulary | None) -> str:
    """Why CTC with this vocabulary cannot say a row's transcript, or an empty string."""
    if vocabulary is None:
        return ""
    if unknown := vocabulary.unknown(row["wrd"]):
        return f"characters outside the vocabulary: {' '.join(unknown)}"
    needed = ctc_frames(vocabulary.encode_text(row["wrd"]))
    if needed > (frames := frame_lengths(round(float(row["duration"]) * SAMPLE_RATE))):
        return f"the transcript needs {needed} frames, the audio has {frames}"
    return ""


def collate(examples: list[dict[str, Any]]) -> PaddedBatch:
    """Pad to the longest; examples without audio are dropped and named in `left_out`.

    If nothing is left, the batch is one frame of silence with an empty transcript: it has no
    masked frame and no character, so its loss is (about) nothing.
    """
    usable = [example for example in examples if example["sig"] is not None]
    left_out = [example["id"] for example in examples if example["sig"] is None]
    if not usable:
        silence = {**examples[0], "sig": torch.zeros(RECEPTIVE_FIELD)}
        if "tokens" in silence:
            silence.update(tokens=torch.zeros(0, dtype=torch.long), wrd="")
        usable = [silence]
    batch = PaddedBatch(usable)
    batch.left_out, batch.asked = left_out, len(examples)
    return batch


def collate_windows(examples: list[dict[str, Any]]) -> PaddedBatch:
    """As `collate`, without padding: a file that ends within a frame of its window crops all."""
    lengths = [len(example["sig"]) for example in examples if example["sig"] is not None]
    for example in examples:
        if example["sig"] is not None:
            example["sig"] = example["sig"][: min(lengths)]
    return collate(examples)


class TrainingLoader(SaveableDataLoader):
    """Counts what the batches lack, and says so at the end of every epoch.

    Raises
    ------
    BadAudio
        After 100 batches in a row without any usable audio: nothing would be learned.
    """

    def __iter__(self) -> Iterator[PaddedBatch]:
        asked, lacking, names, empty = 0, 0, dict[str, None](), 0
        try:
            for batch in super().__iter__():
                asked += batch.asked
                lacking += len(batch.left_out)
                names.update(dict.fromkeys(batch.left_out))
                empty = empty + 1 if len(batch.left_out) == batch.asked else 0
                if empty == EMPTY_BATCHES:
                    raise BadAudio(
                        f"No usable audio in {empty} batches in a row; the last ones were "
                        f"{', '.join(list(names)[-3:])}. The log says why each was left out."
                    )
                yield batch
        finally:
            if lacking:
                first = ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")
                message = f"Left out of this epoch's batches: {lacking} of {asked} ({first})"
                logger.warning(message, main_process_only=False)


def training_loader(
    train: Dataset,
    *,
    batch_s: float,
    batches: int,
    crop_s: float | None = None,
    seed: int = 0,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
) -> TrainingLoader:
    """Batches for training, the same for a seed whatever the number of workers.

    Parameters
    ----------
    train : Dataset
        With `crop_s` a `Source` of windows, without it what `speech_dataset` gives.
    batch_s : float
        Seconds of audio per batch, padding included.
    batches : int
        Per epoch and rank.
    crop_s : float, optional
        Cut windows of at most this many seconds; without it, whole utterances are padded.
    seed, rank, ranks
        See `BatchStream`.
    workers : int
        Processes that read audio.
    """
    order: dict[str, Any] = {
        "budget_s": batch_s,
        "batches": batches,
        "seed": seed,
        "rank": rank,
        "ranks": ranks,
    }
    sampler: BucketSampler | CropSampler
    if crop_s is None:
        sampler = BucketSampler(durations(train), **order)
    else:
        sampler = CropSampler(cast(Source, train), crop_s=crop_s, **order)
    return TrainingLoader(
        train,
        batch_sampler=sampler,
        collate_fn=collate if crop_s is None else collate_windows,
        num_workers=workers,
        persistent_workers=workers > 0,  # or they would forget what they keep and have open
    )


def durations(dataset: DynamicItemDataset) -> list[float]:
    """Seconds per utterance, in the order of the dataset."""
    return [dataset.data[name]["duration"] for name in dataset.data_ids]


def by_length(dataset: DynamicItemDataset, budget_s: float) -> dict[str, Any]:
    """Loader settings for evaluation: sorted by length, everything once.

    An utterance longer than the budget is a batch of its own.
    """
    sampler = BucketSampler(durations(dataset), budget_s=budget_s, shuffle=False)
    return {"batch_sampler": sampler, "collate_fn": collate}
