"""Overlapping windows: every frame once, the same ones for any packets, true edges at the ends."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.frames import frame_lengths
from w2v_plugin.live_encoders import OVERLAPS, ChunkEncoder, Overlap, OverlapEncoder
from w2v_plugin.model import Wav2Vec2


def numbered(wavs: list[Tensor]) -> list[Tensor]:
    """A model that knows where it is: "logits" of a frame are its first and last sample."""
    windows = [wav.unfold(0, 400, 320) for wav in wavs]
    return [torch.stack([x[:, 0], x[:, -1]], dim=1) for x in windows]


def run(overlap: Overlap, wav: Tensor, cuts: list[int], compute=numbered) -> Tensor:
    encoder, parts = OverlapEncoder(compute, overlap), []
    ends = [*sorted(cuts), len(wav)]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        parts += OverlapEncoder.run([encoder], [wav[begin:end]], False)
        assert len(encoder.wav) <= 320 * (sum(vars(overlap).values()) + 1) + 400 + end - begin
    parts += OverlapEncoder.run([encoder], [wav[:0]], True)
    parts = [part for part in parts if len(part)]
    return torch.cat(parts) if parts else torch.zeros(0, 2)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("overlap", [Overlap(2, 3, 1), Overlap(0, 1, 0), Overlap(5, 2, 7)])
def test_every_frame_once(overlap: Overlap, seed: int) -> None:
    """In its place, whatever the packets."""
    random = Random(seed)
    wav = torch.arange(random.randint(400, 20_000)).float()
    cuts = [random.randint(0, len(wav)) for _ in range(random.randint(0, 9))]
    found = run(overlap, wav, cuts)
    frames = torch.arange(frame_lengths(len(wav)))
    assert torch.equal(found, torch.stack([320 * frames, 320 * frames + 399], dim=1).float())


@pytest.mark.parametrize("overlap", [Overlap(2, 3, 1), Overlap(0, 2, 0), Overlap(1, 1, 3)])
def test_lengths_of_all_remainders(overlap: Overlap) -> None:
    """Streams that end within a frame, a core or a window, and before the first frame."""
    for frames in range(2 * sum(vars(overlap).values()) + 1):
        for samples in (320 * frames, 320 * frames + 79, 320 * frames + 80):
            wav = torch.arange(samples).float()
            known = torch.arange(frame_lengths(samples))
            found = run(overlap, wav, [samples // 2])
            assert torch.equal(found[:, :1], 320.0 * known[:, None])


@pytest.mark.parametrize("overlap", [Overlap(2, 3, 1), Overlap(0, 2, 4)])
@pytest.mark.parametrize("ended", [False, True])
def test_frames_hear_what_is_beside_them(overlap: Overlap, ended: bool) -> None:
    """Each window has its left and right side, and no more; at the ends, the true ones. Whether
    the stream ends with its last frame is known if the end comes with it."""
    windows = []

    def compute(wavs: list[Tensor]) -> list[Tensor]:
        windows.extend((wav[0].item(), wav[-1].item()) for wav in wavs)
        return numbered(wavs)

    wav = torch.arange(320 * 20 + 99.0)  # 20 frames and some samples
    encoder = OverlapEncoder(compute, overlap)
    if not ended:
        OverlapEncoder.run([encoder], [wav], False)
    [_] = OverlapEncoder.run([encoder], [wav if ended else wav[:0]], True)
    left, core, right = vars(overlap).values()
    for number, (first, last) in enumerate(windows):
        begin, end = max(number * core - left, 0), (number + 1) * core + right
        assert first == 320 * begin
        at_end = end >= 20 if ended else end > 20
        assert last == (len(wav) - 1 if at_end else 320 * (end - 1) + 399)
    assert windows[-1][1] == len(wav) - 1


def model(norm: str) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    body = Wav2Vec2(**shape, positions_kernel=8, positions_groups=4, extractor_norm=norm)
    return Wav2Vec2CTC(body, vocab_size=12).eval()


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_window_that_holds_everything_is_the_whole(norm: str) -> None:
    """Bit for bit, for models that cannot stream, too."""
    one, wav = model(norm), torch.randn(16_123)

    def compute(wavs: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [one(x[None]).logits[0] for x in wavs]

    whole = compute([wav])[0]
    assert not torch.equal(run(Overlap(5, 5, 5), wav, [5000], compute), whole)
    assert torch.equal(run(Overlap(0, 100, 0), wav, [5000], compute), whole)
    for samples in (9000, 59 * 320 + 399):  # as long as may be: a window needs 60 frames
        short = wav[:samples]
        assert torch.equal(run(Overlap(60, 30, 30), short, [], compute), compute([short])[0])


def test_windows_of_many_streams_go_together() -> None:
    """One call for all that have one ready."""
    sizes = []

    def compute(wavs: list[Tensor]) -> list[Tensor]:
        sizes.append(len(wavs))
        return numbered(wavs)

    encoders = [OverlapEncoder(compute, Overlap(2, 5, 2)) for _ in range(3)]
    wavs = [torch.arange(n).float() for n in (3000, 100, 3000)]
    logits = OverlapEncoder.run(encoders, wavs, False)
    assert [len(x) for x in logits] == [5, 0, 5] and sizes == [2]


@pytest.mark.parametrize(
    ("name", "latency", "cost"), [("half", 1505, 2.0), ("accurate", 965, 7.75), ("fast", 645, 8.25)]
)
def test_presets_say_what_they_cost(name: str, latency: float, cost: float) -> None:
    """Latency: core, right context, and 5 ms that a frame hears beyond its hop."""
    encoder = OverlapEncoder(numbered, OVERLAPS[name])
    assert (encoder.latency_ms, encoder.overlap.cost) == (latency, cost)


@pytest.mark.parametrize("name", OVERLAPS)
def test_latency_is_what_must_be_heard(name: str) -> None:
    """With one sample less, the first core does not come out."""
    overlap = OVERLAPS[name]
    encoder = OverlapEncoder(numbered, overlap)
    samples = round(encoder.latency_ms * 16)
    wav = torch.zeros(samples)
    assert len(OverlapEncoder.run([encoder], [wav[:-1]], False)[0]) == 0
    assert len(OverlapEncoder.run([encoder], [wav[-1:]], False)[0]) == overlap.core


def test_what_was_heard_takes_no_memory() -> None:
    """However long the packet was."""
    encoder = OverlapEncoder(numbered, Overlap(2, 3, 1))
    OverlapEncoder.run([encoder], [torch.zeros(320 * 1000)], False)
    assert encoder.nbytes == 4 * len(encoder.wav) < 4 * 320 * 8


def streaming() -> Wav2Vec2CTC:
    torch.manual_seed(0)
    body = Wav2Vec2(
        **{"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7},
        **{"positions_kernel": 8, "extractor_norm": "layer", "normalize": False},
    )
    return Wav2Vec2CTC(body, vocab_size=5).eval()


@pytest.mark.parametrize("seed", range(5))
def test_together_as_alone(seed: int) -> None:
    """Streams of any age, any packets, in float64: the numbers, and each frame once."""
    random, chunk, one = Random(seed), ChunkConfig(4, 8), streaming().double()
    wavs = [torch.randn(random.randint(0, 20_000)) for _ in range(4)]
    encoders, found = [ChunkEncoder(one, chunk) for _ in wavs], [[] for _ in wavs]
    rest = list(wavs)
    for last in [False] * 6 + [True]:
        sizes = [len(x) if last else random.choice((0, 1, 399, 1600, 5000)) for x in rest]
        packets = [x[:n] for x, n in zip(rest, sizes, strict=True)]
        rest = [x[n:] for x, n in zip(rest, sizes, strict=True)]
        for parts, logits in zip(found, ChunkEncoder.run(encoders, packets, last), strict=True):
            parts.append(logits)
    for wav, parts in zip(wavs, found, strict=True):
        expected = torch.zeros(0, 5)
        if len(wav) >= 400:
            with torch.no_grad():
                expected = one(wav.double()[None], chunk=chunk).logits[0].float()
        # given out in float32
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-6, rtol=1e-6)


def test_latency_of_chunks() -> None:
    encoder = ChunkEncoder(streaming(), ChunkConfig(16))
    assert encoder.latency_ms == 325
    wav = torch.zeros(325 * 16)
    assert len(ChunkEncoder.run([encoder], [wav[:-1]], False)[0]) == 0
    assert len(ChunkEncoder.run([encoder], [wav[-1:]], False)[0]) == 16


@pytest.mark.parametrize("frames", [(-1, 2, 0), (0, 0, 0), (0, 1, -1)])
def test_windows_that_make_no_sense(frames: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected core >= 1"):
        Overlap(*frames)
