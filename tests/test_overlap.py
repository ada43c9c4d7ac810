"""Windows: what is cut and joined again is the whole, in bounded memory."""

from __future__ import annotations

import itertools
import os

import pytest
import soundfile
import torch
from torch import Tensor

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.frames import frame_lengths
from w2v_plugin.interfaces import Wav2Vec2ASR, Wav2Vec2Encoder
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.overlap import Windows
from w2v_plugin.text import CharVocabulary

SMALL = Windows(2.0, 0.5)  # 32000 samples, step 24000
LENGTHS = [400, 8000, 31999, 32000, 32001, 32319, 32320, 55999, 56000, 56001, 80000, 123457]


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def frames_of(wav: Tensor) -> Tensor:
    """A model of which each frame hears its own 400 samples only: (frames, 2)."""
    windows = wav.unfold(0, 400, 320)
    return torch.stack([windows.sum(1), windows[:, 17]], 1)


# --- cutting and joining -------------------------------------------------------------------------


@pytest.mark.parametrize("samples", LENGTHS)
def test_joined_windows_are_the_whole(samples) -> None:
    """No frame is lost, doubled or moved, whatever the length."""
    wav = torch.randn(samples, dtype=torch.float64)
    cut = list(SMALL.cut([wav]))
    assert all(len(window) == 32000 for window in cut[:-1]) and len(cut[-1]) <= 32000
    pieces = list(SMALL.join(map(frames_of, cut)))
    assert len(torch.cat(pieces)) == frame_lengths(samples)
    torch.testing.assert_close(torch.cat(pieces), frames_of(wav), rtol=0, atol=1e-12)


def test_what_fits_into_one_window_stays_whole() -> None:
    """Up to the last sample."""
    wav = torch.randn(32000)
    (window,) = SMALL.cut([wav])
    assert torch.equal(window, wav)
    assert len(list(SMALL.cut([torch.randn(32001)]))) == 2


@pytest.mark.parametrize("sizes", [[1], [7, 0, 1000], [24000], [32000], [100000], [31999, 2]])
def test_blocks_may_have_any_size(sizes) -> None:
    """Windows do not depend on how the audio arrives."""
    wav, blocks, at = torch.randn(81000), [], 0
    if sizes == [1]:
        wav = wav[:33000]
    for size in itertools.cycle(sizes):
        blocks.append(wav[at : at + size])
        at += size
        if at >= len(wav):
            break
    expected = list(SMALL.cut([wav]))
    for window, right in zip(SMALL.cut(blocks), expected, strict=True):
        assert torch.equal(window, right)


def test_two_windows_are_at_hand_at_a_time() -> None:
    """Pieces come as soon as they are certain, so that hours need no more room than minutes."""
    taken = []

    def windows():
        for number in range(5):
            taken.append(number)
            yield torch.zeros(99, 3)

    joined = SMALL.join(windows())
    for after in range(4):
        next(joined)
        assert taken == list(range(after + 2))


def test_windows_are_joined_where_they_agree() -> None:
    """In the middle half of what they share, and never at a frame on which they differ."""
    for agree in (7, 12, 17):
        left, right = torch.zeros(99, 4), torch.ones(99, 4)
        right[agree - 3 : agree + 4] = 0  # the frames 75 + agree - 3 … of the whole
        whole = torch.cat(list(SMALL.join([left, right])))
        assert len(whole) == 174
        jumps = (whole[1:, 0] != whole[:-1, 0]).nonzero()[:, 0]
        assert jumps.tolist() == [75 + agree + 3]
    left, right = torch.zeros(99, 4), torch.ones(99, 4)
    right[:5] = 0  # agreement near an edge, where there is no context, counts for nothing
    whole = torch.cat(list(SMALL.join([left, right])))
    assert int(whole[:, 0].argmax()) >= 75 + 24 // 4


@pytest.mark.parametrize(
    ("length", "overlap"), [(2.0, 1.1), (2.0, 0.1), (2.0, -1.0), (-2.0, 0.5), (2.0, float("nan"))]
)
def test_windows_that_cannot_be_joined_are_refused(length, overlap) -> None:
    with pytest.raises(ValueError, match=f"{length} s with {overlap} s .* at most half"):
        Windows(length, overlap)


@pytest.mark.parametrize("windows", [Windows(0.4, 0.2), Windows(0.41, 0.203), Windows(1.01, 0.5)])
def test_smallest_windows(windows) -> None:
    """The least that is allowed, and lengths that are no whole frames."""
    for samples in range(windows.length - 2, windows.length + 2 * windows.step, 531):
        wav = torch.randn(samples, dtype=torch.float64)
        joined = torch.cat(list(windows.join(map(frames_of, windows.cut([wav])))))
        torch.testing.assert_close(joined, frames_of(wav), rtol=0, atol=1e-12)


