"""Manifests -> batches: what is left out and why, and a stream of batches that can be resumed."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from w2v_plugin.data import (
    AudioReader,
    BucketSampler,
    collate,
    crop,
    speech_dataset,
    unusable,
)
from w2v_plugin.errors import BadManifest
from w2v_plugin.frames import HOP
from w2v_plugin.text import CharVocabulary

RATE = 16_000


def write_wav(path: Path, seconds: float, seed: int = 0) -> Path:
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    soundfile.write(path, noise.astype(np.float32), RATE)
    return path


def write_manifest(folder: Path, rows: list[tuple[str, float, str]]) -> Path:
    """(name of a wav in the folder, duration, transcript)."""
    lines = [f"u{i},{d},{folder / name},ann,{text}" for i, (name, d, text) in enumerate(rows)]
    path = folder / "train.csv"
    path.write_text("\n".join(["ID,duration,wav,spk_id,wrd", *lines]) + "\n")
    return path


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "a.wav", 1.0)


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"duration": "0.09"}, "0.09 s, outside [0.1, 2] s"),
        ({"duration": "2.01"}, "2.01 s, outside [0.1, 2] s"),
        ({"duration": "0.1"}, ""),
        ({"duration": "2"}, ""),
        ({"wav": "/nowhere/b.wav"}, "no such file: /nowhere/b.wav"),
        ({"wrd": "  "}, "empty transcript"),
        ({"wrd": "a 2nd"}, "characters outside the vocabulary: 2"),
        ({"wrd": "E" * 25, "duration": "1.0"}, ""),  # 25 letters and 24 blanks: 49 frames
        ({"wrd": "E" * 26, "duration": "1.0"}, "the transcript needs 51 frames, the audio has 49"),
    ],
)
def test_every_reason_to_leave_a_row_out(wav: Path, change: dict[str, str], reason: str) -> None:
    """With both bounds included, and CTC's own need for frames."""
    row = {"ID": "u", "duration": "1.0", "wav": str(wav), "spk_id": "ann", "wrd": "a", **change}
    assert unusable(row, CharVocabulary(), min_s=0.1, max_s=2) == reason
    if "wrd" in change:  # without a vocabulary the transcript does not matter
        assert unusable(row, None, min_s=0.1, max_s=2) == ""


