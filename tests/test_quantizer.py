"""Product quantizers: which code, which gradient, and that the codebook stays alive."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from w2v_plugin.codes import code_counts, perplexity, principal_components
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer, anneal_updates, gumbel_choice

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


@pytest.mark.parametrize(("groups", "codes", "dim"), [(1, 2, 3), (2, 5, 6), (3, 7, 12), (4, 16, 4)])
def test_nearest_is_the_nearest(groups: int, codes: int, dim: int) -> None:
    """Brute force over all codes: vectors, codes, shares, commitment (a sum over frames)."""
    quantizer = make(NearestQuantizer, groups=groups, codes=codes, dim=dim)
    x = randn(3, 11, 8)
    out, z = quantizer(x), quantizer.project(x)
    gaps = (z[..., None, :] - quantizer.codebook).square()  # (..., groups, codes, d)
    assert torch.equal(out.codes, gaps.sum(-1).argmin(-1))
    nearest = torch.stack([quantizer.codebook[g, out.codes[..., g]] for g in range(groups)], 2)
    # (q - z) + z rounds once more than q; z is of order 1
    torch.testing.assert_close(out.vectors, nearest.flatten(2), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(quantizer.distances(z), gaps.sum(-1), rtol=0.0, atol=1e-12)
    expected = 33 * 1.25 * (z - nearest).square().mean()
    torch.testing.assert_close(out.commitment, expected, rtol=1e-12, atol=0.0)
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
    book = torch.autograd.grad(9 * (q - z.detach()).square().mean(), quantizer.codebook)
    weight = torch.autograd.grad(9 * 0.25 * (z - q.detach()).square().mean(), parameters[1])
    for a, b in zip(ours, (*book, *weight), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-13)  # float64
    assert torch.equal(ours[0].abs().sum(-1) > 0, out.counts > 0)


def test_gradient_reaches_gumbel_scores_and_codebook() -> None:
    """Straight through the soft choice: the scores of all codes, the rows of the chosen ones."""
    quantizer, x = make(GumbelQuantizer), randn(4, 8).requires_grad_()
    out = quantizer(x)
    (out.vectors * randn(4, 6)).sum().backward()
    assert bool((quantizer.logits.weight.grad.abs().sum(1) > 0).all()) and x.grad.any()
    used = code_counts(out.codes, 5, torch.ones(4, dtype=torch.bool)) > 0
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
        assert math.isfinite(loss.item()) and out.commitment.item() == 0.0
        assert not out.counts.any()
        quantizer.observe(out)
        assert all(
            bool(p.grad.isfinite().all()) for p in quantizer.parameters() if p.grad is not None
        )
    for _ in range(30):
        quantizer.after_update()


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


def seen(quantizer: Any, *batches: Tensor, valid: Tensor | None = None) -> None:
    """One update of several micro-batches."""
    for x in batches:
        quantizer.observe(quantizer(x, valid))
    quantizer.after_update()


MODES = pytest.mark.parametrize("codebook", ["loss", "ema"])


@MODES
def test_dead_codes_restart_on_data_and_living_ones_stay(codebook: str) -> None:
    """After `restart_every` updates; a restarted code is a latent of any of the micro-batches."""
    quantizer = make(NearestQuantizer, restart_every=3, codebook=codebook)
    quantizer.FOLLOW_DECAY = 1.0  # so that living codes of both kinds stay where they are
    with torch.no_grad():
        quantizer.start_from(quantizer.codebook * 100)  # far from everything
    before = quantizer.codebook.detach().clone()
    batches = randn(50, 8), randn(30, 8)
    usage = torch.tensor([1.0, 0.0, 0.04, 0.06, 1.0]).double()
    for update in range(1, 4):
        torch.testing.assert_close(quantizer.codebook.detach(), before, rtol=1e-3, atol=0.0)
        quantizer.running_usage[:] = usage
        quantizer.USAGE_DECAY = 1.0
        seen(quantizer, *batches)
        assert int(quantizer.updates) == update
    after, z = quantizer.codebook.detach(), quantizer.project(torch.cat(batches))
    for group in range(2):
        alive = [0, 3, 4]  # smoothing of counts moves an "ema" codebook by 1e-5
        torch.testing.assert_close(after[group, alive], before[group, alive], rtol=1e-3, atol=0.0)
        for code in (1, 2):
            assert bool((z[:, group] == after[group, code]).all(-1).any())
    usage = quantizer.running_usage[0].tolist()
    assert usage[1] == usage[2] == 0.5 and usage[0] == 1.0


def test_restarts_take_from_all_micro_batches_alike() -> None:
    """A quarter of the latents, a quarter of the restarts; never a padded one."""
    quantizer = make(NearestQuantizer, codes=400, restart_every=1)
    first, second, padding = randn(25, 8), randn(75, 8), torch.full((1, 8), 30.0).double()
    quantizer.running_usage.zero_()
    quantizer.USAGE_DECAY = 1.0
    valid = torch.ones(76, dtype=torch.bool)
    valid[-1] = False
    quantizer.observe(quantizer(first))
    quantizer.observe(quantizer(torch.cat([second, padding]), valid))
    quantizer.after_update()
    z = quantizer.project(first)
    from_first = (quantizer.codebook[0][:, None] == z[:, 0]).all(-1).any(1).double().mean()
    assert abs(float(from_first) - 0.25) < 0.11  # standard error 0.022
    everything = quantizer.project(torch.cat([first, second]))[:, 0]
    assert bool((quantizer.codebook[0][:, None] == everything).all(-1).any(1).all())


@MODES
def test_usage_is_a_running_mean_of_updates(codebook: str) -> None:
    """In units of 1 / V, of all micro-batches; evaluation does not count; 0 never restarts."""
    quantizer = make(NearestQuantizer, restart_every=0, codebook=codebook)
    x, y = randn(40, 8), randn(20, 8)
    shares = quantizer(torch.cat([x, y])).shares
    seen(quantizer, x, y)
    expected = 0.95 + 0.05 * 5 * shares.double()
    torch.testing.assert_close(quantizer.running_usage, expected, rtol=1e-6, atol=1e-6)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(x)
    quantizer.train()(x)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, state[name]), name
    quantizer.running_usage.zero_()
    quantizer.after_update()
    assert torch.equal(quantizer.codebook, state["codebook"])


def test_recomputation_counts_once() -> None:
    """Activation checkpointing runs `forward` twice; state and gradients are those of one."""
    x, states, slopes = randn(40, 8).requires_grad_(), [], []
    for recompute in (False, True):
        quantizer = make(NearestQuantizer, restart_every=1)
        out = checkpoint(quantizer, x, use_reentrant=False) if recompute else quantizer(x)
        quantizer.observe(out)
        (out.vectors.square().sum() + out.commitment + out.diversity).backward()
        slopes.append(quantizer.codebook.grad.clone())
        torch.manual_seed(0)
        quantizer.after_update()
        states.append(quantizer.state_dict())
    assert torch.equal(*slopes)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_ema_codebook_is_the_running_mean_of_its_latents() -> None:
    """Counts and sums with decay 0.99, Laplace smoothing 1e-5; by hand, code by code."""
    quantizer = make(NearestQuantizer, restart_every=0, codebook="ema")
    assert "codebook" not in dict(quantizer.named_parameters())
    counts = torch.ones(2, 5, dtype=torch.float64)
    sums = quantizer.codebook.clone()
    for _ in range(3):
        x, y = randn(30, 8), randn(11, 8)
        out = quantizer(torch.cat([x, y]))
        for g in range(2):
            for v in range(5):
                chose = out.projected[out.codes[:, g] == v, g]
                counts[g, v] = 0.99 * counts[g, v] + 0.01 * len(chose)
                sums[g, v] = 0.99 * sums[g, v] + 0.01 * chose.sum(0)
        seen(quantizer, x, y)
        n = counts.sum(1, keepdim=True)
        smoothed = (counts + 1e-5) / (n + 5 * 1e-5) * n
        expected = sums / smoothed[..., None]
        torch.testing.assert_close(
            quantizer.codebook, expected, rtol=1e-6, atol=1e-7
        )  # 0.99 in f32


def test_ema_codebook_has_commitment_only() -> None:
    """0.25 |z - sg(q)|^2 and no gradient for the codebook; other losses are unchanged."""
    ema, loss = (make(NearestQuantizer, codebook=mode) for mode in ("ema", "loss"))
    x = randn(9, 8)
    a, b = ema(x), loss(x)
    assert torch.equal(a.vectors, b.vectors) and torch.equal(a.codes, b.codes)
    torch.testing.assert_close(a.commitment, b.commitment / 5, rtol=1e-12, atol=0.0)
    (a.commitment + a.vectors.sum()).backward()
    assert ema.codebook.grad is None and ema.projection.weight.grad.any()


@MODES
def test_a_codebook_finds_clusters(codebook: str) -> None:
    """Latents in 5 clusters, 5 equal codevectors: after 300 updates all are in use. (Not always
    one for each cluster: two may share one, as in k-means.)"""
    quantizer = make(NearestQuantizer, groups=1, dim=6, restart_every=5, codebook=codebook)
    quantizer.USAGE_DECAY = 0.5  # finds dead codes sooner
    centres = 3 * randn(5, 8)
    with torch.no_grad():
        quantizer.start_from(quantizer.codebook[:, :1].expand(-1, 5, -1).clone())
    parameters = [quantizer.codebook] if codebook == "loss" else []
    optimizer = torch.optim.SGD(parameters, lr=0.05) if parameters else None
    for _ in range(300):
        out = quantizer(centres.repeat(8, 1) + 0.05 * randn(40, 8))
        quantizer.observe(out)
        if optimizer is not None:
            optimizer.zero_grad()
            out.commitment.backward()
            optimizer.step()
        quantizer.after_update()
    out = quantizer.eval()(centres.repeat(8, 1) + 0.05 * randn(40, 8))
    assert out.usage.item() == 1.0 and out.code_perplexity.item() > 4


@MODES
def test_state_survives_a_checkpoint(codebook: str) -> None:
    """A quantizer built from `config` and loaded goes on as the one that was saved."""
    quantizer = make(NearestQuantizer, restart_every=2, codebook=codebook)
    batches = [randn(40, 8) for _ in range(6)]
    for x in batches[:3]:
        seen(quantizer, x)
    again = NearestQuantizer(**quantizer.config).double()
    again.load_state_dict(quantizer.state_dict())
    for resumed in (quantizer, again):
        torch.manual_seed(3)
        for x in batches[3:]:
            seen(resumed, x)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


# --- the temperature -----------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.5, 0.1])
def test_temperature_is_the_published_one(end: float) -> None:
    """max(2 * 0.999995^n, end) for the published run of 400 000 (600 000) updates."""
    quantizer = make(
        GumbelQuantizer, temperature=(2.0, end), anneal_updates=anneal_updates(2.0, end, 0.999995)
    )
    for update in (0, 1, 1000, 100_000, 277_258, 277_259, 400_000, 599_000, 600_000):
        quantizer.updates.fill_(update)
        published = max(2.0 * 0.999995**update, end)
        assert quantizer.temperature == pytest.approx(published, rel=1e-12)
    assert anneal_updates(2.0, 0.5, 0.999995) == pytest.approx(277_258.18, abs=0.005)  # the default
    assert GumbelQuantizer(8).anneal_updates == 277_258.18
    assert anneal_updates(1.0, 1.0, 1.0) == math.inf  # constant: any number of updates


def test_temperature_scales_with_the_run() -> None:
    """Half of the updates, the same temperature at half of them; then constant; saved."""
    short, long = (make(GumbelQuantizer, anneal_updates=n) for n in (10, 20))
    for _ in range(15):
        assert short.temperature == pytest.approx(long.temperature, rel=1e-12)
        assert short.temperature >= 0.5
        short.after_update()
        long.after_update()
        long.after_update()
    assert short.temperature == 0.5 and make(NearestQuantizer).temperature == 0.0
    other = GumbelQuantizer(**short.config).double()
    other.load_state_dict(short.state_dict())
    assert other.temperature == 0.5


def test_gumbel_choice_has_the_gradient_of_the_soft_choice() -> None:
    """Forward one-hot, backward softmax((scores + noise) / temperature)."""
    scores, direction = randn(6, 5).requires_grad_(), randn(6, 5)
    torch.manual_seed(1)
    hard = gumbel_choice(scores, torch.tensor(0.7, dtype=torch.float64))
    torch.manual_seed(1)
    noise = -(-torch.rand_like(scores).log()).log()
    soft = ((scores + noise) / 0.7).softmax(-1)
    one_hot = torch.nn.functional.one_hot(soft.argmax(-1), 5).double()
    torch.testing.assert_close(hard, one_hot, rtol=0.0, atol=1e-15)
    ours, theirs = (torch.autograd.grad(x, scores, direction)[0] for x in (hard, soft))
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-14)


# --- starting ------------------------------------------------------------------------------------


@MODES
def test_starting_from_data_needs_as_many_frames_as_codes(codebook: str) -> None:
    """And then every code is the projection of a latent."""
    quantizer = make(NearestQuantizer, codes=20, codebook=codebook)
    with pytest.raises(ValueError, match="19 frames, expected at least codes=20"):
        quantizer.init_from_data(randn(19, 8))
    latents = randn(20, 8)
    quantizer.init_from_data(latents)
    z = quantizer.project(latents)
    assert bool((quantizer.codebook[1][:, None] == z[:, 1]).all(-1).any(1).all())
    if codebook == "ema":
        assert torch.equal(quantizer.code_sums, quantizer.codebook)


def test_principal_components_leave_out_what_hardly_varies() -> None:
    """Unit variance, uncorrelated, 95 % of the variance."""
    latents = randn(4000, 6) * torch.tensor([5.0, 4.0, 3.0, 0.1, 0.1, 0.1]).double() + 7
    found = latents @ principal_components(latents).t()
    expected = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(found.t()), expected, rtol=0.0, atol=1e-10)


@KINDS
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("codes", [20, 160])
def test_starting_from_data_uses_the_codebook(kind: type, codes: int, given: bool) -> None:
    """Gaussian latents spread over more than a third of the codes, loudness or not."""
    quantizer = make(kind, 16, codes=codes, dim=16)
    latents, directions = 3 + 2 * randn(60 * codes, 16), randn(10, 16) if given else None
    quantizer.init_from_data(latents, directions)
    assert bool((quantizer.eval()(latents).code_perplexity > codes / 3).all())


# --- what cannot be ------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 7}, "dim=7 is not divisible by groups=2"),
        ({"groups": 0}, "not divisible by groups=0"),
        ({"dim": 0}, "dim=0"),
        ({"codes": 1}, "codes=1, expected at least 2"),
    ],
)
def test_impossible_shapes_are_refused(kind: type, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(8, **{"groups": 2, "codes": 5, "dim": 6, **wrong})


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (GumbelQuantizer, {"temperature": (0.5, 2.0)}, "start >= end > 0"),
        (GumbelQuantizer, {"temperature": (2.0, 0.0)}, "start >= end > 0"),
        (GumbelQuantizer, {"temperature": (2.0, 0.5, 0.999995)}, "start, end"),
        (GumbelQuantizer, {"anneal_updates": 0}, "anneal_updates=0"),
        (NearestQuantizer, {"codebook": "mean"}, "codebook='mean', expected 'loss' or 'ema'"),
        (NearestQuantizer, {"restart_every": -1}, "restart_every=-1"),
        (NearestQuantizer, {"commitment": -0.1}, "commitment=-0.1"),
    ],
)
def test_impossible_settings_are_refused(kind: type, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(8, **wrong)
