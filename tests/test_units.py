"""Units of codes, runs, bitrates; records that can be read back; codes of whole files."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import stats

from w2v_plugin.clusters import KMeans, fit_kmeans, mfcc_frames
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.frames import frame_lengths
from w2v_plugin.hf_export import export_hf
from w2v_plugin.inputs import CannotStart, Input
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.overlap import Windows
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer
from w2v_plugin.text import CharVocabulary
from w2v_plugin.unit_models import Wav2Vec2Units
from w2v_plugin.unit_records import UnitRecords
from w2v_plugin.units import UnitCounts, entropy, runs, select_group, to_seconds

CPU = {"device": "cpu"}
SHAPE = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}


def pretraining(quantizer: type = GumbelQuantizer) -> Wav2Vec2Pretraining:
    torch.manual_seed(0)
    return Wav2Vec2Pretraining(Wav2Vec2(**SHAPE), quantizer(8, codes=20, dim=8), dim=8).eval()


def test_joint_codes_are_tuples() -> None:
    """Every pair has a number of its own, and the number its pair."""
    codes = np.array([[a, b] for a in range(3) for b in range(4)])
    assert select_group(codes, (3, 4)).tolist() == list(range(12))
    assert select_group(codes, (3, 4), 0).tolist() == codes[:, 0].tolist()
    for group in (-1, 2):
        with pytest.raises(ValueError, match="there are 2 groups"):
            select_group(codes, (3, 4), group)


def test_runs_can_be_undone() -> None:
    units = np.random.default_rng(0).integers(0, 3, 100)
    values, durations = runs(units)
    assert (np.diff(values) != 0).all() and durations.sum() == 100
    assert (np.repeat(values, durations) == units).all()
    assert [x.tolist() for x in runs(units[:0])] == [[], []]


def test_bitrates_by_hand() -> None:
    """Four frames 0 0 1 2: 1.5 bits each, 50 a second; runs 0 1 2: log2 3 bits, 37.5 a second."""
    counts = UnitCounts([4])
    counts.add(np.array([0, 0, 1, 2]))
    assert counts.bitrate == pytest.approx(75.0, abs=1e-12)
    assert counts.run_bitrate == pytest.approx(37.5 * np.log2(3), abs=1e-12)
    assert counts.used == 3 and "3 of 4 used in 4 frames" in str(counts)
    empty = UnitCounts([4, 4])
    assert (empty.bitrate, empty.run_bitrate, empty.used) == (0.0, 0.0, 0)
    assert "0 of 16 used" in str(empty)
    with pytest.raises(ValueError, match="expected 0 to 3"):
        counts.add(np.array([4]))


def test_entropy_is_that_of_scipy() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 30)
    assert entropy(counts) == pytest.approx(stats.entropy(counts, base=2), abs=1e-12)


def test_runs_of_two_files_do_not_touch() -> None:
    """The last unit of one file and the first of the next are two."""
    counts = UnitCounts([2, 3])
    for _ in range(2):
        counts.add(np.array([5, 5]))
    assert counts.runs == {5: 2} and counts.frames == {5: 4}
    assert counts.group(0).tolist() == [0, 4] and counts.group(1).tolist() == [0, 0, 4]


@pytest.mark.parametrize("dedup", [False, True])
@pytest.mark.parametrize("format", ["text", "json"])
def test_records_can_be_read_back(tmp_path: Path, format: str, dedup: bool) -> None:
    """A half-written line is left out; other options are refused."""
    items = [Input(Path(name), name) for name in ("a\u2028b.wav", "c.wav")]
    out, units = tmp_path / "out", np.array([3, 3, 3, 1])
    with UnitRecords(items, format, out, dedup=dedup) as records:
        records.write(items[0], units, 0.085)
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"path": "c')
    again = UnitRecords(items, format, out, resume=True, dedup=dedup)
    assert again.has(items[0]) and not again.has(items[1])
    assert [earlier.tolist() for earlier in again.earlier()] == [[3, 3, 3, 1]]
    with pytest.raises(CannotStart, match="with --dedup as before"):
        list(UnitRecords(items, format, out, resume=True, dedup=not dedup).earlier())
    with pytest.raises(CannotStart, match="exists already"):
        UnitRecords(items, format, out, dedup=dedup)
    with pytest.raises(CannotStart, match="give it, too"):
        UnitRecords(items, format, resume=True)
    if format == "json":
        record = json.loads(whole)
        assert record["units"] == ([3, 1] if dedup else [3, 3, 3, 1])
        assert record.get("durations") == ([3, 1] if dedup else None)


@pytest.mark.parametrize("quantizer", [GumbelQuantizer, NearestQuantizer])
def test_codes_are_those_of_pretraining(tmp_path: Path, quantizer: type) -> None:
    """What the model's quantizer says of unmasked latents in evaluation mode; file = batch."""
    model = pretraining(quantizer)
    save_pretrained(tmp_path / "model", model)
    units = Wav2Vec2Units.from_hparams(tmp_path / "model", run_opts=CPU)
    assert units.sizes == (20, 20)
    wavs = [0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (9000, 400)]
    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for path, wav in zip(paths, wavs, strict=True):
        soundfile.write(path, wav.numpy(), 16000, subtype="FLOAT")
    found = dict(units.encode_files([*paths, tmp_path / "gone.wav"]))
    assert "no such file" in str(found.pop(tmp_path / "gone.wav"))
    for path, wav in zip(paths, wavs, strict=True):
        with torch.no_grad():
            latents, _ = model.wav2vec2.extract(wav[None])
            expected = model.quantizer(model.wav2vec2.projection.norm(latents)).codes[0]
        assert found[path].shape == (frame_lengths(len(wav)), 2)
        assert (found[path] == expected.numpy()).all()
        assert (units.encode(wav) == expected.numpy()).all()
    assert to_seconds(len(found[paths[1]])) == 400 / 16000


