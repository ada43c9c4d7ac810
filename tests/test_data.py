"""Manifests -> batches: what is left out and why, and a stream of batches that can be resumed."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.utils.checkpoints import Checkpointer

from w2v_plugin.corpora import ManifestSpeech
from w2v_plugin.data import (
    AudioReader,
    TrainingLoader,
    by_length,
    collate,
    speech_dataset,
    training_loader,
    unusable,
)
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.text import CharVocabulary

RATE = 16_000
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores


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


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_a_window_is_a_part_of_the_file(wav: Path, keep: bool) -> None:
    """Kept audio went through 16 bits: half a step."""
    whole = AudioReader()(str(wav))
    assert whole is not None
    window = AudioReader(keep).window(str(wav), 1234, 4000)
    assert window is not None
    torch.testing.assert_close(window, whole[1234:5234], rtol=0.0, atol=0.51 / 32767)


def test_a_window_may_lack_a_frame_at_the_end_but_no_more(wav: Path) -> None:
    """A rounded duration is no reason to leave a file out; a wrong one is."""
    reader = AudioReader()
    nearly = reader.window(str(wav), 12_300, 4000)
    assert nearly is not None and len(nearly) == 3700
    assert reader.window(str(wav), 14_000, 4000) is None
    assert "ends at 1.00 s, earlier than was listed" in reader.failed[str(wav)]


@pytest.mark.parametrize("level", [0.0, 0.5, 0.5 + 1e-5])
def test_silence_is_left_out_but_not_the_rest_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, level: float
) -> None:
    """Zeros, an offset, and noise far below what a microphone gives."""
    speech = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    quiet = level + 1e-5 * np.random.default_rng(1).standard_normal(RATE) * (level > 0.5)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.concatenate([quiet + np.zeros(RATE), speech]), RATE, "FLOAT")
    reader = AudioReader()
    with caplog.at_level(logging.WARNING):
        assert reader.window(str(path), 0, 8000) is None
        assert reader.window(str(path), 100, 8000) is None
        assert reader.window(str(path), RATE, 8000) is not None
    assert caplog.text.count("silent at 0.0-0.5 s") == caplog.text.count("Left out") == 1


# --- loaders -------------------------------------------------------------------------------------


def crops(tmp_path: Path, names: list[str], seconds: float, **settings: Any) -> TrainingLoader:
    manifest = write_manifest(tmp_path, [(name, seconds, "") for name in names])
    settings = {"batch_s": 4.0, "crop_s": 1.0, "batches": 6, "seed": 3} | settings
    return training_loader(ManifestSpeech({"": manifest}, seed=3), **settings)


def heard(loader: TrainingLoader, epoch: int = 1) -> list[tuple[list[str], torch.Tensor]]:
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return [(batch.id, batch.sig.data) for batch in loader]


def same(a: list[tuple[list[str], torch.Tensor]], b: list[tuple[list[str], torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


def test_batches_have_no_padding(tmp_path: Path) -> None:
    """Every sample is noise, every relative length exactly 1."""
    names = [write_wav(tmp_path / f"{i}.wav", 0.5 + 0.1 * i, i).name for i in range(8)]
    lines = [(name, 0.5 + 0.1 * i, "") for i, name in enumerate(names)]
    speech = ManifestSpeech({"": write_manifest(tmp_path, lines)})
    for batch in training_loader(speech, batch_s=3.0, crop_s=1.0, batches=20):
        assert batch.sig.lengths.eq(1).all() and batch.sig.data.ne(0).float().mean() > 0.999
        assert batch.sig.data.shape[1] <= RATE


@pytest.mark.parametrize("crop_s", [None, 1.0])
def test_workers_change_nothing(tmp_path: Path, crop_s: float | None) -> None:
    """The same batches, to the sample, in both epochs; another epoch is another one."""
    names = [write_wav(tmp_path / f"{i}.wav", 1.5, i).name for i in range(9)]
    manifest = write_manifest(tmp_path, [(name, 1.5, "") for name in names])
    speech = ManifestSpeech({"": manifest}) if crop_s else speech_dataset(manifest)
    alone, helped = (
        training_loader(speech, batch_s=4.0, crop_s=crop_s, batches=6, workers=workers)
        for workers in (0, 2)
    )
    first = heard(alone)
    assert same(first, heard(helped)) and same(heard(alone, 2), heard(helped, 2))
    assert not same(first, heard(alone, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_in_the_middle(tmp_path: Path, workers: int) -> None:
    """SpeechBrain saves the position; the same windows follow."""
    names = [write_wav(tmp_path / f"{i}.wav", 1.5, i).name for i in range(9)]
    whole = heard(crops(tmp_path, names, 1.5), epoch=2)
    loader = crops(tmp_path, names, 1.5, workers=workers)
    loader.batch_sampler.set_epoch(2)  # type: ignore[union-attr]
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    Checkpointer(tmp_path / "save", {"loader": loader}).save_checkpoint(end_of_epoch=False)
    batches.close()  # type: ignore[attr-defined]
    fresh = crops(tmp_path, names, 1.5, workers=workers)
    Checkpointer(tmp_path / "save", {"loader": fresh}).recover_if_possible()
    assert same(heard(fresh, epoch=2), whole[4:])


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_take_turns(tmp_path: Path, ranks: int) -> None:
    """Together they hear the stream of one process, in its order."""
    names = [write_wav(tmp_path / f"{i}.wav", 1.5, i).name for i in range(9)]
    one = heard(crops(tmp_path, names, 1.5, batches=6 * ranks), epoch=2)
    for rank in range(ranks):
        part = heard(crops(tmp_path, names, 1.5, rank=rank, ranks=ranks), epoch=2)
        assert same(part, one[rank::ranks])


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One vanished, one damaged: the others are heard, the epoch ends with a count."""
    names = [write_wav(tmp_path / f"{i}.wav", 1.0, i).name for i in range(4)]
    loader = crops(tmp_path, names, 1.0, batches=8, batch_s=2.0)  # four passes of two batches
    (tmp_path / "1.wav").unlink()
    (tmp_path / "2.wav").write_bytes(b"no audio")
    with caplog.at_level(logging.WARNING):
        ids = Counter(name for batch, _ in heard(loader) for name in batch)
    assert ids["u0"] == ids["u3"] == 4
    assert re.search(r"Left out of this epoch's batches: 8 of 16 \(u[12], u[12]\)", caplog.text)
    assert caplog.text.count("no such file") == caplog.text.count("cannot be decoded") == 1


