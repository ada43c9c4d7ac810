"""Product quantizers: which code, which gradient, and that the codebook stays alive."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from w2v_plugin.quantizer import (
    GumbelQuantizer,
    NearestQuantizer,
    code_histogram,
    mean,
    mean_square,
    perplexity,
)

KINDS = pytest.mark.parametrize("kind", [GumbelQuantizer, NearestQuantizer])


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made, backward included."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        stored = [x.untyped_storage().nbytes() // x.element_size() for x in views]
        self.elements = max([self.elements, *stored])
        return out


def make(kind: type, channels: int = 8, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return kind(channels, **{"groups": 2, "codes": 5, "dim": 6, **kwargs}).double()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# --- codes and vectors ---------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "codes", "dim"), [(1, 1, 3), (2, 5, 6), (3, 7, 12), (4, 16, 4)])
def test_nearest_is_the_nearest(groups: int, codes: int, dim: int) -> None:
    """Brute force over all codes: vectors, codes, shares, commitment."""
    quantizer = make(NearestQuantizer, groups=groups, codes=codes, dim=dim)
    x = randn(3, 11, 8)
    out, z = quantizer(x), quantizer.project(x)
    gaps = (z[..., None, :] - quantizer.codebook).square()  # (..., groups, codes, d)
    assert torch.equal(out.codes, gaps.sum(-1).argmin(-1))
    nearest = torch.stack([quantizer.codebook[g, out.codes[..., g]] for g in range(groups)], 2)
    # (q - z) + z rounds once more than q; z is of order 1
    torch.testing.assert_close(out.vectors, nearest.flatten(2), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(quantizer.distances(z), gaps.sum(-1), rtol=0.0, atol=1e-12)
    expected = 1.25 * (z - nearest).square().mean()
    torch.testing.assert_close(out.commitment, expected, rtol=0.0, atol=1e-13)
    for g in range(groups):
        counts = torch.bincount(out.codes[..., g].flatten(), minlength=codes)
        torch.testing.assert_close(out.shares[g], counts / 33)


def test_projections_are_normalized_per_group() -> None:
    """Zero mean and unit variance of every group: latents and codes live on the same sphere."""
    z = make(NearestQuantizer, dim=16).project(randn(4, 8)).detach()
    assert float(z.mean(-1).abs().max()) < 1e-12  # float64 rounding
    assert float((z.var(-1, correction=0) - 1).abs().max()) < 0.02  # eps of 1e-5, tiny variances


def test_gumbel_evaluates_to_the_best_rows() -> None:
    """No noise in evaluation: the codevectors of the highest scores, groups concatenated."""
    quantizer = make(GumbelQuantizer).eval()
    x = randn(3, 7, 8)
    out = quantizer(x)
    scores = quantizer.logits(x).view(3, 7, 2, 5)
    assert torch.equal(out.codes, scores.argmax(-1))
    rows = quantizer.codebook.view(2, 5, 3)
    expected = torch.cat([rows[g][out.codes[..., g]] for g in range(2)], -1)
    torch.testing.assert_close(out.vectors, expected, rtol=0.0, atol=0.0)
    probs = scores.softmax(-1).mean((0, 1))
    entropy = -(probs * probs.log()).sum(-1)
    torch.testing.assert_close(out.prob_perplexity, entropy.exp(), rtol=1e-12, atol=0.0)


def test_gumbel_samples_by_score_and_temperature() -> None:
    """In training codes follow softmax(scores), whatever the temperature: argmax(scores + noise);
    shares stay those of the best codes."""
    quantizer = make(GumbelQuantizer, groups=1, dim=3)
    x = (0.1 * randn(1, 8)).expand(20000, 8)
    out = quantizer(x)
    probs = quantizer.logits(x[:1]).softmax(-1)[0].detach()
    drawn = torch.bincount(out.codes.flatten(), minlength=5) / 20000
    assert float((drawn - probs).abs().max()) < 0.02  # standard error 0.0035
    assert sorted(out.shares[0].tolist()) == [0, 0, 0, 0, 1]
    assert torch.equal(out.vectors[:50].detach(), quantizer.codebook[0, out.codes[:50, 0]].detach())


# --- gradients -----------------------------------------------------------------------------------


def test_gradient_passes_nearest_straight_through() -> None:
    """The projection gets what its output would have got, the codebook nothing."""
    quantizer, x, direction = make(NearestQuantizer), randn(4, 8), randn(4, 6)
    out = quantizer(x)
    parameters = [quantizer.projection.weight, quantizer.codebook]
    ours, none = torch.autograd.grad(out.vectors, parameters, direction, allow_unused=True)
    assert none is None
    z = quantizer.project(x).flatten(-2)
    theirs = torch.autograd.grad(z, quantizer.projection.weight, direction)[0]
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-12)


def test_commitment_draws_both_sides_at_their_rates() -> None:
    """The used codevectors with weight 1, the projection with weight 0.25, neither with both."""
    quantizer, x = make(NearestQuantizer), randn(9, 8)
    parameters = [quantizer.codebook, quantizer.projection.weight]
    out, z = quantizer(x), quantizer.project(x)
    q = quantizer.codebook[torch.arange(2), out.codes]
    ours = torch.autograd.grad(out.commitment, parameters)
    book = torch.autograd.grad((q - z.detach()).square().mean(), quantizer.codebook)
    weight = torch.autograd.grad(0.25 * (z - q.detach()).square().mean(), parameters[1])
    for a, b in zip(ours, (*book, *weight), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-13)  # float64
    assert torch.equal(ours[0].abs().sum(-1) > 0, code_histogram(out.codes, 5) > 0)


def test_gradient_reaches_gumbel_scores_and_codebook() -> None:
    """Straight through the soft choice: the scores of all codes, the rows of the chosen ones."""
    quantizer, x = make(GumbelQuantizer), randn(4, 8).requires_grad_()
    out = quantizer(x)
    (out.vectors * randn(4, 6)).sum().backward()
    assert bool((quantizer.logits.weight.grad.abs().sum(1) > 0).all()) and x.grad.any()
    used = code_histogram(out.codes, 5) > 0
    assert torch.equal(quantizer.codebook.grad.view(2, 5, 3).abs().sum(-1) > 0, used)


@pytest.mark.parametrize("zeros", [0, 1, 4])
def test_perplexity_is_between_one_and_v(zeros: int) -> None:
    """V for equal shares, 1 for a single one; zero shares have a finite gradient."""
    probs = torch.tensor([0.0] * zeros + [1 / (5 - zeros)] * (5 - zeros), requires_grad=True)
    value = perplexity(probs)
    assert abs(value.item() - (5 - zeros)) < 1e-5  # float32
    value.backward()
    assert probs.grad is not None and bool(probs.grad.isfinite().all())
    random = perplexity(torch.rand(100, 7).softmax(-1))
    assert bool(((random >= 1) & (random <= 7)).all())


@KINDS
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_diversity_is_between_zero_and_one(kind: type, scale: float) -> None:
    """(V - 1) / V at most, when one code takes all; finite gradients even then."""
    quantizer, x = make(kind), (scale * randn(4, 9, 8)).requires_grad_()
    out = quantizer(x)
    assert -1e-12 <= out.diversity.item() <= 4 / 5 + 1e-12
    assert bool(((out.code_perplexity >= 1) & (out.code_perplexity <= 5 + 1e-5)).all())
    (out.diversity + out.commitment).backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@KINDS
def test_half_precision_is_widened_inside(kind: type) -> None:
    """Bfloat16 latents under autocast get the codes and entropies of float32."""
    quantizer, x = make(kind).float().eval(), torch.randn(2, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(x)
    wide = quantizer(x.float())
    for name in ("vectors", "codes", "shares", "prob_perplexity", "commitment"):
        assert torch.equal(getattr(out, name), getattr(wide, name)), name


@KINDS
def test_statistics_see_valid_entries_only(kind: type) -> None:
    """Garbage in padded entries changes codes there, and nothing else."""
    quantizer, x = make(kind).eval(), randn(2, 6, 8)
    valid = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    dirty = torch.where(valid[..., None], x, 50 * randn(2, 6, 8))
    out, flat = quantizer(dirty, valid), quantizer(x[valid])
    torch.testing.assert_close(out.vectors[valid], flat.vectors, rtol=0.0, atol=1e-13)
    for name in ("shares", "prob_perplexity", "commitment", "diversity"):
        torch.testing.assert_close(getattr(out, name), getattr(flat, name), rtol=0.0, atol=1e-13)


@KINDS
def test_nothing_masked_is_no_nan(kind: type) -> None:
    """An empty batch of masked frames: finite losses and gradients, and an update survives."""
    quantizer = make(kind)
    for out in (
        quantizer(randn(2, 0, 8), torch.zeros(2, 0, dtype=torch.bool)),
        quantizer(randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool)),
    ):
        loss = out.diversity + out.commitment + out.vectors.sum()
        loss.backward()
        assert math.isfinite(loss.item())
        assert all(
            bool(p.grad.isfinite().all()) for p in quantizer.parameters() if p.grad is not None
        )
    for _ in range(30):
        quantizer.after_update()
    assert bool(mean(randn(0, 3)).eq(0).all()) and mean_square(randn(0)).item() == 0


@KINDS
def test_no_tensor_over_frames_codes_and_width(kind: type) -> None:
    """(N, G V, d) would be 16 times larger than anything that forward and backward make."""
    n, groups, codes, d = 40, 2, 30, 64
    quantizer, x = make(kind, 16, groups=groups, codes=codes, dim=groups * d), randn(2, n // 2, 16)
    with Largest() as largest:
        out = quantizer(x)
        (out.vectors.square().sum() + out.diversity + out.commitment).backward()
    # numbers per frame: one per code, or the vectors; and the parameters themselves
    allowed = max(n * groups * codes, n * groups * d, groups * codes * d)
    assert n * groups * d <= largest.elements <= allowed < n * groups * codes * d / 16


# --- staying alive -------------------------------------------------------------------------------


def test_dead_codes_restart_on_data_and_living_ones_stay() -> None:
    """After `restart_every` updates; every restarted code is one of the last latents."""
    quantizer = make(NearestQuantizer, restart_every=3)
    with torch.no_grad():
        quantizer.codebook[:, 1:3] += 100.0  # far from everything
    before = quantizer.codebook.detach().clone()
    x = randn(50, 8)
    quantizer(x)
    quantizer.running_usage[:] = torch.tensor([1.0, 0.0, 0.04, 0.06, 1.0])
    for update in range(1, 4):
        assert torch.equal(quantizer.codebook, before)
        quantizer.after_update()
        assert int(quantizer.updates) == update
    after, z = quantizer.codebook.detach(), quantizer.project(x)
    for group in range(2):
        assert torch.equal(after[group, [0, 3, 4]], before[group, [0, 3, 4]])
        for code in (1, 2):
            assert bool((z[:, group] == after[group, code]).all(-1).any())
    usage = quantizer.running_usage[0].tolist()
    assert usage[1] == usage[2] == 0.5 and usage[0] == 1.0


def test_usage_is_a_running_mean_of_training_batches() -> None:
    """In units of 1 / V; evaluation does not count; 0 never restarts."""
    quantizer = make(NearestQuantizer, restart_every=0)
    x = randn(40, 8)
    shares = quantizer(x).shares
    expected = 0.95 + 0.05 * 5 * shares.double()
    torch.testing.assert_close(quantizer.running_usage.double(), expected, rtol=1e-6, atol=1e-6)
    usage, book = quantizer.running_usage.clone(), quantizer.codebook.detach().clone()
    quantizer.eval()(x)
    assert torch.equal(quantizer.running_usage, usage)
    quantizer.running_usage.zero_()
    quantizer.after_update()
    assert torch.equal(quantizer.codebook, book)


def test_temperature_decays_to_its_end() -> None:
    """start * decay^updates, then constant; saved with the weights. Nearest has none."""
    quantizer = make(GumbelQuantizer, temperature=(2.0, 0.5, 0.9))
    for update in range(20):
        assert quantizer.temperature == pytest.approx(max(2.0 * 0.9**update, 0.5))
        quantizer.after_update()
    other = make(GumbelQuantizer, temperature=(2.0, 0.5, 0.9))
    other.load_state_dict(quantizer.state_dict())
    assert other.temperature == 0.5 and make(NearestQuantizer).temperature == 0.0


@KINDS
def test_starting_from_data_uses_the_codebook(kind: type) -> None:
    """Gaussian latents spread over more than a third of the codes."""
    quantizer = make(kind, 16, codes=20, dim=16)
    latents, directions = 3 + 2 * randn(600, 16), randn(10, 16)
    quantizer.init_from_data(latents, directions)
    assert bool((quantizer.eval()(latents).code_perplexity > 20 / 3).all())


@KINDS
def test_groups_must_divide_the_width(kind: type) -> None:
    with pytest.raises(ValueError, match="dim=7 is not divisible by groups=2"):
        kind(8, groups=2, codes=5, dim=7)
