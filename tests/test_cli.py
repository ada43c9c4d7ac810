"""`w2v`: results on stdout, errors on stderr, exit status 0, 1 or 2, never a traceback."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from w2v_plugin import (
    Wav2Vec2,
    Wav2Vec2ASR,
    Wav2Vec2CTC,
    Wav2Vec2Encoder,
    Wav2Vec2Pretraining,
    __version__,
    export_hf,
)
from w2v_plugin.cli import POOLS, PRECISIONS, main
from w2v_plugin.clusters import KMeans
from w2v_plugin.compression import PRECISIONS as KNOWN_PRECISIONS
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.ngrams import load_ngrams
from w2v_plugin.overlap import Windows
from w2v_plugin.pooling import POOLS as KNOWN_POOLS
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.text import CharVocabulary
from w2v_plugin.transcripts import to_ctm, to_json, to_srt, to_vtt
from w2v_plugin.unit_models import Wav2Vec2Units

CPU = {"device": "cpu"}
FP32 = ("--device", "cpu", "--precision", "fp32")
ARPA = """\\data\\
ngram 1=4

\\1-grams:
-1.0 <s>
-1.0 </s>
-0.5 A
-1.5 B

\\end\\
"""
CHOICE = "w2v: cpu, fp32 (as asked)"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a model that says something."""
    torch.manual_seed(0)
    shape = {"dim": 32, "layers": 2, "heads": 4, "ffn_dim": 64, "channels": (16,) * 7}
    ctc = Wav2Vec2CTC(Wav2Vec2(**shape, positions_kernel=16), vocab_size=32).eval()
    with torch.no_grad():
        ctc.head.weight.normal_(std=3.0)
        ctc.head.bias -= ctc(torch.randn(1, 16000)).logits.mean((0, 1))
    folder = tmp_path_factory.mktemp("model")
    save_asr(folder / "asr", ctc, CharVocabulary())
    save_pretrained(folder / "pretrained", ctc.wav2vec2)
    layer = Wav2Vec2(**shape, positions_kernel=16, extractor_norm="layer", normalize=False)
    save_asr(folder / "layer", Wav2Vec2CTC(layer, head=ctc.head), CharVocabulary())
    export_hf(ctc, folder / "hf")
    (folder / "hf" / "vocab.json").write_text(json.dumps(CharVocabulary().lab2ind))
    quantizer = GumbelQuantizer(16, codes=20, dim=8)
    save_pretrained(folder / "units", Wav2Vec2Pretraining(ctc.wav2vec2, quantizer, dim=8))
    return folder


@pytest.fixture
def sounds(tmp_path):
    """b.wav, a.flac and sub/a.wav in a folder that also holds other things."""
    folder = tmp_path / "sounds"
    (folder / "sub").mkdir(parents=True)
    paths = [folder / name for name in ("b.wav", "a.flac", "sub/a.wav")]
    for i, path in enumerate(paths):
        wav = torch.randn(8000 + 1000 * i, generator=torch.Generator().manual_seed(i))
        soundfile.write(path, 0.1 * wav.numpy(), 16000)
    (folder / "notes.txt").write_text("not audio")
    return folder, paths


@pytest.fixture
def many(tmp_path):
    """sub/0.wav to sub/7.wav, half a second each at most; 1 and 5 are broken."""
    folder = tmp_path / "many" / "sub"
    folder.mkdir(parents=True)
    for number in range(8):
        wav = np.random.default_rng(number).normal(size=6000 + 300 * number)
        soundfile.write(folder / f"{number}.wav", 0.1 * wav, 16000)
    for number in (1, 5):
        (folder / f"{number}.wav").write_text("not audio")
    return folder.parent


