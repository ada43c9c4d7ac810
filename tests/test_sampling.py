"""Streams of batches: everything is heard, within the budget, in an order that the seed decides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from w2v_plugin.sampling import BucketSampler, CropSampler, Item, Window, seeded, shares

DURATIONS = torch.rand(97, generator=torch.Generator().manual_seed(0)).mul(9).add(1).tolist()
LENGTHS = torch.tensor([round(16_000 * d) for d in DURATIONS])


def sampler(**kwargs: Any) -> BucketSampler:
    return BucketSampler(DURATIONS, **{"budget_s": 30.0, **kwargs})


class Utterances:
    """Every block holds all of them; item (lane, block, i)."""

    def __init__(self, lengths: Tensor = LENGTHS, lanes: int = 1) -> None:
        self.lengths, self.lanes = lengths, lanes

    def block(self, lane: int, number: int) -> tuple[list[Item], Tensor]:
        return [(lane, number, i) for i in range(len(self.lengths))], self.lengths


def cropper(source: Utterances | None = None, **kwargs: Any) -> CropSampler:
    return CropSampler(source or Utterances(), **{"budget_s": 30.0, "crop_s": 15.0, **kwargs})


# --- shares and seeds ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.5, 1.0])
def test_shares_are_powers_of_hours(temperature: float) -> None:
    """Sum 1, ratios to the power; the scale of the hours does not matter."""
    hours = [1.0, 10.0, 1000.0]
    found = shares(hours, temperature)
    assert sum(found) == pytest.approx(1) and found == pytest.approx(
        shares([7 * h for h in hours], temperature)
    )
    assert found[2] / found[0] == pytest.approx(1000**temperature)


@pytest.mark.parametrize("temperature", [-0.1, 1.1, float("nan")])
def test_temperatures_outside_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="sampling_temperature is"):
        shares([1.0, 2.0], temperature)


def test_keys_differ_in_every_place() -> None:
    """10 000 neighboring keys, no first number twice (of 2^53: expected collisions 1e-8)."""
    draws = [
        float(torch.rand((), generator=seeded(a, b, c), dtype=torch.float64))
        for a in range(10)
        for b in range(10)
        for c in range(100)
    ]
    assert len(set(draws)) == len(draws)


# --- whole utterances ----------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("budget_s", [0.5, 12.0, 30.0, 1e4])
def test_a_pass_hears_everything_once_within_the_budget(budget_s: float, shuffle: bool) -> None:
    """Padded length times rows; only a single utterance may exceed it."""
    for number in range(3):
        batches = sampler(budget_s=budget_s, shuffle=shuffle).one_block(0, number)
        assert Counter(i for batch in batches for i in batch) == Counter(range(97))
        for batch in batches:
            longest = max(DURATIONS[i] for i in batch)
            assert batch and (len(batch) == 1 or longest * len(batch) <= budget_s)


def test_padding_is_little() -> None:
    """Similar lengths together: under 10 %, where random batches waste a third."""
    batches = sampler().one_block(0, 0)
    padded = sum(len(b) * max(DURATIONS[i] for i in b) for b in batches)
    assert sum(DURATIONS) / padded > 0.9


@pytest.mark.parametrize("batches", [None, 1, 7, 100])
def test_epochs_cut_one_stream(batches: int | None) -> None:
    """Epoch after epoch is pass after pass, without a gap or a repeat, also when resumed."""
    one = sampler(batches=batches)
    length = len(one)
    stream = [batch for number in range(3 + 4 * length // 15) for batch in one.one_block(0, number)]
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
    assert sampler().one_block(0, 0) != sampler().one_block(0, 1)


def test_evaluation_is_sorted_and_always_the_same() -> None:
    """Longest first, so that memory runs out at once or never; epochs do not move it."""
    one = sampler(shuffle=False)
    first = list(one)
    one.set_epoch(5)
    assert list(one) == first and len(one) == len(first)
    flat = [DURATIONS[i] for batch in first for i in batch]
    assert flat == sorted(flat, reverse=True)


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_s", [0.5, 4.0, 15.0])
@pytest.mark.parametrize("budget_s", [0.5, 12.0, 30.0])
def test_windows_are_of_one_length_and_lie_inside(budget_s: float, crop_s: float) -> None:
    """A batch keeps to the budget unless it is a single window."""
    for batch in cropper(budget_s=budget_s, crop_s=crop_s).one_block(0, 2):
        (samples,) = {window.samples for window in batch}
        assert 0 < samples <= 16_000 * crop_s
        assert len(batch) == 1 or samples * len(batch) <= 16_000 * budget_s
        for window in batch:
            assert 0 <= window.start <= int(LENGTHS[window.item[2]]) - samples


def test_little_audio_is_cropped_away() -> None:
    """Where no utterance is longer than the window: under 10 % of a pass is not heard."""
    windows = [window for batch in cropper().one_block(0, 0) for window in batch]
    assert Counter(window.item[2] for window in windows) == Counter(range(97))
    assert 0.9 < sum(window.samples for window in windows) / int(LENGTHS.sum()) <= 1


@pytest.mark.parametrize(("seconds", "windows"), [(2, 1), (5.9, 1), (6.1, 2), (40, 10), (600, 150)])
def test_long_utterances_give_more_windows(seconds: float, windows: int) -> None:
    """As many as fit, rounded: hours count, not files."""
    source = Utterances(torch.tensor([round(16_000 * seconds)]))
    batches = cropper(source, crop_s=4.0, budget_s=8.0).one_block(0, 0)
    assert sum(map(len, batches)) == windows


def test_places_of_windows_are_uniform() -> None:
    """Chi-square over ten bins of 7500 starts: 99.9 % of fair draws stay below 27.9."""
    source = Utterances(torch.full((300,), 160_000))
    starts = [
        window.start
        for number in range(25)
        for batch in cropper(source, crop_s=10 - 1e-3).one_block(0, number)
        for window in batch
    ]
    assert max(starts) == 16 and min(starts) == 0  # both ends belong to it
    source = Utterances(torch.full((300,), 320_000))
    starts = [
        window.start
        for number in range(25)
        for batch in cropper(source, crop_s=19.0).one_block(0, number)
        for window in batch
    ]
    counts = torch.histc(torch.tensor(starts, dtype=torch.float64), 10, 0, 16_001)
    assert len(starts) == 7500 and float(((counts - 750) ** 2 / 750).sum()) < 27.9


@pytest.mark.parametrize("lanes", [1, 3])
def test_batches_come_from_the_lanes_in_turn(lanes: int) -> None:
    """Batch k from lane k % lanes; each lane goes through its own blocks, without a gap."""
    one = cropper(Utterances(lanes=lanes), batches=100)
    stream = list(one)
    for lane in range(lanes):
        part = stream[lane::lanes]
        blocks = [batch for number in range(9) for batch in one.one_block(lane, number)]
        assert part == blocks[: len(part)]


@pytest.mark.parametrize("lanes", [1, 4, 6])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_stream(ranks: int, lanes: int) -> None:
    """Rank r gets batches r, r + ranks ..., in every epoch, the second one resumed."""
    source = Utterances(lanes=lanes)
    one = cropper(source, batches=10 * ranks)
    for epoch in (1, 2):
        one.set_epoch(epoch)
        stream = list(one)
        for rank in range(ranks):
            part = cropper(source, batches=10, rank=rank, ranks=ranks)
            part.set_epoch(epoch)
            assert list(part) == stream[rank::ranks]


def test_seeds_move_windows_and_batches() -> None:
    """The same seed gives the same windows, another one other places and another order."""

    def stream(seed: int) -> list[list[Window]]:
        return list(cropper(crop_s=3.0, seed=seed, batches=40))

    assert stream(1) == stream(1) != stream(2)
