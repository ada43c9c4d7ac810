"""The contrastive loss: fair negatives, the textbook's numbers, none of its tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from w2v_plugin.frames import valid_frames
from w2v_plugin.losses import (
    Contrastive,
    contrastive_loss,
    cosines,
    feature_penalty,
    same_codes,
    sample_negatives,
)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made, backward included."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        stored = [x.untyped_storage().nbytes() // x.element_size() for x in views]
        self.elements = max([self.elements, *stored])
        return out


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(counts: tuple[int, ...], k: int, dim: int, codes: int = 3) -> dict[str, Tensor]:
    """Random context, targets, negatives and codes for utterances with `counts` masked frames."""
    torch.manual_seed(0)
    batch, width = len(counts), max(counts)
    return {
        "context": torch.randn(batch, width, dim, dtype=torch.float64, requires_grad=True),
        "targets": torch.randn(batch, width, dim, dtype=torch.float64, requires_grad=True),
        "negatives": sample_negatives(torch.tensor(counts), width, k),
        "valid": valid_frames(torch.tensor(counts), width),
        "codes": torch.randint(0, codes, (batch, width, 2)),
    }


def naive(
    context: Tensor, targets: Tensor, negatives: Tensor, valid: Tensor, codes: Tensor
) -> Contrastive:
    """fairseq's form: gather (K + 1, batch, masked, dim), compare, cross-entropy."""
    rows = torch.arange(len(context))[:, None, None]
    candidates = torch.cat([targets[:, :, None], targets[rows, negatives]], 2).permute(2, 0, 1, 3)
    logits = F.cosine_similarity(context[None], candidates, dim=-1) / 0.1
    same = (codes[rows, negatives] == codes[:, :, None]).all(-1).permute(2, 0, 1)
    logits = torch.cat([logits[:1], logits[1:].masked_fill(same, float("-inf"))])
    frames = valid & (valid.sum(1) > 1)[:, None]
    logits = logits[:, frames].t()  # (frames, K + 1)
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")
    best = (logits[:, :1] > logits[:, 1:]).all(1) & ~same[:, frames].all(0)
    share = same[:, frames].double().mean() if len(logits) else torch.zeros(())
    return Contrastive(loss, best.sum(), torch.tensor(len(logits)), share)


# --- negatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 7])
def test_negatives_are_the_others_uniformly(count: int) -> None:
    """Never the frame itself; chi-square over the others (6 degrees of freedom at most)."""
    negatives = sample_negatives(torch.tensor([count, 12]), 12, 5000, generator())[0]
    assert negatives.shape == (12, 5000)
    for own in range(count):
        drawn = torch.bincount(negatives[own], minlength=12).double()
        others = [t for t in range(count) if t != own]
        assert drawn[others].sum() == 5000  # all inside the utterance, none the frame itself
        expected = 5000 / len(others)
        assert float(((drawn[others] - expected) ** 2 / expected).sum()) < 35  # p < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_negatives_of_a_batch_are_uniform_and_stay_at_home(seed: int) -> None:
    """All frames of utterances of different counts at once: chi-square over every pair of a frame
    and another one of its utterance."""
    counts, draws = torch.tensor([5, 12, 2, 9]), 2000
    negatives = sample_negatives(counts, 12, draws, generator(seed))
    statistic, freedom = 0.0, 0
    for row, count in zip(negatives, counts.tolist(), strict=True):
        drawn = torch.stack([torch.bincount(n, minlength=12) for n in row[:count]]).double()
        assert drawn[:, :count].sum() == count * draws  # never another utterance
        assert not drawn.diagonal().any()  # never the frame itself
        expected = draws / (count - 1)
        others = drawn[:, :count][~torch.eye(count, dtype=torch.bool)]
        statistic += float(((others - expected) ** 2 / expected).sum())
        freedom += count * (count - 2)
    # mean `freedom` (210), standard deviation sqrt(2 freedom) = 20.5: 5 of them
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("width", [1, 2, 9])
@pytest.mark.parametrize("count", [0, 1])
def test_lonely_frames_get_valid_indices(count: int, width: int) -> None:
    """Without another masked frame there is no negative, but nothing may point outside."""
    negatives = sample_negatives(torch.tensor([count, width]), width, 20, generator())
    assert int(negatives.min()) >= 0 and int(negatives.max()) < width


