"""Streaming is the masked offline pass: for every split, length, batch, chunk and left context."""

from __future__ import annotations

from random import Random

import pytest
import torch
from speechbrain.utils.streaming import infer_dependency_matrix
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.compression import optimize
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import NotStreamable
from w2v_plugin.frames import frame_lengths
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.streaming import EncoderState

SHAPES = {
    "post-norm": {},
    "pre-norm": {"norm_first": True, "conv_bias": True},
    "causal": {"causal_positions": True},
    "odd positions": {"positions_kernel": 7, "layers": 1},
}
CHUNKS = (1, 8, 16, 32, 48)
LEFTS = (0, 1, 4, 20, None)
F64, F32 = 1e-10, 1e-5


def make(kind: str = "post-norm", dtype: torch.dtype = torch.float64, **options) -> Wav2Vec2CTC:
    """A model whose every frame matters to the others: no part is near zero."""
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    shape |= {"positions_kernel": 24, "positions_groups": 4}
    shape |= {"extractor_norm": "layer", "normalize": False}
    body = Wav2Vec2(**shape | SHAPES[kind] | options)
    for name, parameter in body.encoder.named_parameters():
        if parameter.dim() > 1 and "positions" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Wav2Vec2CTC(body, vocab_size=12).to(dtype).eval()


MODELS = {kind: make(kind) for kind in SHAPES}


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def stream(model, wavs: Tensor, chunk: ChunkConfig, cuts: list[int]) -> Tensor:
    """Logits of a batch whose packets end at `cuts`."""
    state, parts = model.init_state(len(wavs)), []
    ends = [*sorted(min(cut, wavs.shape[1]) for cut in cuts), wavs.shape[1]]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        out, state = model.step(wavs[:, begin:end], state, chunk)
        parts.append(out.logits)
    out, state = model.step(wavs[:, :0], state, chunk, last=True)
    assert set(state.frames) == {0}
    return torch.cat([*parts, out.logits], dim=1)


def masked(model, wavs: Tensor, chunk: ChunkConfig) -> Tensor:
    with torch.no_grad():
        return model(wavs, chunk=chunk).logits


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("left", LEFTS)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", SHAPES)
def test_stream_is_the_masked_pass(kind, chunk, left, seed) -> None:
    """Random splits of random lengths, in float64; the greedy tokens with it."""
    random = Random(f"{kind} {chunk} {left} {seed}")
    samples, batch = random.randint(400, 40_000), random.randint(1, 3)
    cuts = [random.randint(0, samples) for _ in range(random.randint(0, 12))]
    model, wavs, config = MODELS[kind], noise(batch, samples), ChunkConfig(chunk, left)
    found, expected = stream(model, wavs, config, cuts), masked(model, wavs, config)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= F64
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("chunk", "left"), [(1, 4), (16, 64), (32, None)])
def test_float32(kind, chunk, left) -> None:
    model, wavs = make(kind, torch.float32), noise(2, 50_001, dtype=torch.float32)
    config = ChunkConfig(chunk, left)
    found = stream(model, wavs, config, [*range(0, 50_001, 777)])
    expected = masked(model, wavs, config)
    assert float((found - expected).abs().max()) <= F32
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_optimized_models_stream(precision) -> None:
    """INT8 scales are of single frames and weights, so that packets do not matter to them."""
    model = make("post-norm", torch.float32, dim=64, ffn_dim=64, channels=(32,) * 7, layers=1)
    model, wavs = optimize(model, precision), noise(2, 30_000, dtype=torch.float32)
    config = ChunkConfig(16, 20)
    with torch.inference_mode():
        expected = model(wavs, chunk=config).logits
    found = stream(model, wavs, config, [5, 7000, 21_000])
    assert float((found - expected).abs().max()) <= 2 * F32  # spectra of other lengths
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "causal"])
def test_one_endless_chunk_is_the_published_model(kind) -> None:
    """Bit for bit: the same operations. And the stream gives it, at its end."""
    model, wavs = MODELS[kind], noise(2, 16_000)
    with torch.no_grad():
        published = model(wavs).logits
        assert torch.equal(model(wavs, chunk=ChunkConfig(49)).logits, published)
    found = stream(model, wavs, ChunkConfig(1000), [3000, 3001, 15_000])
    assert float((found - published).abs().max()) <= F64


def test_fully_causal_model() -> None:
    """Chunks of one frame and positions to the left: no frame hears a later one, at any chunk."""
    model = MODELS["causal"]
    seen = infer_dependency_matrix(
        lambda x: model.wav2vec2.contextualize(x.double(), chunk=ChunkConfig(1)).context,
        seq_shape=(1, 12, 8),
        in_stride=1,
    )
    assert torch.equal(seen, torch.ones(12, 12).triu().bool())  # (heard, hearing)