def run(capsys, *arguments):
    """Exit status, lines of stdout, lines of stderr."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as error:  # argparse
        status = error.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def transcribe(capsys, model, *arguments):
    """`w2v transcribe` on the CPU in float32."""
    return run(capsys, "transcribe", *arguments, "--model", model, *FP32)


def test_one_file_gives_its_text_alone(capsys, model, sounds):
    """From a folder of ours and from a transformers folder, which are the same model here."""
    path = sounds[1][0]
    asr = Wav2Vec2ASR.from_hparams(source=model / "asr", run_opts=CPU)
    for source in ("asr", "hf"):
        got = transcribe(capsys, model / source, path)
        assert got == (0, [asr.transcribe_file(path)], [CHOICE])


def test_files_and_folders_keep_their_order(capsys, model, sounds):
    """Files as given, folders sorted, every file once; other files are none of our business."""
    folder, (b, a, sub) = sounds
    status, out, err = transcribe(capsys, model / "asr", sub, folder)
    assert [line.split("\t")[0] for line in out] == [str(p) for p in (sub, a, b)]
    assert all(line.split("\t")[1] for line in out)
    assert status == 0 and len(err) == 2
    assert re.fullmatch(r"w2v: 3 files; 1\.7 s audio in .* s, .* x real time", err[1])


def test_stdin_manifest_and_pattern_are_the_same_files(capsys, model, sounds, monkeypatch):
    """Three ways to name them."""
    folder, paths = sounds
    (folder / "list.csv").write_text("wav\n" + "".join(f"{path}\n" for path in sorted(paths)))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(str, sorted(paths)))))
    results = [
        transcribe(capsys, model / "asr", given)[:2]
        for given in ("-", folder / "list.csv", folder / "**" / "*.*a*")
    ]
    assert results[0][0] == 0 and len(results[0][1]) == 3
    assert results[0] == results[1] == results[2]


def test_formats(capsys, model, sounds, tmp_path):
    """What the writers make of the transcript; into files as well as to stdout."""
    path = sounds[1][0]
    asr = Wav2Vec2ASR.from_hparams(source=model / "asr", run_opts=CPU)
    [(_, (said, seconds))] = asr.transcripts([path])
    expected = {
        "json": [to_json(str(path), said, seconds)],
        "ctm": to_ctm("b", said).splitlines(),
        "srt": to_srt(said).splitlines(),
        "vtt": to_vtt(said).splitlines(),
    }
    for format, lines in expected.items():
        assert transcribe(capsys, model / "asr", path, "--format", format)[1] == lines
    command = (sounds[0], "--format", "srt", "--out", tmp_path / "out")
    assert transcribe(capsys, model / "asr", *command)[:2] == (0, [])
    found = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.srt"))
    assert list(map(str, found)) == ["a.srt", "b.srt", "sub/a.srt"]
    assert (tmp_path / "out" / "b.srt").read_text().splitlines() == expected["srt"]
    status, _, err = transcribe(capsys, model / "asr", sounds[0], "--format", "vtt")
    assert status == 2 and "give --out FOLDER" in err[-1]


def test_chunks(capsys, model, sounds):
    """A chunk of a minute is no restriction, one of a frame is; group norm refuses."""
    refused = transcribe(capsys, model / "hf", sounds[1][0], "--chunk-ms", "640")
    assert refused[0] == 2 and "extractor_norm='layer'" in refused[2][-1]
    command = (model / "layer", sounds[1][0])
    whole = transcribe(capsys, *command)
    assert transcribe(capsys, *command, "--chunk-ms", "60000") == whole
    assert transcribe(capsys, *command, "--chunk-ms", "20") != whole
    for wrong in ("30", "0", "-20", "x"):
        status, _, err = transcribe(capsys, *command, f"--chunk-ms={wrong}")
        assert status == 2 and "a multiple of 20" in err[-1]


def test_a_bad_file_does_not_stop_the_others(capsys, model, sounds, tmp_path):
    """The rest is transcribed; at the end, one line of error each; exit status 1."""
    _, (b, a, sub) = sounds
    (tmp_path / "text.wav").write_text("not audio")
    files = (b, tmp_path / "text.wav", a, tmp_path / "missing.wav", sub)
    status, out, err = transcribe(capsys, model / "asr", *files)
    assert status == 1 and [line.split("\t")[0] for line in out] == [str(p) for p in (b, a, sub)]
    assert len(err) == 4 and "text.wav: cannot be decoded" in err[1]
    assert "missing.wav: no such file" in err[2]
    assert err[3].startswith("w2v: 5 files, 2 could not be used; 1.7 s audio in ")
    out_folder = tmp_path / "vectors"
    embedded = run(capsys, "embed", *files[:3], "--model", model / "asr", "--out", out_folder)
    assert embedded[0] == 1 and len(embedded[1]) == 2 and "text.wav" in embedded[2][1]
    assert sorted(p.name for p in out_folder.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("format", ["text", "json", "ctm"])
def test_resuming_gives_the_bytes_of_an_unbroken_run(capsys, model, many, tmp_path, format):
    """Wherever it broke off, with two files to a batch, and two that fail every time."""
    out = tmp_path / "out"
    command = (many, "--format", format, "--out", out, "--batch-s", "1")
    assert transcribe(capsys, model / "asr", *command)[0] == 1
    whole = out.read_bytes()
    assert whole.count(b"sub/") >= 6 if format == "ctm" else len(whole.splitlines()) == 6
    for part in (0.0, 0.3, 0.5, 0.8, 1.0):
        out.write_bytes(whole[: round(part * len(whole))])
        status, lines, err = transcribe(capsys, model / "asr", *command, "--resume")
        assert (status, lines, len(err)) == (1, [], 4)
        assert ("done before" in err[-1]) == (part > (0.3 if format == "ctm" else 0.0))
        assert out.read_bytes() == whole
    status, _, err = transcribe(capsys, model / "asr", *command)
    assert status == 2 and "exists already" in err[0] and out.read_bytes() == whole


def test_a_batch_that_broke_off_is_computed_as_it_was(capsys, model, many, tmp_path, monkeypatch):
    """With what was in it, but written once; of finished batches, only what failed is tried."""
    out, asked = tmp_path / "out", []
    before = Wav2Vec2ASR.transcripts

    def transcripts(self, paths, **options):
        asked.append([path.stem for path in paths])
        return before(self, paths, **options)

    monkeypatch.setattr(Wav2Vec2ASR, "transcripts", transcripts)
    command = (many, "--out", out, "--batch-s", "1")
    transcribe(capsys, model / "asr", *command)
    assert asked == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]
    lines = out.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    out.write_bytes(b"".join(lines[:3]))  # 0, 2, 3: file 1 is broken, and so is file 5
    asked.clear()
    transcribe(capsys, model / "asr", *command, "--resume")
    assert asked == [["1"], ["3", "4", "5"], ["6", "7"]]
    assert out.read_bytes() == b"".join(lines)


def test_a_killed_program_goes_on(capsys, model, sounds, tmp_path):
    """kill -9 while it works, then --resume: the bytes of an unbroken run."""
    folder, _ = sounds
    for number in range(30):
        wav = np.random.default_rng(number).normal(size=32000)
        soundfile.write(folder / f"{number:02d}.wav", 0.1 * wav, 16000)
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    command = ["transcribe", str(folder), "--format", "json", "--batch-s", "5", "--threads", "1"]
    command += ["--model", str(model / "asr"), *FP32]
    killed = subprocess.Popen(
        [sys.executable, "-m", "w2v_plugin.cli", *command, "--out", str(out)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while killed.poll() is None and not (out.exists() and out.stat().st_size):
        time.sleep(0.001)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL  # it was not done yet
    assert main([*command, "--out", str(whole)]) == 0
    before = out.read_bytes()
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert 0 < len(before) < len(whole.read_bytes()) and whole.read_bytes().startswith(before)
    assert "of them done before" in capsys.readouterr().err


def test_interrupted_by_the_user(capsys, model, sounds, tmp_path, monkeypatch):
    """Status 130, what was done is on disk, and the way to go on is said."""
    before = Wav2Vec2ASR.transcripts

    def transcripts(self, paths, **options):
        results = before(self, paths, **options)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(Wav2Vec2ASR, "transcripts", transcripts)
    command = (sounds[0], "--out", tmp_path / "out")
    status, _, err = transcribe(capsys, model / "asr", *command)
    assert (status, err[1:]) == (130, ["w2v: interrupted; the same command with --resume goes on"])
    assert len((tmp_path / "out").read_text().splitlines()) == 1
    assert transcribe(capsys, model / "asr", sounds[0])[2][1:] == ["w2v: interrupted"]


def test_beam_search(capsys, model, sounds, tmp_path):
    """Asked for by any of its options; the same as in Python."""
    (tmp_path / "lm.arpa").write_text(ARPA)
    (tmp_path / "hot.txt").write_text("AB\n\nBA CD\n")
    path = sounds[1][0]
    asr = Wav2Vec2ASR.from_hparams(source=model / "asr", run_opts=CPU)
    hot, lm = ["AB", "BA CD"], load_ngrams(tmp_path / "lm.arpa")
    cases = {
        ("--n-best", "3", "--beam", "8"): {"n_best": 3, "beam": 8},
        ("--hot-words", "AB, BA CD,"): {"hot_words": hot},
        ("--hot-words", tmp_path / "hot.txt"): {"hot_words": hot},
        ("--lm", tmp_path / "lm.arpa", "--alpha", "2", "--beta", "-1"): {
            "lm": lm,
            "alpha": 2.0,
            "beta": -1.0,
        },
    }
    for options, meant in cases.items():
        asr.decode_with(**meant)
        [(_, result)] = asr.transcripts([path])
        expected = to_json(str(path), *result)
        command = (path, "--format", "json", *options)
        assert transcribe(capsys, model / "asr", *command) == (0, [expected], [CHOICE])
        assert len(json.loads(expected)["alternatives"]) == meant.get("n_best", 1) - 1


def test_options_reach_the_model(capsys, model, sounds, monkeypatch):
    """Windows, threads and batches; int8 where there is one."""
    seen = {}
    before = Wav2Vec2ASR.transcripts

    def transcripts(self, paths, **options):
        seen.update(options, windows=self.windows, precision=self.choice.precision)
        return before(self, paths, **options)

    monkeypatch.setattr(Wav2Vec2ASR, "transcripts", transcripts)
    threads = torch.get_num_threads()
    options = ("--batch-s", "7", "--window-s", "5", "--threads", "2")
    status, _, _ = transcribe(capsys, model / "asr", sounds[1][0], *options)
    assert status == 0 and torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert seen == {
        "batch_s": 7.0,
        "chunk": None,
        "windows": Windows(5.0, 1.0),
        "precision": "fp32",
    }
    automatic = ("transcribe", sounds[1][0], "--model", model / "hf", "--device", "cpu")
    status, _, err = run(capsys, *automatic)
    assert status == 0 and re.match(r"w2v: cpu, (fp32|bf16|fp16) \(as asked; ", err[0])
    assert list(PRECISIONS) == ["auto", *KNOWN_PRECISIONS] and list(POOLS) == list(KNOWN_POOLS)


def test_align(capsys, model, sounds, tmp_path):
    """A text or a file of it; what does not fit is refused with the reason."""
    path = sounds[1][0]
    asr = Wav2Vec2ASR.from_hparams(source=model / "asr", run_opts=CPU)
    expected = to_json(str(path), asr.align_file(path, "A CAB"), 0.5)
    (tmp_path / "text.txt").write_text("A\nCAB\n")
    command = ("--model", model / "asr", *FP32)
    for text in ("A CAB", tmp_path / "text.txt"):
        assert run(capsys, "align", path, text, *command) == (0, [expected], [CHOICE])
    out = ("--format", "vtt", "--out", tmp_path / "talk.vtt")
    assert run(capsys, "align", path, "A CAB", *command, *out)[:2] == (0, [])
    assert (tmp_path / "talk.vtt").read_text() == to_vtt(asr.align_file(path, "A CAB"))
    for text, complaint in {"A" * 50: "needs", "ജ": "vocabulary"}.items():
        status, lines, err = run(capsys, "align", path, text, *command)
        assert (status, lines, len(err)) == (2, [], 2) and complaint in err[1]
    status, _, err = run(capsys, "align", tmp_path / "missing.wav", "A", *command)
    assert status == 1 and "no such file" in err[1]
    assert run(capsys, "align", sounds[0], "A", *command)[0] == 2


@pytest.mark.parametrize("kind", ["pretrained", "asr", "hf"])
def test_embed_writes_what_the_encoder_gives(capsys, model, sounds, tmp_path, kind):
    """One .npy per file, with the structure of the folder."""
    folder, (b, a, sub) = sounds
    command = ("embed", folder, "--model", model / kind, "--layer", "1", *FP32, "--out")
    status, out, err = run(capsys, *command, tmp_path / "out")
    names = ("a.npy", "b.npy", "sub/a.npy")
    assert out == [
        f"{path}\t{tmp_path / 'out' / name}" for path, name in zip((a, b, sub), names, strict=True)
    ]
    encoder = Wav2Vec2Encoder.from_hparams(source=model / "asr", run_opts=CPU)
    vectors = np.load(tmp_path / "out" / "sub" / "a.npy")
    # float32 through layers of dim 32, computed in a batch of three instead of alone
    assert np.allclose(vectors, encoder.encode_file(sub, layer=1).numpy(), atol=1e-5)
    run(capsys, *command, tmp_path / "pooled", "--pool", "mean")
    assert np.load(tmp_path / "pooled" / "sub" / "a.npy").shape == (32,)
    assert (status, err[0], len(err)) == (0, CHOICE, 2)


@pytest.mark.parametrize(
    ("options", "shape", "axes"),
    [
        (("--layer", "all", "--pool", "mean+std"), (3, 64), ["layer"]),
        (("--layer", "2,0"), (2, 24, 32), ["layer", "frame"]),
        (("--layer-weights", "0.2,0.3,0.5"), (24, 32), ["frame"]),
        (("--pool", "statistics"), (128,), []),
    ],
)
def test_layers_pools_and_formats(capsys, model, sounds, tmp_path, options, shape, axes):
    """One file for all, under the names of the files."""
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="an optional package: extra onnx or parquet"
    )
    command = ("embed", sounds[0], "--model", model / "asr", *FP32, *options)
    status, out, _ = run(capsys, *command, "--format", "npz", "--out", tmp_path / "all.npz")
    assert status == 0 and [line.split("\t")[1] for line in out] == ["a", "b", "sub/a"]
    with np.load(tmp_path / "all.npz") as archive:
        assert sorted(archive) == ["a", "b", "sub/a"] and archive["b"].shape == shape
        first = archive["b"]
    assert run(capsys, *command, "--format=parquet", "--out", tmp_path / "all.parquet")[0] == 0
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.column_names == ["path", *axes, "vector"]
    rows = [row["vector"] for row in table.to_pylist() if row["path"] == "b"]
    assert np.array_equal(np.array(rows, np.float32).reshape(shape), first)


def test_embed_resumes(capsys, model, sounds, tmp_path):
    """What is there stays; without --resume it is refused; one file for all is written whole."""
    out = tmp_path / "out"
    command = ("embed", sounds[0], "--model", model / "asr", *FP32, "--out", out)
    run(capsys, *command)
    whole = {path: path.read_bytes() for path in sorted(out.rglob("*.npy"))}
    status, lines, err = run(capsys, *command)
    assert (status, lines) == (2, []) and "exists already" in err[0]
    (out / "b.npy").unlink()
    status, lines, _ = run(capsys, *command, "--resume")
    assert (status, lines) == (0, [f"{sounds[1][0]}\t{out / 'b.npy'}"])
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.npy"))} == whole
    status, _, err = run(capsys, *command[:-1], tmp_path / "x.npz", "--resume", "--format", "npz")
    assert status == 2 and "--resume works with --format npy" in err[0]


def test_results_never_overwrite_each_other(capsys, model, sounds, tmp_path):
    """Two files of one name: refused before any work."""
    _, (_, a, sub) = sounds
    command = ("embed", a, sub, "--model", model / "asr", "--out", tmp_path / "out")
    status, out, err = run(capsys, *command)
    assert (status, out, len(err)) == (2, [], 1)
    assert "would both be written" in err[0] and not (tmp_path / "out").exists()


def test_convert(capsys, model, sounds, tmp_path):
    """The converted model says the same; the report says what was read; nothing is overwritten."""
    said = transcribe(capsys, model / "asr", sounds[1][0])[1]
    for source, to in (("asr", "hf"), ("hf", "ours")):
        folder = tmp_path / to
        status, out, err = run(capsys, "convert", model / source, folder, "--to", to)
        assert (status, err) == (0, []) and "tensors read" in out[1] and str(folder) in out[-1]
        assert transcribe(capsys, folder, sounds[1][0])[1] == said
        status, out, err = run(capsys, "convert", model / source, folder, "--to", to)
        assert (status, out, len(err)) == (2, [], 1) and str(folder) in err[0]


def test_export(capsys, model, tmp_path, monkeypatch):
    """CTC models with their vocabulary, others without heads; nothing is overwritten."""
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="an optional package: extra onnx or parquet"
    )
    pytest.importorskip("onnxscript", reason="an optional package: extra onnx or parquet")
    file = tmp_path / "asr.onnx"
    status, out, _ = run(capsys, "export", model / "hf", file)
    assert status == 0 and "tensors read" in out[1] and str(file) in out[-1]
    session = onnxruntime.InferenceSession(file)
    assert session.get_outputs()[0].name == "logits"
    assert "vocabulary" in session.get_modelmeta().custom_metadata_map
    status, _, err = run(capsys, "export", model / "asr", file)
    assert status == 2 and len(err) == 1

    exported = []
    monkeypatch.setattr(
        "w2v_plugin.onnx_export.export_onnx",
        lambda model, path, vocabulary: exported.append((type(model), vocabulary is not None)),
    )
    quantizer = GumbelQuantizer(8, groups=2, codes=4, dim=8)
    tiny = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    pretraining = Wav2Vec2Pretraining(tiny, quantizer, dim=8)
    export_hf(pretraining, tmp_path / "pretraining")
    for source in (model / "asr", model / "pretrained", tmp_path / "pretraining"):
        assert run(capsys, "export", source, file)[0] == 0
    assert exported == [(Wav2Vec2CTC, True), (Wav2Vec2, False), (Wav2Vec2, False)]


def units(capsys, model, *arguments):
    """`w2v units` on the CPU in float32."""
    return run(capsys, "units", *arguments, "--model", model, *FP32)


def test_units_of_every_kind(capsys, model, sounds):
    """Joint, of a group, of k-means; as a text, as JSON, with equal neighbors as one."""
    path = sounds[1][0]
    found = Wav2Vec2Units.from_hparams(source=model / "units", run_opts=CPU)
    codes = found.encode_file(path)
    joint = 20 * codes[:, 0] + codes[:, 1]
    kmeans = KMeans(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), layer=1)
    kmeans.save(model / "k.safetensors")
    found.use(kmeans)
    clusters = found.encode_file(path)[:, 0]
    cases = {(): joint, ("--group", "joint"): joint, ("--group", "1"): codes[:, 1]}
    cases[("--kmeans", model / "k.safetensors")] = clusters
    for options, expected in cases.items():
        status, out, err = units(capsys, model / "units", path, *options)
        assert (status, out) == (0, [" ".join(map(str, expected))])
        assert f" used in {len(codes)} frames; 50/s x " in err[-1]
        status, out, _ = units(capsys, model / "units", path, *options, "--format", "json")
        record = {"path": str(path), "duration": 0.485, "units": expected.tolist()}
        assert (status, json.loads(out[0])) == (0, record)
        short = ("--dedup", "--format", "json")
        record = json.loads(units(capsys, model / "units", path, *options, *short)[1][0])
        assert np.repeat(record["units"], record["durations"]).tolist() == expected.tolist()
    status, out, err = units(capsys, model / "units", sounds[0], "--dedup")
    assert [line.split("\t")[0] for line in out] == sorted(map(str, sounds[1]))
    pairs = [pair.split(":") for pair in out[1].split("\t")[1].split()]
    assert [int(unit) for unit, n in pairs for _ in range(int(n))] == joint.tolist()
    assert err[-3].startswith("w2v: group 0: ") and " of 20 codes used, " in err[-2]


def test_units_are_resumed(capsys, model, many, tmp_path):
    """To the bytes and the counts of an unbroken run; other units are refused."""
    out = tmp_path / "out"
    command = (model / "units", many, "--dedup", "--out", out, "--batch-s", "1")
    status, _, err = units(capsys, *command)
    whole = out.read_bytes()
    assert status == 1 and len(whole.splitlines()) == 6 and "1.wav: cannot" in err[1]
    counts = err[-3:]
    for part in (0.3, 0.8, 1.0):
        out.write_bytes(whole[: round(part * len(whole))])
        status, lines, err = units(capsys, *command, "--resume")
        assert (status, lines, err[-3:]) == (1, [], counts) and out.read_bytes() == whole
    assert "of them done before" in err[-4]
    refused = units(capsys, *command, "--resume", "--group", "0")
    assert refused[0] == 2 and "with another --model, --group" in refused[2][-1]
    refused = units(capsys, *command[:2], "--out", out, "--resume")
    assert refused[0] == 2 and "with --dedup as before?" in refused[2][-1]
    assert out.read_bytes() == whole


def test_units_that_there_are_not(capsys, model, sounds, tmp_path):
    """One line, before anything is written."""
    path, out = sounds[1][0], tmp_path / "out"
    (tmp_path / "other").write_text("no clusters")
    KMeans(torch.zeros(3, 9), 1).save(tmp_path / "narrow")
    cases = {
        (model / "asr",): "this model has no quantizer",
        (model / "units", "--group", "2"): "there are 2 groups",
        (model / "units", "--kmeans", tmp_path / "gone"): "no such file",
        (model / "units", "--kmeans", tmp_path / "other"): "no k-means of ours",
        (model / "units", "--kmeans", tmp_path / "narrow"): "this model has 2 layers, 32 wide",
        (model / "units", "--compile"): "--compile",
        (tmp_path / "nowhere",): "no such folder",
    }
    for (source, *options), message in cases.items():
        status, lines, err = units(capsys, source, path, "--out", out, *options)
        assert (status, lines) == (2, []) and message in err[-1], err
        assert not out.exists()
    status, _, err = units(capsys, model / "units", path, "--group", "both")
    assert status == 2 and "a number or joint" in err[-1]


def test_what_cannot_start_is_one_line_and_status_2(capsys, model, sounds, tmp_path, monkeypatch):
    """No model, no head, no such layer, no such device, an empty folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path, out = sounds[1][0], tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "hyperparams.yaml").write_text("x: [")
    (tmp_path / "old" / "hyperparams.yaml").write_text("x: !new:w2v_plugin.gone.Gone\n")
    for name in ("torn", "old"):
        (tmp_path / name / "wav2vec2.ckpt").touch()
    ours = ("--model", model / "asr")
    cases = {
        ("transcribe", path, "--model", tmp_path / "nowhere"): "no such folder",
        ("transcribe", path, "--model", "nobody/no-such-model"): "nobody/no-such-model",
        ("transcribe", path, "--model", model / "pretrained"): "fine-tune it",
        ("transcribe", path, "--model", tmp_path / "old"): "gone",
        ("transcribe", path, "--model", tmp_path / "torn"): "while parsing",
        ("transcribe", path, *ours, "--device", "gpu"): "gpu",
        ("transcribe", path, *ours, "--device", "cuda:99"): "cannot load",
        ("transcribe", path, *ours, "--language", "fra"): "has no languages",
        ("transcribe", path, "--model", model / "hf", "--language", "fra"): "no languages",
        ("transcribe", path, *ours, "--precision", "int8", "--compile"): "int8",
        ("transcribe", path, *ours, "--alpha", "1"): "--alpha is about a language model",
        ("transcribe", path, *ours, "--lm-words", path): "--lm-words is about",
        ("transcribe", path, *ours, "--lm", tmp_path / "no.arpa"): "no.arpa",
        ("transcribe", path, *ours, "--lm", path): "not a whole ARPA file",
        ("transcribe", tmp_path / "empty", *ours): "no audio files",
        ("transcribe", path, *ours, "--resume"): "--out",
        ("align", sounds[0], "A", *ours): "expected one",
        ("embed", path, *ours, "--out", out, "--format", "parquet"): "[parquet]",
        ("convert", tmp_path / "nowhere", out): "nowhere",
        ("convert", model / "hf", out, "--language", "fra"): "language",
        ("export", tmp_path / "nowhere", out): "nowhere",
    }
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for command, message in cases.items():
        status, lines, err = run(capsys, *command)
        assert (status, lines, len(err)) == (2, [], 1), (command, err)
        assert err[0].startswith("w2v: error: ") and message in err[0], (command, err)
        assert not out.exists()