def test_negatives_of_no_masked_frame_are_empty() -> None:
    assert sample_negatives(torch.tensor([0, 0]), 0, 5).shape == (2, 0, 5)


def test_padding_entries_point_into_their_utterance() -> None:
    """So that a narrower micro-batch can use the same negatives."""
    negatives = sample_negatives(torch.tensor([4, 50]), 50, 100, generator())
    assert int(negatives[0].max()) < 4


def test_a_generator_decides_the_negatives() -> None:
    first, again, other = (
        sample_negatives(torch.tensor([9]), 9, 10, generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "k", "dim"),
    [((5,), 4, 3), ((9, 4, 2), 20, 8), ((12, 1, 0, 7), 100, 6), ((1,), 3, 4)],
)
def test_loss_is_the_textbooks(counts: tuple[int, ...], k: int, dim: int) -> None:
    """Sum, counts, and the gradients of context *and* targets, equal codes left out."""
    data = problem(counts, k, dim, codes=2)
    ours, theirs = contrastive_loss(**data), naive(**data)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0.0, atol=1e-10)  # sums of 100s
    assert int(ours.correct) == int(theirs.correct) and int(ours.count) == int(theirs.count)
    assert float(ours.shared) == pytest.approx(float(theirs.shared), abs=1e-6)
    if max(counts) > 1:
        assert 0 < float(ours.shared) < 1
    inputs = [data["context"], data["targets"]]
    for a, b in zip(*(torch.autograd.grad(x.loss, inputs) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-10)


def test_padding_does_not_count() -> None:
    """Garbage at padded entries changes neither the loss nor any gradient."""
    data = problem((9, 4), 20, 6)
    clean = contrastive_loss(**data).loss
    with torch.no_grad():
        data["targets"][1, 4:] = 100.0
        data["context"][1, 4:] = -100.0
    loss = contrastive_loss(**data).loss
    assert torch.equal(loss, clean)
    for gradient in torch.autograd.grad(loss, [data["context"], data["targets"]]):
        assert not gradient[1, 4:].any() and gradient[1, :4].any()


def test_a_single_masked_frame_is_left_out() -> None:
    """It has nothing to be told from: no loss, no count, no gradient, not correct."""
    data = problem((1, 6), 5, 4, codes=1000)
    ours = contrastive_loss(**data)
    gradient = torch.autograd.grad(ours.loss, data["context"])[0]
    assert int(ours.count) == 6 and not gradient[0].any() and bool(gradient.isfinite().all())


def test_a_collapsed_codebook_is_never_right() -> None:
    """All codes equal: nothing remains to compare. Loss 0 looks perfect, accuracy 0 tells."""
    data = problem((8, 5), 10, 4, codes=1)
    ours = contrastive_loss(**data)
    assert ours.loss.item() == 0.0 and int(ours.correct) == 0 and int(ours.count) == 13
    assert float(ours.shared) == 1.0
    gradients = torch.autograd.grad(ours.loss, [data["context"], data["targets"]])
    assert not any(gradient.any() for gradient in gradients)


def test_ties_are_not_right() -> None:
    """Without codes, a collapsed context or equal targets cannot pass for correct either."""
    same = torch.ones(1, 6, 4)
    negatives = sample_negatives(torch.tensor([6]), 6, 10)
    ours = contrastive_loss(same, same, negatives, valid=torch.ones(1, 6, dtype=torch.bool))
    assert int(ours.correct) == 0
    assert ours.loss.item() / 6 == pytest.approx(math.log(11), abs=1e-5)  # float32


@pytest.mark.parametrize("dim", [256, 768])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ignorance_costs_log_101_and_a_known_excess(dim: int, temperature: float) -> None:
    """Random directions have cosines of variance 1 / dim, so that the mean loss exceeds
    ln(K + 1) = 4.615 by 1 / (2 dim temperature^2): 0.195 for BASE, 0.065 for LARGE."""
    torch.manual_seed(0)
    context, targets = torch.randn(2, 4, 150, dim)
    negatives = sample_negatives(torch.full((4,), 150), 150, 100)
    valid = torch.ones(4, 150, dtype=torch.bool)
    ours = contrastive_loss(context, targets, negatives, valid=valid, temperature=temperature)
    excess = 1 / (2 * dim * temperature**2)
    # 600 frames: standard error below 0.03, and 100 negatives fall short of the mean of exp
    assert abs(ours.loss.item() / 600 - math.log(101) - excess) < 0.05


def test_perfect_predictions_are_right() -> None:
    """Context equal to the targets, up to scale: the temperature of 0.1 makes it certain."""
    targets = torch.eye(12)[None]
    negatives = sample_negatives(torch.tensor([12]), 12, 100)
    valid = torch.ones(1, 12, dtype=torch.bool)
    ours = contrastive_loss(7 * targets, targets, negatives, valid=valid)
    assert int(ours.correct) == 12
    assert ours.loss.item() / 12 == pytest.approx(math.log(1 + 100 * math.exp(-10)), rel=1e-4)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
def test_any_temperature_is_stable(temperature: float) -> None:
    """Similarities of 1000 in float32: finite loss and gradients, the textbook's numbers."""
    data = problem((9, 6), 20, 6)
    wide = contrastive_loss(**data, temperature=temperature).loss.item()
    data |= {name: data[name].detach().float().requires_grad_() for name in ("context", "targets")}
    loss = contrastive_loss(**data, temperature=temperature).loss
    assert loss.item() == pytest.approx(wide, rel=1e-4)  # float32 of numbers up to 1000
    for gradient in torch.autograd.grad(loss, [data["context"], data["targets"]]):
        assert bool(gradient.isfinite().all())


def test_no_masked_frame_no_loss() -> None:
    """Zero width: sums of nothing, and a gradient of nothing."""
    data = problem((0, 0), 5, 4)
    ours = contrastive_loss(**data)
    assert ours.loss.item() == 0.0 and int(ours.count) == int(ours.correct) == 0
    assert float(ours.shared) == 0.0
    assert torch.autograd.grad(ours.loss, data["context"])[0].shape == (2, 0, 4)


def test_no_tensor_over_negatives_and_width() -> None:
    """(K + 1, batch, masked, dim) would be 30 times larger than anything that is made."""
    batch, masked, k, dim = 2, 40, 30, 64
    data = problem((masked,) * batch, k, dim)
    with Largest() as largest:
        contrastive_loss(**data).loss.backward()
    frames = batch * masked
    allowed = max(frames * dim, frames * (k + 1), frames * masked * 2)  # 2 groups of codes
    assert frames * dim <= largest.elements <= allowed < (k + 1) * frames * dim / 10


def test_similarities_are_float32_under_autocast() -> None:
    """Mixed precision computes context and targets in bfloat16, never their cosines."""
    data = problem((9, 6), 20, 32)
    for name in ("context", "targets"):
        data[name] = data[name].detach().bfloat16()
    wide = data | {name: data[name].float() for name in ("context", "targets")}
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(**data).loss
        assert cosines(data["context"], data["targets"]).dtype == torch.float32
    assert loss.dtype == torch.float32 and torch.equal(loss, contrastive_loss(**wide).loss)


def test_same_codes_compares_all_groups() -> None:
    codes = torch.tensor([[[0, 1], [0, 2], [0, 1], [1, 1]]])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = True
    assert torch.equal(same_codes(codes)[0], expected)


# --- the penalty ---------------------------------------------------------------------------------


def test_feature_penalty_is_the_mean_square_of_valid_frames() -> None:
    """Of each utterance; half precision is summed in float32; nothing is no NaN."""
    torch.manual_seed(0)
    latents = torch.randn(3, 7, 5, dtype=torch.float64)
    valid = valid_frames(torch.tensor([7, 3, 0]), 7)
    expected = [latents[0].square().mean(), latents[1, :3].square().mean(), torch.zeros(())]
    found = feature_penalty(latents, valid)
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-12, atol=0.0)
    everything = feature_penalty(latents, None).mean()  # equal lengths: the published mean
    torch.testing.assert_close(everything, latents.square().mean(), rtol=1e-12, atol=0.0)
    assert feature_penalty(latents.bfloat16(), valid).dtype == torch.float32