def test_a_run_without_any_audio_ends(tmp_path: Path) -> None:
    """A disk that is gone must not look like training."""
    names = [write_wav(tmp_path / f"{i}.wav", 1.0, i).name for i in range(4)]
    loader = crops(tmp_path, names, 1.0, batches=500)
    for name in names:
        (tmp_path / name).unlink()
    with pytest.raises(BadAudio, match="No usable audio in 100 batches in a row"):
        heard(loader)


def test_evaluation_keeps_what_is_too_long_for_training(tmp_path: Path) -> None:
    """Test sets are published whole; beyond the seconds of a batch it is a batch of its own."""
    rows = [(write_wav(tmp_path / f"{s}.wav", s, 0).name, s, "a") for s in (0.5, 2.5, 0.7, 1.2)]
    path = write_manifest(tmp_path, rows)
    how: dict[str, Any] = {"vocabulary": CharVocabulary(), "max_s": 1.0}
    assert speech_dataset(path, **how).data_ids == ["u0", "u2"]
    dataset = speech_dataset(path, **how, evaluation=True)
    assert dataset.data_ids == ["u0", "u1", "u2", "u3"]
    loader = make_dataloader(dataset, **by_length(dataset, 1.5))
    assert [batch.id for batch in loader] == [["u1"], ["u3"], ["u2", "u0"]]


def test_evaluation_keeps_what_the_model_cannot_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unknown characters and transcripts that are too long for CTC stay, named and counted; what
    cannot be scored at all is left out as in training."""
    for name in ("good", "dotted", "long", "empty"):
        write_wav(tmp_path / f"{name}.wav", 0.5)
    rows = [("good.wav", 0.5, "a b"), ("dotted.wav", 0.5, "naïve"), ("long.wav", 0.5, "ab" * 30)]
    path = write_manifest(tmp_path, [*rows, ("empty.wav", 0.5, " "), ("gone.wav", 0.5, "a")])
    assert speech_dataset(path, vocabulary=CharVocabulary()).data_ids == ["u0"]
    caplog.clear()
    kept = speech_dataset(path, vocabulary=CharVocabulary(), evaluation=True)
    assert kept.data_ids == ["u0", "u1", "u2"]
    assert f"Counts as errors: {path}:3: u1: characters outside the vocabulary: Ï" in caplog.text
    assert f"{path}:4: u2: the transcript needs 60 frames, the audio has 24" in caplog.text
    assert "cannot say all of 2 utterances" in caplog.text
    item = kept[1]
    unknown = CharVocabulary().lab2ind["<unk>"]
    assert item["wrd"] == "naïve" and item["tokens"].tolist()[2] == unknown