def test_what_does_not_fit_the_model_is_said_after_loading(capsys, model, sounds, tmp_path):
    """Before anything is written."""
    path, out = sounds[1][0], tmp_path / "out"
    cases = {
        ("embed", "--layer", "3"): "has 2 layers",
        ("embed", "--layer", "0,7"): "has 2 layers",
        ("embed", "--layer-weights", "1,2"): "Give 3 weights",
        ("transcribe", "--hot-words", "ജ"): "outside the vocabulary",
    }
    for (command, *options), message in cases.items():
        arguments = (command, path, "--model", model / "asr", *FP32, "--out", out, *options)
        status, lines, err = run(capsys, *arguments)
        assert (status, lines, err[:-1]) == (2, [], [CHOICE]) and message in err[-1]
        assert not out.exists()


WRONG = (
    "--layer=x --layer=1, --layer-weights=a --pool=max --beam=1.5 --n-best=0 --threads=0 "
    "--batch-s=0 --window-s=nan --precision=fp8 --format=doc"
)


@pytest.mark.parametrize("options", WRONG.split())
def test_wrong_options_are_refused(capsys, options):
    """By name, without a traceback and without the model."""
    for command in ("transcribe", "embed"):
        status, out, err = run(capsys, command, "a.wav", "--model", "m", "--out", "o", options)
        assert (status, out) == (2, [])
        assert options.split("=")[0] in err[-1]


