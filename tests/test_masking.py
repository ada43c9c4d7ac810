"""Span masks: fairseq's statistics, at any length, inside the utterance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from w2v_plugin.frames import valid_frames
from w2v_plugin.masking import masked_indices, most_masked, random_subset, span_mask

PUBLISHED = {"prob": 0.65, "length": 10}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(mask: Tensor) -> list[int]:
    """Lengths of the runs of True in every row."""
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1)
    begin, end = (edges == 1).nonzero()[:, 1], (edges == -1).nonzero()[:, 1]
    return (end - begin).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("frames", [749, 781])
def test_statistics_are_the_published_ones(frames: int, seed: int) -> None:
    """15 s, and 15.6 s: 49 % masked, in runs of 14.7 frames (wav2vec 2.0, section 4.2)."""
    mask = span_mask(torch.full((400,), frames), frames, generator=generator(seed), **PUBLISHED)
    assert abs(float(mask.double().mean()) - 0.49) < 0.01  # 400 draws: standard error 0.001
    assert abs(sum(runs(mask)) / len(runs(mask)) - 14.7) < 0.7  # standard error 0.1


def test_number_of_spans_is_rounded_at_random() -> None:
    """floor(prob * T / length + U): 3.9 spans of 1 frame are 3 or 4, 3.9 on average."""
    mask = span_mask(torch.full((4000,), 6), 6, prob=0.65, length=1, generator=generator())
    counts = mask.sum(1)
    assert set(counts.tolist()) == {3, 4}
    assert abs(float(counts.double().mean()) - 3.9) < 0.03  # standard error 0.005


def test_starts_are_uniform_up_to_the_last_possible_one() -> None:
    """A single span of 4 in 20 frames starts at 0 ... 16, each as often: chi-square."""
    lengths = torch.full((17_000,), 20)
    mask = span_mask(lengths, 24, prob=1e-9, length=4, min_spans=1, generator=generator())
    assert mask.sum(1).eq(4).all()
    starts = torch.bincount(mask.int().argmax(1), minlength=24).double()
    assert not starts[17:].any()
    statistic = float(((starts[:17] - 1000) ** 2 / 1000).sum())
    assert statistic < 50  # 16 degrees of freedom: p < 1e-4


@pytest.mark.parametrize(("min_spans", "least"), [(1, 7), (2, 8), (5, 11)])
def test_at_least_so_many_spans(min_spans: int, least: int) -> None:
    """Different starts: n spans of 7 frames mask at least 7 + n - 1, and at most 7 n."""
    mask = span_mask(
        torch.full((500,), 60), 60, prob=1e-9, length=7, min_spans=min_spans, generator=generator()
    )
    counts = mask.sum(1)
    assert int(counts.min()) >= least and int(counts.max()) <= 7 * min_spans
    assert len(set(counts.tolist())) > (min_spans > 1)


def rule(length: int, generator: torch.Generator) -> Tensor:
    """fairseq's rule, utterance by utterance: floor(p T / M + U) different starts."""
    mask = torch.zeros(length, dtype=torch.bool)
    spans = max(int(0.65 * length / 10 + torch.rand((), generator=generator)), 2)
    for start in torch.randperm(length - 10 + 1, generator=generator)[:spans].tolist():
        mask[start : start + 10] = True
    return mask


@pytest.mark.parametrize("frames", [49, 150, 400])
def test_the_rule_is_fairseqs(frames: int) -> None:
    """Share of masked frames, its spread, and how often each frame is masked."""
    source = generator(5)
    theirs = torch.stack([rule(frames, source) for _ in range(1500)]).double()
    ours = span_mask(torch.full((1500,), frames), frames, generator=source, **PUBLISHED).double()
    share = ours.mean(1), theirs.mean(1)
    # differences of means and deviations of 1500 each, in standard errors
    assert (
        abs(float(share[0].mean() - share[1].mean()))
        < 5 * float(share[1].std()) * (2 / 1500) ** 0.5
    )
    assert float(share[0].std() / share[1].std()) == pytest.approx(1, abs=0.1)
    assert float((ours.mean(0) - theirs.mean(0)).abs().max()) < 5 * (0.5 / 1500) ** 0.5


def test_every_frame_can_be_masked() -> None:
    """Spans may end with the utterance: first and last frame have the same chance."""
    lengths = torch.tensor([60, 45]).repeat(4000)
    mask = span_mask(lengths, 60, generator=generator(), **PUBLISHED)
    for row, length in ((0, 60), (1, 45)):
        share = mask[row::2, :length].double().mean(0)
        assert share.min() > 0.04
        assert abs(float(share[0] - share[-1])) < 0.03  # standard error 0.006


