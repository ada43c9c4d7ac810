"""Batches: order, budgets, errors in their place, nothing read before it is needed."""

from __future__ import annotations

import itertools
import random

import pytest
import soundfile
import torch
from torch import Tensor

from w2v_plugin.audio import read_audio
from w2v_plugin.batching import AHEAD, by_budget, over_files, read_up_to
from w2v_plugin.errors import BadAudio

SECOND = 16000


def write(folder, name: str, seconds: float, value: float = 0.5):
    samples = torch.full((round(seconds * SECOND),), value)
    soundfile.write(folder / name, samples.numpy(), SECOND, "FLOAT")
    return folder / name


class Worker:
    """Results are lengths and values; what was asked is written down."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.long: list[int] = []

    def short(self, wavs: list[Tensor]) -> list[tuple[int, float]]:
        self.batches.append([len(wav) for wav in wavs])
        return [(len(wav), float(wav[0])) for wav in wavs]

    def blocks(self, blocks) -> tuple[int, float]:
        sizes = [len(block) for block in blocks]
        self.long += sizes
        return sum(sizes), -1.0

    def run(self, paths, **options):
        options = {"longest_s": 60.0, "batch_s": 4.0, "padded": False} | options
        return over_files(paths, self.short, self.blocks, **options)


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
def test_budgets_are_kept_and_used(padded) -> None:
    """Every key once; no batch beyond the budget unless it is one waveform; none too small."""
    draw = random.Random(0)
    wavs = {key: torch.zeros(draw.randint(400, 5 * SECOND)) for key in range(60)}
    wavs[60] = torch.zeros(20 * SECOND)
    batches = list(by_budget(wavs, 10.0, padded=padded))
    assert sorted(key for batch in batches for key in batch) == list(range(61))

    def cost(keys: list[int]) -> int:
        sizes = [len(wavs[key]) for key in keys]
        return max(sizes) * len(sizes) if padded else sum(sizes)

    for batch in batches:
        assert cost(batch) <= 10 * SECOND or batch == [60]
    for batch, following in itertools.pairwise(batches):
        assert cost([*batch, following[0]]) > 10 * SECOND  # it could not have joined
    if padded:
        lengths = [len(wavs[key]) for batch in batches for key in batch]
        assert lengths == sorted(lengths, reverse=True)
    else:
        assert [key for batch in batches for key in batch] == list(range(61))


def test_nothing_makes_no_batch() -> None:
    assert list(by_budget({}, 1.0, padded=True)) == []
    assert list(Worker().run([])) == []


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
def test_results_come_in_the_order_of_the_files(tmp_path, padded) -> None:
    """However batches are made, each file gets its own result; the same file may come twice."""
    seconds = [1.0, 3.0, 0.5, 2.5, 9.0, 0.025, 1.5, 1.5]
    paths = [write(tmp_path, f"{i}.wav", s, i / 10) for i, s in enumerate(seconds)]
    paths.append(paths[1])
    worker = Worker()
    results = list(worker.run(map(str, paths), padded=padded))
    assert [path for path, _ in results] == [str(path) for path in paths]
    for (_, result), path in zip(results, paths, strict=True):
        wav = read_audio(path)
        assert result == (len(wav), float(wav[0]))
    for batch in worker.batches:
        cost = max(batch) * len(batch) if padded else sum(batch)
        assert cost <= 4 * SECOND or len(batch) == 1
        assert not padded or batch == sorted(batch, reverse=True)


@pytest.mark.parametrize("padded", [True, False])
def test_files_are_read_as_they_are_needed(tmp_path, padded) -> None:
    """The first results come when a batch (padded: sixteen) is full, not at the end."""
    path, taken = write(tmp_path, "a.wav", 1.0), []

    def endless():
        while True:
            taken.append(path)
            yield path

    results = Worker().run(endless(), padded=padded)
    held = 4 * (AHEAD if padded else 1)
    for count in range(1, 2 * held + 2):
        next(results)
        assert len(taken) == 1 + held * (1 + (count - 1) // held)


def test_long_files_arrive_in_blocks(tmp_path) -> None:
    """In their place, never whole; a file of just the limit is not long."""
    paths = [write(tmp_path, f"{s}.wav", s) for s in (1.0, 35.0, 30.0, 2.0)]
    worker = Worker()
    results = list(worker.run(paths, longest_s=30.0, batch_s=60.0))
    assert [result[0] for _, result in results] == [s * SECOND for s in (1, 35, 30, 2)]
    assert [result[1] for _, result in results] == [0.5, -1.0, 0.5, 0.5]
    assert worker.long == [10 * SECOND] * 3 + [5 * SECOND] + [0]
    assert worker.batches == [[SECOND], [30 * SECOND, 2 * SECOND]]


def test_only_what_is_asked_for_is_read(tmp_path) -> None:
    """`read_up_to` gives a waveform, or blocks from the beginning."""
    path = write(tmp_path, "a.wav", 25.0)
    assert torch.equal(read_up_to(path, 25 * SECOND), read_audio(path))
    blocks = read_up_to(path, 25 * SECOND - 1)
    assert not isinstance(blocks, Tensor)
    assert torch.equal(torch.cat(list(blocks)), read_audio(path))
    assert isinstance(read_up_to(path, float("inf")), Tensor)


# --- bad files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
def test_bad_files_are_errors_in_their_place(tmp_path, padded) -> None:
    """Missing, empty and broken files; those before and after are worked on."""
    good = [write(tmp_path, f"{i}.wav", 1.0, i / 10) for i in range(4)]
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello " * 100)
    bad = [tmp_path / name for name in ("missing.wav", "empty.wav", "text.wav", "x" * 300)]
    paths = [path for pair in zip(bad, good, strict=True) for path in pair]
    results = list(Worker().run([*paths, tmp_path, "\0"], padded=padded))
    assert [path for path, _ in results] == [*paths, tmp_path, "\0"]
    for path, result in results:
        assert isinstance(result, BadAudio) == (path not in good)
        if path in good:
            assert result == (SECOND, float(read_audio(path)[0]))
        elif path != "\0":
            assert str(path) in str(result)


def test_a_long_file_that_breaks_off_is_an_error_in_its_place(tmp_path) -> None:
    """NaN and truncation are found while the model is at work on the beginning."""
    first, last = write(tmp_path, "first.wav", 1.0), write(tmp_path, "last.wav", 2.0)
    nan, cut = write(tmp_path, "nan.wav", 30.0), write(tmp_path, "cut.wav", 30.0)
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) * 9 // 10])
    samples, rate = soundfile.read(nan)
    samples[25 * SECOND] = float("nan")
    soundfile.write(nan, samples, rate, "FLOAT")
    worker = Worker()
    results = dict(worker.run([first, nan, cut, last], longest_s=5.0))
    assert list(results) == [first, nan, cut, last]
    assert results[first][0] == SECOND and results[last][0] == 2 * SECOND
    assert "nan.wav: holds NaN" in str(results[nan])
    assert "cut.wav: truncated" in str(results[cut])
    assert isinstance(results[nan], BadAudio) and isinstance(results[cut], BadAudio)


def test_errors_of_the_work_are_not_swallowed(tmp_path) -> None:
    """Only a file that cannot be used is no reason to stop."""

    def broken(wavs: list[Tensor]) -> list[int]:
        raise RuntimeError("out of memory")

    path = write(tmp_path, "a.wav", 1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(over_files([path], broken, len, longest_s=9.0, batch_s=9.0, padded=False))
