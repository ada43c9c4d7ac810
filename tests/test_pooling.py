"""Pooling and the choice of layers: closed forms, padding without a trace, no NaN anywhere."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from w2v_plugin.model import Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.pooling import POOLS, mix_layers, pick_layers, pool

LENGTHS = torch.tensor([9, 4, 1])


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(3, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def out() -> Wav2Vec2Output:
    torch.manual_seed(0)
    model = Wav2Vec2(dim=16, layers=3, heads=2, ffn_dim=32, channels=(8,) * 7).eval()
    with torch.no_grad():
        return model(torch.randn(2, 8000), torch.tensor([1.0, 0.6]), output_hidden_states=True)


def test_statistics_are_those_of_scipy(frames):
    """Mean, standard deviation, skewness and excess kurtosis of the population."""
    got = pool(frames, LENGTHS, "statistics").view(3, 4, 5)
    for row, length in zip((0, 1), (9, 4), strict=True):
        x = frames[row, :length].numpy()
        wanted = np.stack([x.mean(0), x.std(0), stats.skew(x), stats.kurtosis(x)])
        # float64, sums of nine numbers: a few units of the last place
        torch.testing.assert_close(got[row], torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", POOLS)
def test_padding_never_matters(frames, how):
    """Alone, in a batch, with NaN in the padding: one answer."""
    dirty = frames.clone()
    for row, length in enumerate(LENGTHS):
        dirty[row, length:] = torch.nan
    batch = pool(dirty, LENGTHS, how)
    assert batch.shape == (3, POOLS[how] * 5)
    for row, length in enumerate(LENGTHS):
        alone = pool(frames[row : row + 1, :length], length[None], how)
        # float64; a longer sum may add in another order
        torch.testing.assert_close(batch[row], alone[0], rtol=1e-12, atol=1e-12)


def test_a_single_frame_has_no_spread(frames):
    """0 instead of NaN, for one frame and for a dimension that never varies."""
    single = pool(frames[2:], LENGTHS[2:], "statistics").view(4, 5)
    assert torch.equal(single[0], frames[2, 0]) and not single[1:].any()
    for value in (0.0, 0.1, -1234.567, 1e30):  # the mean of equal numbers is off by rounding
        constant = torch.full((1, 1499, 1), value)
        assert not pool(constant, torch.tensor([1499]), "statistics")[0, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_pooled_in_float32(frames, dtype):
    """Half-precision frames lose nothing more."""
    low = frames.to(dtype)
    got, exact = (pool(x, LENGTHS, "statistics") for x in (low, low.double()))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)  # float32 sums of 9


def test_a_large_offset_costs_no_digits():
    """Two passes: mean 10 000, deviation 1. One pass in float32 would lose everything."""
    x = torch.tensor([[[9999.0], [10001.0]]]).repeat(1, 500, 1)
    assert pool(x, torch.tensor([1000]), "statistics").tolist() == [[10000.0, 1.0, 0.0, -2.0]]


def test_huge_numbers_do_not_overflow():
    """The fourth power of 1e15 is beyond float32, its kurtosis is not."""
    x = 1e15 * torch.tensor([[[1.0], [2.0], [4.0]]])
    small = pool(x / 1e15, torch.tensor([3]), "statistics")[0, 2:]
    torch.testing.assert_close(pool(x, torch.tensor([3]), "statistics")[0, 2:], small)


def test_gradients_are_finite_where_nothing_varies():
    """The root has no slope at 0; a probe trained through it must not get NaN."""
    x = torch.ones(2, 4, 3, requires_grad=True)
    pool(x, torch.tensor([4, 1]), "statistics").sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_layers_are_pooled_like_single_ones(out):
    """(batch, layers, frames, dim) gives what every layer gives by itself."""
    for how in POOLS:
        every = pool(pick_layers(out, "all"), out.frame_lengths, how)
        for n in range(4):
            assert torch.equal(every[:, n], pool(pick_layers(out, n), out.frame_lengths, how))


def test_layers_are_found(out):
    """Numbers, several, all, the context."""
    assert torch.equal(pick_layers(out), out.context)
    assert torch.equal(pick_layers(out, 2), out.hidden_states[2])
    some = pick_layers(out, [3, 0, -1])
    assert torch.equal(some[:, 0], out.hidden_states[3]) and torch.equal(some[:, 2], out.context)
    assert pick_layers(out, "all").shape[1] == 4


def test_mixing_is_a_sum_with_the_given_weights(out):
    """A single weight of 1 is that layer; nothing is normalized."""
    for n in range(4):
        weights = [float(n == i) for i in range(4)]
        assert torch.equal(mix_layers(out, weights), out.hidden_states[n])
    twice = mix_layers(out, [2.0, 0.0, 0.0, 0.0])
    assert torch.equal(twice, 2 * out.hidden_states[0])
    learned = torch.zeros(4, requires_grad=True)
    mix_layers(out, learned.softmax(0)).sum().backward()  # a probe can learn them
    assert learned.grad is not None and learned.grad.abs().sum() > 0


def test_bad_input_is_explained(frames, out):
    """What was got, what was expected."""
    bare = Wav2Vec2Output(out.context, out.frame_lengths)
    cases = [
        (lambda: pool(frames, LENGTHS, "max"), "expected one of 'mean'"),
        (lambda: pool(frames, torch.tensor([0, 1, 2]), "mean"), "got 0 to 2"),
        (lambda: pool(frames, torch.tensor([1, 2, 10]), "mean"), "expected 1 to 9"),
        (lambda: pool(frames, torch.tensor([1, 2]), "mean"), "one length per row"),
        (lambda: pool(frames[0], LENGTHS, "mean"), "one length per row"),
        (lambda: pick_layers(out, 4), "has 3 layers"),
        (lambda: pick_layers(out, [0, -2]), "has 3 layers"),
        (lambda: pick_layers(out, "last"), "some numbers"),
        (lambda: pick_layers(out, []), "some numbers"),
        (lambda: pick_layers(bare, 0), "output_hidden_states=True"),
        (lambda: mix_layers(out, [0.5, 0.5]), "Give 4 weights"),
        (lambda: mix_layers(bare, [1.0]), "output_hidden_states=True"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_mean_is_what_it_was(frames):
    """The plain average of valid frames."""
    assert math.isclose(float(pool(frames, LENGTHS)[1, 0]), float(frames[1, :4, 0].mean()))
