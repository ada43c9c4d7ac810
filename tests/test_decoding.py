"""Greedy decoding: the most likely path, collapsed, up to the last valid frame."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch

from w2v_plugin.decoding import greedy


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("frames", [1, 5, 200])
def test_repeats_merge_and_then_blanks_go(blank: int, frames: int) -> None:
    """Against itertools.groupby, on random paths with many repeats."""
    path = torch.randint(0, 3, (20, frames), generator=torch.Generator().manual_seed(0))
    logits = 10 * torch.nn.functional.one_hot(path, 4).float() + torch.rand(20, frames, 4)
    lengths = torch.randint(0, frames + 1, (20,), generator=torch.Generator().manual_seed(1))
    expected = [
        [token for token, _ in groupby(row[:length].tolist()) if token != blank]
        for row, length in zip(path, lengths.tolist(), strict=True)
    ]
    assert greedy(logits, lengths, blank) == expected
    assert greedy(logits.log_softmax(-1), lengths, blank) == expected


@pytest.mark.parametrize(
    ("path", "tokens"),
    [
        ([1, 1, 0, 1], [1, 1]),  # a blank separates repeats
        ([1, 2, 1], [1, 2, 1]),
        ([0, 0, 0], []),
        ([0, 1, 0], [1]),
        ([], []),
    ],
)
def test_known_paths(path: list[int], tokens: list[int]) -> None:
    logits = torch.eye(3)[torch.tensor(path, dtype=torch.long)][None]
    assert greedy(logits, torch.tensor([len(path)])) == [tokens]


def test_what_follows_the_utterance_is_not_read() -> None:
    """Not even NaN; and the boundary is exact: one frame more says one token more."""
    logits = torch.eye(4)[torch.tensor([[1, 2, 3, 1]])]
    logits[0, 3] = float("nan")
    assert greedy(logits, torch.tensor([2])) == [[1, 2]]
    assert greedy(logits, torch.tensor([3])) == [[1, 2, 3]]


def test_lengths_must_match_the_batch() -> None:
    with pytest.raises(ValueError, match="zip"):
        greedy(torch.zeros(2, 3, 4), torch.tensor([3]))