def test_out_of_memory_is_explained(capsys, model, sounds, monkeypatch):
    """Other errors of our own keep their traceback."""

    def transcripts(*arguments, **options):
        raise RuntimeError(message)

    monkeypatch.setattr(Wav2Vec2ASR, "transcripts", transcripts)
    message = "[enforce fail] DefaultCPUAllocator: can't allocate memory"
    status, _, err = transcribe(capsys, model / "asr", sounds[0])
    assert status == 2 and "smaller --batch-s" in err[-1]
    message = "a mistake"
    with pytest.raises(RuntimeError, match="a mistake"):
        transcribe(capsys, model / "asr", sounds[0])


def test_a_bar_on_a_terminal(capsys, model, sounds, monkeypatch):
    """Files, audio and speed; gone at the end."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    main(["transcribe", str(sounds[0]), "--model", str(model / "asr"), *FP32])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert re.search(r"[12]/3 files .* < .* s audio, .* x real time", err)


def test_help_teaches_and_version_is_ours(capsys):
    """Examples for every command; the version of the package."""
    assert run(capsys, "--version")[:2] == (0, [f"w2v {__version__}"])
    for command in ("transcribe", "align", "embed", "units", "convert", "export"):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0 and f"examples:\n  w2v {command} " in "\n".join(out)
        assert max(map(len, out)) <= 100
    assert run(capsys)[0] == 2


def test_the_program_is_quiet_and_survives_a_closed_pipe(model, sounds):
    """As a process: no log lines from SpeechBrain, no traceback when the reader leaves."""
    command = [sys.executable, "-m", "w2v_plugin.cli", "transcribe", str(sounds[0])]
    command += ["--model", str(model / "asr"), *FP32]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    assert done.stderr.splitlines()[0] == CHOICE and len(done.stderr.splitlines()) == 2
    read, write = os.pipe()
    os.close(read)
    left = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(write)
    assert (left.returncode, left.stderr.splitlines()) == (1, [CHOICE])


def test_help_does_not_import_torch():
    """The package and its command line start at once."""
    code = (
        "import sys, w2v_plugin.cli as cli; cli.parser(); "
        "sys.exit(sorted({'torch', 'speechbrain', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
