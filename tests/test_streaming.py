"""Streaming is the masked offline pass: for every split, length, batch, chunk and left context."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
from speechbrain.utils.streaming import infer_dependency_matrix
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from w2v_plugin.attention import ChunkConfig, attention_mask
from w2v_plugin.compression import optimize
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch, NotStreamable
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
LEFTS = (0, 1, 2.6, 4, None)  # chunks; 2.6 of them are no whole number
F64, F32 = 1e-10, 1e-5
HALF = 2e-2  # of the largest logit: three roundings of bfloat16, or one of 8 bits


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


def config_of(chunk: int, left: float | None) -> ChunkConfig:
    return ChunkConfig(chunk, None if left is None else int(left * chunk))


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("left", LEFTS)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", SHAPES)
def test_stream_is_the_masked_pass(kind, chunk, left, seed) -> None:
    """Random splits of random lengths, in float64; the greedy tokens with it. Some packets are
    empty, of one sample, or a sample short of a frame."""
    random = Random(f"{kind} {chunk} {left} {seed}")
    frames, batch = random.randint(1, 40 + 6 * chunk), random.randint(1, 3)
    samples = 400 + 320 * (frames - 1) + random.randint(0, 319)
    cuts = [random.randint(0, samples) for _ in range(random.randint(0, 12))]
    for cut in cuts[:3]:
        cuts += [cut, cut + 1, cut + 1 + 399]
    model, wavs, config = MODELS[kind], noise(batch, samples), config_of(chunk, left)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", SHAPES)
def test_half_precision(kind, dtype) -> None:
    """Sums are rounded in another order, by products of other sizes: near ties may differ."""
    model, wavs = make(kind, dtype), noise(2, 50_001, dtype=torch.float32)
    for config in (ChunkConfig(1, 4), ChunkConfig(16, 64), ChunkConfig(48)):
        found = stream(model, wavs, config, [*range(0, 50_001, 2777)]).float()
        expected = masked(model, wavs, config).float()
        assert float((found - expected).abs().max()) <= HALF * float(expected.abs().max())
        assert float((found.argmax(-1) == expected.argmax(-1)).double().mean()) >= 0.97


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2 * F32), ("int8", HALF)])
def test_optimized_models_stream(precision, tolerance, seed) -> None:
    """In float32, positions are spectra of other lengths. INT8 scales are of single frames and
    weights, so packets do not matter to them; but what lies between two of its 255 levels may fall
    on either side, after other roundings."""
    shape = {"dim": 64, "ffn_dim": 128, "channels": (32,) * 7, "layers": 3}
    model = optimize(make("pre-norm", torch.float32, **shape), precision)
    wavs, config = noise(2, 40_000, dtype=torch.float32, seed=seed), ChunkConfig(16, 20)
    with torch.inference_mode():
        expected = model(wavs, chunk=config).logits
    found = stream(model, wavs, config, [5, 7000, 21_000])
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    same = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    assert float(same) == 1.0 if precision == "fp32" else float(same) >= 0.97


@pytest.mark.parametrize("kind", SHAPES)
def test_streams_are_the_rows_of_a_padded_batch(kind) -> None:
    """Not only of each utterance alone."""
    model, config, lengths = MODELS[kind], ChunkConfig(8, 13), [30_000, 18_000, 700]
    wavs = noise(3, 30_000)
    with torch.no_grad():
        out = model(wavs, torch.tensor(lengths) / 30_000, chunk=config)
    streams, _ = model.step(wavs, model.init_state(3), config, last=True, lengths=lengths)
    assert streams.frame_lengths.tolist() == out.frame_lengths.tolist()
    for one, other in zip(streams.rows(), out.rows(), strict=True):
        assert float((one.logits - other.logits).abs().max()) <= F64


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "causal"])
def test_one_endless_chunk_is_the_published_model(kind) -> None:
    """Bit for bit: the same operations. And the stream gives it, at its end."""
    for dtype in (torch.float32, torch.float64):
        model, wavs = make(kind, dtype), noise(2, 16_000, dtype=dtype)
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
@pytest.mark.parametrize("kind", SHAPES)
def test_what_a_frame_hears(kind, chunk, left) -> None:
    """To the right, the end of its chunk, however many layers there are: frame q looks
    chunk - 1 - q % chunk frames ahead. To the left, what each layer and the positions reach."""
    body, config, frames = MODELS[kind].wav2vec2, ChunkConfig(chunk, left), 30
    direction = noise(16)  # not a sum: LayerNorm makes those constant

    def forward(x: Tensor) -> Tensor:
        return (body.contextualize(x[None], chunk=config).context @ direction)[0]

    heard = torch.autograd.functional.jacobian(forward, noise(frames, 8)).ne(0).any(-1)
    t, s = torch.arange(frames)[:, None], torch.arange(frames)
    end, positions = t - t % chunk + chunk, body.encoder.positions
    reach = (s >= t - positions.past) & (s <= t + positions.future) & (s < end)
    seen = attention_mask(None, frames, config, torch.device("cpu"))[0, 0].double()
    for _ in body.encoder.layers:
        reach = (seen @ reach.double()) > 0
    assert torch.equal(heard, reach)
    last = torch.where(heard, s, -1).amax(1)
    ahead = chunk - 1 - s % chunk
    assert torch.equal(last - s, ahead.minimum(frames - 1 - s))


@pytest.mark.parametrize("kind", SHAPES)
def test_what_a_frame_hears_in_samples(kind) -> None:
    """The last frame of its chunk hears 400 samples from 320 times its number on, and so do all
    frames of that chunk: no sample more, and no sample less."""
    model, chunk, frames = MODELS[kind], 4, 12
    wavs, direction = noise(1, 400 + 320 * (frames - 1)).requires_grad_(), noise(12)
    y = (model(wavs, chunk=ChunkConfig(chunk, 8)).logits @ direction)[0]
    for frame in range(frames):
        (gradient,) = torch.autograd.grad(y[frame], wavs, retain_graph=True)
        last_frame = frame - frame % chunk + chunk - 1
        assert int(gradient[0].nonzero().max()) == 320 * last_frame + 399


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
        sizes.append(state.nbytes - state.wavs.untyped_storage().nbytes())
        assert state.wavs.untyped_storage().nbytes() == 4 * state.samples[0]
        assert state.samples[0] < 48 * 320 + 80  # an unfinished chunk
    assert state.frames[0] > 179_000 and state.kept == (96,)
    assert len(set(sizes)) == 1
    # `left` and the last chunk, keys and values; and what positions read
    assert sizes[0] == 4 * 8 * (2 * (96 + 48) + 2)


class Copies(TorchDispatchMode):
    """Counts the elements that copies write."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("cat", "clone", "index_select", "constant_pad_nd"):
            self.elements += found.numel()
        return found