def test_a_published_checkpoint_gives_the_same_codes(tmp_path: Path) -> None:
    model = pretraining()
    save_pretrained(tmp_path / "ours", model)
    export_hf(model, tmp_path / "hf")
    wav = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    ours = Wav2Vec2Units.from_hparams(tmp_path / "ours", run_opts=CPU)
    theirs = Wav2Vec2Units.from_checkpoint(tmp_path / "hf", device="cpu")
    assert (ours.encode(wav) == theirs.encode(wav)).all()


def test_long_files_and_padded_batches_change_nothing(tmp_path: Path) -> None:
    """Layer norm hears 25 ms: windows give the codes of the whole, and so does padding."""
    body = Wav2Vec2(**SHAPE, extractor_norm="layer", normalize=False)
    model = Wav2Vec2Pretraining(body, GumbelQuantizer(8, codes=20, dim=8), dim=8)
    save_pretrained(tmp_path / "model", model)
    units = Wav2Vec2Units.from_hparams(tmp_path / "model", run_opts=CPU)
    paths = [tmp_path / "long.wav", tmp_path / "short.wav"]
    for path, seconds in zip(paths, (5, 1), strict=True):
        wav = np.random.default_rng(seconds).normal(0, 0.1, seconds * 16000)
        soundfile.write(path, wav, 16000, subtype="FLOAT")
    whole = dict(units.encode_files(paths))
    units.windows = Windows(2.0, 0.5)
    windowed = dict(units.encode_files(paths))
    units.windows, units._compiled = Windows(), True  # what makes it pad, as on an accelerator
    padded = dict(units.encode_files(paths))
    for path in paths:
        # nearly: equal up to rounding, so a frame between two codes may fall to either side
        assert (windowed[path] == whole[path]).mean() > 0.99
        assert (padded[path] == whole[path]).mean() > 0.99


def test_clusters_of_a_layer(tmp_path: Path) -> None:
    """Of any model, fine-tuned ones as well; the nearest centre of that layer's output."""
    body = Wav2Vec2(**SHAPE).eval()
    save_asr(tmp_path / "asr", Wav2Vec2CTC(body, vocab_size=32), CharVocabulary())
    units = Wav2Vec2Units.from_hparams(tmp_path / "asr", run_opts=CPU)
    with pytest.raises(ValueError, match="no quantizer"):
        _ = units.sizes
    wav = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = body(wav[None], output_hidden_states=True).hidden_states[1][0]
    kmeans = KMeans(hidden[::5].clone(), layer=1)
    units.use(kmeans)
    codes = units.encode(wav)
    assert units.sizes == (10,) and codes[::5, 0].tolist() == list(range(10))
    distances = (hidden[:, None] - kmeans.centres).square().sum(-1)
    assert (codes[:, 0] == distances.argmin(1).numpy()).all()
    for wrong in (KMeans(torch.zeros(3, 16), 3), KMeans(torch.zeros(3, 8), 1)):
        with pytest.raises(ValueError, match="this model has 2 layers, 16 wide"):
            units.use(wrong)
    with pytest.raises(ValueError, match="are of mfcc raw"):
        units.use(KMeans(torch.zeros(3, 16), "mfcc raw"))


def test_clusters_are_kept_in_a_file(tmp_path: Path) -> None:
    for layer in (3, -1, "mfcc raw"):
        KMeans(torch.randn(4, 2), layer).save(tmp_path / "k.safetensors")
        assert KMeans.load(tmp_path / "k.safetensors").layer == layer
    (tmp_path / "other").write_text("no clusters")
    with pytest.raises(ValueError, match="no k-means of ours"):
        KMeans.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        KMeans.load(tmp_path / "gone")


def test_fitting_is_repeatable() -> None:
    """The same seed, the same centres; blobs are found; too few frames are refused."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    generator = np.random.default_rng(0)
    middles = 10 * generator.normal(size=(5, 3))
    frames = (middles[:, None] + 0.1 * generator.normal(size=(5, 200, 3))).reshape(-1, 3)
    first, again = (fit_kmeans(frames.astype(np.float32), 5, 1, seed=4) for _ in range(2))
    assert torch.equal(first.centres, again.centres)
    units = first(torch.from_numpy(frames).float()).view(5, 200)
    assert (units == units[:, :1]).all() and len(set(units[:, 0].tolist())) == 5
    with pytest.raises(ValueError, match="5 frames for 6 clusters"):
        fit_kmeans(frames[:5], 6, 1)


@pytest.mark.parametrize("samples", [400, 719, 720, 16000, 16321])
def test_mfccs_have_the_frames_of_the_model(samples: int) -> None:
    wav = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    for normalize in (False, True):
        found = mfcc_frames(wav, normalize=normalize)
        assert found.shape == (frame_lengths(samples), 39) and bool(found.isfinite().all())


def test_mfccs_are_centred_on_the_frame() -> None:
    """A click at sample 320 t + 200 is loudest in frame t, and as loud on either side of it."""
    wav = 1e-4 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    wav[320 * 20 + 200] = 1.0
    energy = mfcc_frames(wav)[:, 0]
    assert int(energy.argmax()) == 20
    # a tenth: the noise around the click is not symmetric
    assert float(energy[19]) == pytest.approx(float(energy[21]), abs=0.1 * float(energy.std()))
    normed = mfcc_frames(wav, normalize=True)
    assert torch.allclose(normed.mean(0), torch.zeros(39), atol=1e-5)  # float32 means of 49