# --- look-ahead ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "left"), [(1, 0), (4, 4), (4, None), (5, 2)])
def test_what_a_frame_hears(chunk, left) -> None:
    """To the end of its chunk, in closed form, however many layers there are; to the left, what
    attention of two layers and the positions reach."""
    body = MODELS["post-norm"].wav2vec2
    frames = 20

    def forward(x: Tensor) -> Tensor:
        return body.contextualize(x.double(), chunk=ChunkConfig(chunk, left)).context

    torch.manual_seed(0)
    x = torch.randn(1, frames, 8, dtype=torch.float64)
    with torch.no_grad():
        y = forward(x)
        for frame in range(frames):
            changed = x.clone()
            changed[:, frame] = torch.randn(8, dtype=torch.float64)
            heard = (forward(changed) != y).any(-1)[0].nonzero().flatten()
            first = int(heard.min())
            assert first == frame - frame % chunk  # the look-ahead of q is chunk - 1 - q % chunk


def test_what_a_frame_hears_in_samples() -> None:
    """Frame q of a chunk hears up to sample 320 (end of its chunk - 1) + 400, exclusively."""
    model, chunk = MODELS["pre-norm"], ChunkConfig(4, 8)
    wavs = noise(1, 400 + 320 * 11)
    with torch.no_grad():
        y = model(wavs, chunk=chunk).logits
        for end in (4, 8):
            last = 320 * (end - 1) + 400
            for sample, first in ((last - 1, end - 1), (last, end)):
                changed = wavs.clone()
                changed[0, sample] += 3.0
                heard = (model(changed, chunk=chunk).logits != y).any(-1)[0].nonzero()
                assert int(heard.min()) >= first - (3 if first == end - 1 else 0)
                assert (int(heard.min()) < end) == (sample < last)


@pytest.mark.parametrize("kind", SHAPES)
def test_what_comes_later_changes_nothing(kind) -> None:
    """Prefix invariance: the chunks of a prefix are those of the whole."""
    model, wavs, chunk = MODELS[kind], noise(1, 30_000), ChunkConfig(8, 16)
    whole = masked(model, wavs, chunk)
    for samples in (400 + 320 * 7, 400 + 320 * 23, 20_000):
        part = masked(model, wavs[:, :samples], chunk)
        frames = part.shape[1] // 8 * 8
        assert float((part[:, :frames] - whole[:, :frames]).abs().max()) <= F64


# --- state ---------------------------------------------------------------------------------------


def test_an_hour_takes_no_more_than_ten_seconds() -> None:
    """Bytes of the state, at packets that do not fit the chunks."""
    torch.manual_seed(0)
    body = Wav2Vec2(
        **{"dim": 8, "layers": 1, "heads": 1, "ffn_dim": 8, "channels": (4,) * 7},
        **{"positions_kernel": 4, "positions_groups": 1, "extractor_norm": "layer"},
        normalize=False,
    ).eval()
    state, chunk, sizes = body.init_state(), ChunkConfig(48, 96), []
    packet = torch.randn(1, 10 * 16_000 + 7)
    for _ in range(360):
        _, state = body.step(packet, state, chunk)
        sizes.append(state.nbytes)
    assert state.frames[0] > 179_000 and state.kept == (96,)
    assert max(sizes[1:]) - min(sizes[1:]) <= 4 * 48 * 320  # samples of an unfinished chunk
    exact = sum(t.numel() * 4 for t in (*state.keys, *state.values, state.past, state.wavs))
    assert state.nbytes <= 2 * exact  # storages are those of `left` and one chunk at most


def test_a_saved_stream_goes_on(tmp_path) -> None:
    model, wavs, chunk = MODELS["pre-norm"], noise(2, 30_000), ChunkConfig(8, 16)
    first, state = model.step(wavs[:, :11_111], model.init_state(2), chunk)
    state.save(tmp_path / "state.pt")
    second, _ = model.step(wavs[:, 11_111:], EncoderState.load(tmp_path / "state.pt"), chunk, True)
    found = torch.cat([first.logits, second.logits], dim=1)
    assert float((found - masked(model, wavs, chunk)).abs().max()) <= F64