@pytest.mark.parametrize("lengths", [[200_000], [200_000, 190_000]])
def test_a_long_packet_is_not_copied_again_for_each_chunk(lengths) -> None:
    """Or an hour in one piece would take longer than in many."""
    model, chunk, wavs = MODELS["post-norm"], ChunkConfig(8, 16), noise(len(lengths), 200_000)
    counts = []
    for parts in (1, 10):
        state = model.init_state(len(lengths))
        with Copies() as copies:
            for begin in range(0, 200_000, 200_000 // parts):
                sizes = [min(max(n - begin, 0), 200_000 // parts) for n in lengths]
                packet = wavs[:, begin : begin + 200_000 // parts]
                _, state = model.step(packet, state, chunk, lengths=sizes)
        counts.append(copies.elements)
    assert 0 < counts[0] < 1.2 * counts[1]
    assert state.wavs.untyped_storage().nbytes() < 8 * 8 * 320 * 2 * len(lengths)


def test_a_saved_stream_goes_on(tmp_path: Path) -> None:
    model, wavs, chunk = MODELS["pre-norm"], noise(2, 30_000), ChunkConfig(8, 2)
    first, state = model.step(wavs[:, :11_111], model.init_state(2), chunk)
    file = tmp_path / "state.pt"
    state.save(file)
    loaded = EncoderState.load(file)
    second, _ = model.step(wavs[:, 11_111:], loaded, chunk, True)
    found = torch.cat([first.logits, second.logits], dim=1)
    assert float((found - masked(model, wavs, chunk)).abs().max()) <= F64
    tensors = (state.wavs, state.past, *state.keys, *state.values)
    exact = sum(x.numel() * x.element_size() for x in tensors)
    assert loaded.nbytes == exact < state.nbytes  # without what views hide
    assert file.stat().st_size < exact + 6000  # names and a zip directory


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", {"wavs": 1}, [1]])
def test_other_files_are_no_states(content, tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(CheckpointMismatch, match=r"state\.pt is no saved stream"):
        EncoderState.load(file)


@pytest.mark.parametrize("options", [{"layers": 3}, {"heads": 4}, {"positions_kernel": 30}])
def test_states_of_other_models_are_refused(options) -> None:
    model, other = MODELS["pre-norm"], make("pre-norm", **options).init_state()
    with pytest.raises(CheckpointMismatch, match=r"of a model with .* frames before, float64"):
        model.step(noise(1, 800), other, ChunkConfig(8))
    with pytest.raises(CheckpointMismatch, match=r"different models: .*; "):
        EncoderState.stack([model.init_state(), other])
    with pytest.raises(CheckpointMismatch, match=r"float32 on cpu; this one has .* float64"):
        model.step(noise(1, 800), model.init_state().to(torch.float32), ChunkConfig(8))


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
    config = config_of(random.choice((1, 8, 16)), random.choice(LEFTS))
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


@pytest.mark.parametrize(
    ("wavs", "lengths", "said"),
    [
        (noise(800), None, r"wavs \(800,\) of torch.float64: expected \(streams, samples\)"),
        (noise(1, 800).to(torch.int16), None, "torch.int16: expected .* of floats"),
        (noise(1, 800), [801], r"lengths=\[801\]: expected 0 to 800"),
        (noise(1, 800), [-1], r"lengths=\[-1\]: expected 0 to 800"),
        (noise(1, 800), [1, 2], "1 rows of wavs, 1 of last, 2 lengths"),
    ],
)
def test_packets_that_are_none(wavs, lengths, said) -> None:
    model = MODELS["post-norm"]
    with pytest.raises(ValueError, match=said):
        model.step(wavs, model.init_state(), ChunkConfig(8), lengths=lengths)


def test_packets_of_another_type() -> None:
    """Doubles are rounded to what the model works with, and do not widen the state."""
    model, wavs, chunk = make("post-norm", torch.float32), noise(1, 9000), ChunkConfig(8)
    one, state = model.step(wavs, model.init_state(), chunk)
    other, _ = model.step(wavs.float(), model.init_state(), chunk)
    assert torch.equal(one.logits, other.logits) and state.wavs.dtype == torch.float32


def test_there_is_no_stream_minus_one() -> None:
    state = MODELS["post-norm"].init_state(2)
    for act in (state.select, state.reset):
        with pytest.raises(IndexError, match=r"Streams \[-1, 2\]: expected 0 to 1"):
            act([0, -1, 2])


@pytest.mark.parametrize("how", ["reset", "last"])
def test_bad_audio_harms_its_own_stream_and_a_new_one_is_sound(how) -> None:
    """NaN stay in keys and values, where a mask does not hide them: 0 * NaN is NaN."""
    model, chunk = MODELS["pre-norm"], ChunkConfig(8, 16)
    wavs, more = noise(2, 20_000), noise(2, 10_000, seed=9)
    bad = wavs.clone()
    bad[1, 12_000] = float("nan")
    out, state = model.step(bad, model.init_state(2), chunk, [False, how == "last"])
    assert bool(out.logits[0].isfinite().all()) and bool(out.logits[1].isnan().any())
    out, _ = model.step(more, state.reset([1]) if how == "reset" else state, chunk)
    alone, _ = model.step(more[1:], model.init_state(), chunk)
    assert float((out.rows()[1].logits - alone.logits).abs().max()) <= F64
    expected = masked(model, torch.cat([wavs, more], 1)[:1], chunk)[:, 56:]
    count = int(out.frame_lengths[0])
    assert float((out.logits[:1, :count] - expected[:, :count]).abs().max()) <= F64


def test_another_left_context_on_the_way() -> None:
    """A smaller one forgets, a larger one begins with what was kept."""
    model, wavs, kept = MODELS["post-norm"], noise(1, 3200), []
    state = model.init_state()
    for left in (16, 16, 4, 20, 20, None, None, 0):
        _, state = model.step(wavs, state, ChunkConfig(8, left))
        kept.append(state.kept[0])
    assert kept == [8, 16, 4, 12, 20, 28, 36, 0]


def test_one_model_serves_threads() -> None:
    """A step changes nothing but the state that it returns."""
    model, chunk = MODELS["pre-norm"], ChunkConfig(8, 16)
    wavs = [noise(1, 60_000, seed=seed) for seed in range(4)]

    def run(wav: Tensor) -> Tensor:
        return stream(model, wav, chunk, [*range(0, 60_000, 999)])

    with ThreadPoolExecutor(4) as pool:
        for found, wav in zip(pool.map(run, wavs), wavs, strict=True):
            assert torch.equal(found, run(wav))


def test_a_step_does_not_disturb_training() -> None:
    """Between a forward and its backward pass: the same gradients; and none through a step."""
    model, wavs, gradients = make("pre-norm"), noise(1, 6000), []
    for between in (False, True):
        loss = model(wavs, chunk=ChunkConfig(8)).logits.square().sum()
        if between:
            for module in (model, model.wav2vec2):
                out, state = module.step(wavs, model.init_state(), ChunkConfig(8))
                assert not out.context.requires_grad and not state.past.requires_grad
        gradients.append(torch.autograd.grad(loss, model.wav2vec2.extractor.layers[0].conv.weight))
    assert torch.equal(*(gradient for (gradient,) in gradients))


def test_a_state_moves_as_a_whole() -> None:
    model = MODELS["post-norm"]
    _, state = model.step(noise(1, 20_000), model.init_state(), ChunkConfig(8, 16))
    moved = state.to("meta")
    tensors = (moved.wavs, moved.past, *moved.keys, *moved.values)
    assert {x.device.type for x in tensors} == {"meta"} and moved.frames == state.frames