# --- with a model --------------------------------------------------------------------------------


def make_model(local: bool) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    shape |= {"positions_kernel": 16, "positions_groups": 4, "extractor_norm": "layer"}
    model = Wav2Vec2CTC(Wav2Vec2(**shape, normalize=False), vocab_size=32).eval()
    with torch.no_grad():
        model.head.weight.normal_(std=3.0)
        if local:  # a frame hears 16 others by its positions, and no more
            for layer in model.wav2vec2.encoder.layers:
                layer.attention.out.weight.zero_()
    return model


@pytest.fixture
def talk(tmp_path):
    """7 s in a file."""
    soundfile.write(tmp_path / "talk.wav", noise(112345).numpy(), 16000, "FLOAT")
    return tmp_path / "talk.wav"


def interfaces(local: bool) -> tuple[Wav2Vec2ASR, Wav2Vec2Encoder]:
    run_opts, hparams = {"device": "cpu"}, {"tokenizer": CharVocabulary()}
    asr = Wav2Vec2ASR({"model": make_model(local)}, hparams, run_opts=run_opts)
    body = make_model(local).wav2vec2
    return asr, Wav2Vec2Encoder({"wav2vec2": body}, {}, run_opts=run_opts)


def test_a_local_model_gives_the_same_in_windows(talk) -> None:
    """Seams lie further from the edges than this model hears: nothing but rounding differs."""
    for interface in interfaces(local=True):
        call = interface.transcript if isinstance(interface, Wav2Vec2ASR) else interface.encode_file
        whole = call(talk)
        interface.windows = Windows(2.0, 0.8)  # seams 10 frames or more from an edge
        parts = call(talk)
        if isinstance(whole, Tensor):
            assert len(whole) == frame_lengths(112345)
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
            every = interface.encode_file(talk, layer="all")
            assert every.shape == (3, *whole.shape)
            mean = interface.encode_file(talk, layer=1, pool="mean")
            torch.testing.assert_close(mean, every[1].mean(0), rtol=0, atol=1e-5)
        else:
            assert parts.text == whole.text and len(whole.text) > 20
            assert [w.start for w in parts.words] == [w.start for w in whole.words]


def test_one_window_is_the_whole_file(talk) -> None:
    """Bit for bit, with attention over everything; in more windows it differs, but only a bit."""
    _, encoder = interfaces(local=False)
    whole = encoder.encode_file(talk)
    encoder.windows = Windows(7.04, 1.0)  # 112640 samples
    assert torch.equal(encoder.encode_file(talk), whole)
    encoder.windows = Windows(3.0, 1.0)
    parts = encoder.encode_file(talk)
    assert parts.shape == whole.shape and not torch.equal(parts, whole)
    middle = slice(20, -20)
    assert float((parts - whole)[middle].norm() / whole[middle].norm()) < 0.05


# --- memory --------------------------------------------------------------------------------------


def resident() -> float:
    """MB in use now; the peak of this process may lie in another test."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def growth(monkeypatch, path, minutes: int) -> float:
    """MB by which memory grows from the second window of a file to the largest."""
    with soundfile.SoundFile(str(path), "w", 8000, 1) as sound:
        for minute in range(minutes):
            sound.write(noise(8000 * 60, minute).numpy())
    asr, _ = interfaces(local=False)
    asr.windows, used, answer = Windows(10.0, 1.0), [], asr.logits
    monkeypatch.setattr(
        asr, "logits", lambda wavs, chunk: used.append(resident()) or answer(wavs, chunk)
    )
    ((_, logits),) = asr._logits([path], 60.0, None)
    assert len(logits) == frame_lengths(minutes * 60 * 16000)
    return max(used) - used[1] - logits.nbytes / 1e6


needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="needs Linux to read its memory"
)


@needs_proc
def test_memory_is_flat(monkeypatch, tmp_path) -> None:
    """10 minutes at 16 kHz are 38 MB; the logits alone may stay."""
    assert growth(monkeypatch, tmp_path / "long.flac", 10) < 20


@needs_proc
@pytest.mark.slow
def test_memory_is_flat_for_hours(monkeypatch, tmp_path) -> None:
    """Three hours are 691 MB."""
    assert growth(monkeypatch, tmp_path / "long.flac", 180) < 40