def test_left_out_rows_are_logged_with_their_lines(
    wav: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """File, line, ID and reason each; a count at the end; the others stay."""
    manifest = write_manifest(
        tmp_path, [(wav.name, 1.0, "a"), ("gone.wav", 1.0, "a"), (wav.name, 1.0, "é")]
    )
    with caplog.at_level(logging.INFO):
        dataset = speech_dataset(manifest, vocabulary=CharVocabulary())
    assert f"{manifest}:3: u1: no such file" in caplog.text
    assert f"{manifest}:4: u2: characters outside the vocabulary: É" in caplog.text
    assert "1 utterances, 0.00 h; 2 left out" in caplog.text
    (item,) = list(dataset)
    assert item["id"] == "u0" and item["tokens"].tolist() == [7] and item["wrd"] == "a"
    assert item["sig"].shape == (RATE,)


def test_nothing_usable_is_an_error(wav: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, [(wav.name, 99.0, "a")])
    with pytest.raises(BadManifest, match=r"(?s)no usable utterance.*train\.csv:2: u0: 99\.00 s"):
        speech_dataset(manifest)


# --- audio that turns out to be unreadable -------------------------------------------------------


def test_a_file_deleted_in_the_middle_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch goes on without it; it is named once, not once an epoch."""
    names = [write_wav(tmp_path / f"{i}.wav", 0.5, i).name for i in range(3)]
    dataset = speech_dataset(write_manifest(tmp_path, [(name, 0.5, "a") for name in names]))
    assert len(collate([dataset[i] for i in range(3)]).id) == 3
    (tmp_path / "1.wav").unlink()
    with caplog.at_level(logging.WARNING):
        batches = [collate([dataset[i] for i in range(3)]) for _ in range(2)]
    assert [batch.id for batch in batches] == [["u0", "u2"]] * 2
    assert caplog.text.count("Left out (1 so far)") == caplog.text.count("no such file") == 1


def test_kept_audio_is_not_read_again(wav: Path) -> None:
    """To 16 bits: half a step of 1 / 32767; and the file may go."""
    reader, fresh = AudioReader(keep=True), AudioReader()
    first, expected = reader(str(wav)), fresh(str(wav))
    wav.unlink()
    again = reader(str(wav))
    assert first is not None and again is not None and expected is not None
    assert torch.equal(first, expected) and again.dtype == torch.float32
    torch.testing.assert_close(again, expected, rtol=0.0, atol=0.51 / 32767)
    assert fresh(str(wav)) is None and list(fresh.failed) == [str(wav)] and not reader.failed


@pytest.mark.parametrize("tokens", [False, True])
def test_a_batch_of_nothing_is_a_moment_of_silence(tokens: bool) -> None:
    """One frame, no character, the first name: training counts on a batch."""
    example: dict[str, Any] = {"id": "u", "sig": None}
    if tokens:
        example |= {"tokens": torch.tensor([7, 8]), "wrd": "AO"}
    batch = collate([dict(example), dict(example)])
    assert batch.id == ["u"] and batch.sig.data.shape == (1, 400) and not batch.sig.data.any()
    if tokens:
        assert batch.tokens.data.shape == (1, 0) and batch.wrd == [""]


# --- batches -------------------------------------------------------------------------------------

DURATIONS = torch.rand(97, generator=torch.Generator().manual_seed(0)).mul(9).add(1).tolist()


def sampler(**kwargs: Any) -> BucketSampler:
    return BucketSampler(DURATIONS, **{"budget_s": 30.0, **kwargs})


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("crop_s", [4.0, float("inf")])
@pytest.mark.parametrize("budget_s", [0.5, 12.0, 30.0, 1e4])
def test_a_pass_hears_everything_once_within_the_budget(
    budget_s: float, crop_s: float, shuffle: bool
) -> None:
    """Padded length times rows; only a single utterance may exceed it."""
    for number in range(3):
        batches = sampler(budget_s=budget_s, crop_s=crop_s, shuffle=shuffle).one_pass(number)
        assert Counter(i for batch in batches for i in batch) == Counter(range(97))
        for batch in batches:
            longest = max(min(DURATIONS[i], crop_s) for i in batch)
            assert batch and (len(batch) == 1 or longest * len(batch) <= budget_s)


def test_padding_is_little() -> None:
    """Similar lengths together: under 10 %, where random batches waste a third."""
    batches = sampler().one_pass(0)
    padded = sum(len(b) * max(DURATIONS[i] for i in b) for b in batches)
    assert sum(DURATIONS) / padded > 0.9


@pytest.mark.parametrize("batches", [None, 1, 7, 100])
def test_epochs_cut_one_stream(batches: int | None) -> None:
    """Epoch after epoch is pass after pass, without a gap or a repeat, also when resumed."""
    one = sampler(batches=batches)
    length = len(one)
    stream = [batch for number in range(3 + 4 * length // 15) for batch in one.one_pass(number)]
    for epoch in range(1, 5):
        for resumed in (one, sampler(batches=batches)):
            resumed.set_epoch(epoch)
            assert list(resumed) == stream[(epoch - 1) * length : epoch * length]


def test_the_seed_decides_the_order() -> None:
    """Same seed, same batches, whatever else was drawn; other passes and seeds differ."""
    torch.manual_seed(1)
    first = list(sampler(seed=3))
    torch.manual_seed(2)
    assert list(sampler(seed=3)) == first != list(sampler(seed=4))
    assert sampler().one_pass(0) != sampler().one_pass(1)


def test_evaluation_is_sorted_and_always_the_same() -> None:
    """Longest first, so that memory runs out at once or never; epochs do not move it."""
    one = sampler(shuffle=False)
    first = list(one)
    one.set_epoch(5)
    assert list(one) == first and len(one) == len(first)
    flat = [DURATIONS[i] for batch in first for i in batch]
    assert flat == sorted(flat, reverse=True)


# --- crops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [400, 1000, 3200, 9999])
def test_crops_lie_inside_the_utterance(samples: int) -> None:
    """Row i of a ramp: a window of valid samples that begins at a multiple of the hop."""
    torch.manual_seed(0)
    lengths = torch.tensor([10000, 3500, 1001, 1000, 999, 400])
    wavs = torch.arange(10000.0).expand(6, -1).clone()
    for row, length in zip(wavs, lengths, strict=True):
        row[length:] = -1.0
    starts = []
    for _ in range(60):
        cut, wav_lens = crop(wavs, lengths / 10000, samples)
        assert cut.shape == (6, samples)
        kept = torch.round(wav_lens * samples).long()
        assert kept.tolist() == lengths.clamp(max=samples).tolist()
        for row, n in zip(cut, kept.tolist(), strict=True):
            assert torch.equal(row[:n], row[0] + torch.arange(float(n))) and row[0] >= 0
            assert row[0] % HOP == 0 and bool((row[n:] == -1).all())
        starts.append(int(cut[0, 0]))
    assert len(set(starts)) >= min(10, (10000 - samples) // HOP + 1)  # of 60 draws


def test_short_batches_are_not_cropped() -> None:
    wavs, wav_lens = torch.rand(2, 500), torch.tensor([1.0, 0.5])
    cut, lens = crop(wavs, wav_lens, 500)
    assert cut is wavs and lens is wav_lens