@pytest.mark.parametrize("equal_counts", [False, True])
@pytest.mark.parametrize("length", [1, 2, 10])
@pytest.mark.parametrize("prob", [0.065, 0.65, 1.0])
def test_any_length_keeps_context_and_stays_inside(
    prob: float, length: int, equal_counts: bool
) -> None:
    """1 to 40 frames: something is masked from 2 frames up, never everything, never padding."""
    lengths = torch.arange(1, 41)
    for seed in range(20):
        mask = span_mask(
            lengths,
            43,
            prob=prob,
            length=length,
            equal_counts=equal_counts,
            generator=generator(seed),
        )
        assert not mask[~valid_frames(lengths, 43)].any()
        assert bool((mask.sum(1) < lengths).all())
        if equal_counts:
            assert not mask.any()  # a single frame is never masked: it sets the count
        else:
            assert bool((mask.sum(1) > 0).eq(lengths > 1).all())


@pytest.mark.parametrize("frames", range(1, 41))
def test_any_length_alone_in_its_batch(frames: int) -> None:
    """No padding at all: the width of the mask is the length of the utterance."""
    for seed in range(20):
        mask = span_mask(torch.tensor([frames]), frames, generator=generator(seed), **PUBLISHED)
        assert mask.shape == (1, frames) and min(1, frames - 1) <= int(mask.sum()) < frames


def test_nothing_is_at_hand_for_empty_rows() -> None:
    """Zero valid frames beside a long utterance."""
    mask = span_mask(torch.tensor([0, 30]), 30, generator=generator(), **PUBLISHED)
    assert not mask[0].any() and mask[1].any()


def test_equal_counts_are_those_of_the_poorest() -> None:
    """Same number everywhere; what remains was masked before."""
    lengths = torch.tensor([200, 120, 60, 30])
    free = span_mask(lengths, 200, generator=generator(), **PUBLISHED)
    equal = span_mask(lengths, 200, generator=generator(), equal_counts=True, **PUBLISHED)
    assert equal.sum(1).tolist() == [int(free.sum(1).min())] * 4
    assert not (equal & ~free).any()


def test_spans_are_as_long_as_asked() -> None:
    """One span in a long utterance is one run of `length` frames."""
    mask = span_mask(
        torch.full((50,), 400), 400, prob=1e-6, length=7, min_spans=1, generator=generator()
    )
    assert runs(mask) == [7] * 50


def test_no_probability_no_mask() -> None:
    assert not span_mask(torch.tensor([50]), 50, prob=0.0, length=10).any()
    assert not span_mask(torch.tensor([50]), 50, prob=1e-9, length=10, min_spans=0).any()


def test_a_generator_decides_the_mask() -> None:
    """Same seed, same mask; another seed, another; the global generator is not touched."""
    lengths, state = torch.tensor([100, 80]), torch.get_rng_state()
    first, again, other = (
        span_mask(lengths, 100, generator=generator(seed), **PUBLISHED) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_subset_is_uniform() -> None:
    """Every candidate is chosen equally often, nothing else ever."""
    candidates = torch.tensor([True, False, True, True, False, True]).expand(8000, 6)
    keys = torch.rand(8000, 6, generator=generator())
    chosen = random_subset(candidates, torch.full((8000,), 2), keys)
    assert set(chosen.sum(1).tolist()) == {2}
    share = chosen.double().mean(0)
    assert not share[[1, 4]].any()
    assert float((share[[0, 2, 3, 5]] - 0.5).abs().max()) < 0.03  # standard error 0.006


@pytest.mark.parametrize("limit", [None, 3, 9])
def test_masked_indices_are_packed_in_order(limit: int | None) -> None:
    """The first `valid` entries are where the row is True; the width is the largest count."""
    mask = torch.rand(5, 12, generator=generator()) < 0.4
    mask[3] = False
    index, valid = masked_indices(mask, limit)
    width = int(mask.sum(1).max()) if limit is None else limit
    assert index.shape == valid.shape == (5, width)
    for row, places, real in zip(mask, index, valid, strict=True):
        assert places[real].tolist() == row.nonzero()[:width, 0].tolist()
        assert not row[places[~real]].any()


@pytest.mark.parametrize(("prob", "length"), [(0.65, 10), (0.45, 5), (1.0, 1), (0.0, 10)])
def test_most_masked_is_never_exceeded(prob: float, length: int) -> None:
    """For any size, down to one frame; and no wider than the batch."""
    for size in (*range(1, 30), 49, 399, 781):
        most = most_masked(size, prob=prob, length=length)
        assert 0 <= most < size
        lengths = torch.full((200,), size)
        mask = span_mask(lengths, size, prob=prob, length=length, generator=generator())
        assert int(mask.sum(1).max()) <= most


def test_masked_indices_of_no_mask_are_empty() -> None:
    index, valid = masked_indices(torch.zeros(2, 7, dtype=torch.bool))
    assert index.shape == valid.shape == (2, 0)