def test_a_state_is_not_changed() -> None:
    """So that one may go back, and try something else."""
    model, wavs, chunk = MODELS["post-norm"], noise(1, 30_000), ChunkConfig(8, 16)
    _, state = model.step(wavs[:, :15_000], model.init_state(), chunk)
    before = [x.clone() for x in (state.wavs, state.past, *state.keys, *state.values)]
    one, _ = model.step(wavs[:, 15_000:], state, chunk)
    _ = model.step(noise(1, 9000, seed=5), state, chunk, last=True)
    again, _ = model.step(wavs[:, 15_000:], state, chunk)
    assert torch.equal(one.logits, again.logits)
    after = (state.wavs, state.past, *state.keys, *state.values)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_streams_of_any_age_go_together(seed) -> None:
    """Each with packets and an end of its own: as alone."""
    random = Random(seed)
    model = MODELS[random.choice(sorted(SHAPES))]
    config = ChunkConfig(random.choice((1, 8, 16)), random.choice(LEFTS))
    lengths = [random.randint(400, 30_000) for _ in range(random.randint(2, 4))]
    wavs = [noise(1, n, seed=n)[0] for n in lengths]
    heard, done = [0] * len(wavs), [False] * len(wavs)
    parts: list[list[Tensor]] = [[] for _ in wavs]
    state = model.init_state(len(wavs))
    while not all(done):
        sizes = [
            min(random.choice((0, 1, 500, 9000)), len(wav) - n)
            for wav, n in zip(wavs, heard, strict=True)
        ]
        packets = [wav[n : n + k] for wav, n, k in zip(wavs, heard, sizes, strict=True)]
        heard = [n + k for n, k in zip(heard, sizes, strict=True)]
        ends = [n == len(wav) and not d for n, wav, d in zip(heard, wavs, done, strict=True)]
        batch = torch.nn.utils.rnn.pad_sequence(packets, True, padding_value=float("nan"))
        out, state = model.step(batch, state, config, ends, lengths=sizes)
        for i, count in enumerate(out.frame_lengths.tolist()):
            parts[i].append(out.logits[i, :count])
        done = [d or e for d, e in zip(done, ends, strict=True)]
    for wav, part in zip(wavs, parts, strict=True):
        expected = masked(model, wav[None], config)[0]
        found = torch.cat(part)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= F64


def test_stack_unstack_and_reset() -> None:
    """One begins anew; the other does not notice."""
    model, chunk = MODELS["post-norm"], ChunkConfig(8, 16)
    a, b = noise(1, 30_000, seed=2), noise(1, 30_000, seed=3)
    _, old = model.step(a[:, :20_000], model.init_state(), chunk)
    _, young = model.step(b[:, :5000], model.init_state(), chunk)
    both = EncoderState.stack([old, young])
    assert both.frames == (56, 8) and both.kept == (16, 8)
    for one, other in zip(both.unstack(), (old, young), strict=True):
        assert one.frames == other.frames and torch.equal(one.wavs, other.wavs)
        assert all(torch.equal(x, y) for x, y in zip(one.keys, other.keys, strict=True))
    packets = torch.cat([a[:, 20_000:], b[:, :10_000]])
    out, _ = model.step(packets, both.reset([1]), chunk, last=True)
    counts = out.frame_lengths.tolist()
    expected = masked(model, a, chunk)[0, 56:]
    assert float((out.logits[0, : counts[0]] - expected).abs().max()) <= F64
    expected = masked(model, b[:, :10_000], chunk)[0]
    assert float((out.logits[1, : counts[1]] - expected).abs().max()) <= F64


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 719, 720])
def test_short_streams(samples) -> None:
    """Less than a frame gives none, and no error: more may follow."""
    model = MODELS["post-norm"]
    out, _ = model.step(noise(1, samples), model.init_state(), ChunkConfig(8), last=True)
    assert out.logits.shape == (1, frame_lengths(samples), 12)


def test_an_ended_stream_begins_anew() -> None:
    model, wavs, chunk = MODELS["post-norm"], noise(1, 9000), ChunkConfig(8, 16)
    first, state = model.step(wavs, model.init_state(), chunk, last=True)
    second, _ = model.step(wavs, state, chunk, last=True)
    assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extractor_norm": "group"}, "extractor_norm='layer'"),
        ({"normalize": True}, "normalize=False"),
        ({"conformer": "rotary", "norm_first": True}, "conformer=None"),
    ],
)
def test_models_that_need_the_whole_utterance_say_so(options, said) -> None:
    model = make(**options)
    for act in (
        model.init_state,
        lambda: model.step(noise(1, 800), MODELS["post-norm"].init_state(), ChunkConfig(8)),
        lambda: model(noise(1, 800), chunk=ChunkConfig(8)),
    ):
        with pytest.raises(NotStreamable, match=said) as error:
            act()
        assert "overlap" in str(error.value)


def test_numbers_of_streams_must_agree() -> None:
    model = MODELS["post-norm"]
    with pytest.raises(ValueError, match="2 rows of wavs, 1 of last"):
        model.step(noise(2, 800), model.init_state(), ChunkConfig(8))
