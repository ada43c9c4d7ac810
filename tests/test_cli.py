"""`w2v`: results on stdout, errors on stderr, exit status 0, 1 or 2, never a traceback."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from w2v_plugin import Wav2Vec2, Wav2Vec2ASR, Wav2Vec2CTC, Wav2Vec2Encoder, __version__, export_hf
from w2v_plugin.cli import main
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.text import CharVocabulary

CPU = {"device": "cpu"}


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
    layer = Wav2Vec2(**shape, positions_kernel=16, extractor_norm="layer", conv_bias=True)
    save_asr(folder / "layer", Wav2Vec2CTC(layer, head=ctc.head), CharVocabulary())
    export_hf(ctc, folder / "hf")
    (folder / "hf" / "vocab.json").write_text(json.dumps(CharVocabulary().lab2ind))
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


def run(capsys, *arguments):
    """Exit status, lines of stdout, lines of stderr."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as error:  # argparse
        status = error.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_one_file_gives_its_text_alone(capsys, model, sounds):
    """From a folder of ours and from a transformers folder, which are the same model here."""
    path = sounds[1][0]
    asr = Wav2Vec2ASR.from_hparams(source=model / "asr", run_opts=CPU)
    for source in ("asr", "hf"):
        got = run(capsys, "transcribe", path, "--model", model / source, "--device", "cpu")
        assert got == (0, [asr.transcribe_file(path)], [])


def test_files_and_folders_keep_their_order(capsys, model, sounds):
    """Files as given, folders sorted; text files in a folder are none of our business."""
    folder, (b, a, sub) = sounds
    status, out, err = run(capsys, "transcribe", sub, folder, "--model", model / "asr")
    assert [line.split("\t")[0] for line in out] == [str(p) for p in (sub, a, b, sub)]
    assert out[0] == out[3] and all(line.split("\t")[1] for line in out)
    assert (status, err) == (0, [])


def test_json_lines(capsys, model, sounds):
    """Every line is an object, a single file's too."""
    asr = Wav2Vec2ASR.from_hparams(source=model / "asr", run_opts=CPU)
    _, out, _ = run(capsys, "transcribe", sounds[1][0], "--model", model / "asr", "--json")
    text = asr.transcribe_file(sounds[1][0])
    assert [json.loads(line) for line in out] == [{"path": str(sounds[1][0]), "text": text}]


def test_chunks(capsys, model, sounds):
    """A chunk of a minute is no restriction, one of a frame is; group norm refuses."""
    refused = run(capsys, "transcribe", sounds[1][0], "--model", model / "hf", "--chunk-ms", "640")
    assert refused[0] == 2 and "extractor_norm='layer'" in refused[2][-1]
    command = ("transcribe", sounds[1][0], "--model", model / "layer")
    whole = run(capsys, *command)
    assert run(capsys, *command, "--chunk-ms", "60000") == whole
    assert run(capsys, *command, "--chunk-ms", "20") != whole
    for wrong in ("30", "0", "-20", "x"):
        status, _, err = run(capsys, *command, f"--chunk-ms={wrong}")
        assert status == 2 and "a multiple of 20" in err[-1]


def test_a_bad_file_does_not_stop_the_others(capsys, model, sounds, tmp_path):
    """One line of error each; the rest is transcribed; exit status 1."""
    _, (b, a, sub) = sounds
    (tmp_path / "text.wav").write_text("not audio")
    files = (b, tmp_path / "text.wav", a, tmp_path / "missing.wav", sub)
    status, out, err = run(capsys, "transcribe", *files, "--model", model / "asr")
    assert status == 1 and [line.split("\t")[0] for line in out] == [str(p) for p in (b, a, sub)]
    assert len(err) == 3 and "text.wav: cannot be decoded" in err[0]
    assert "missing.wav: no such file" in err[1] and "2 of 5 files" in err[2]
    out_folder = tmp_path / "vectors"
    embedded = run(capsys, "embed", *files[:3], "--model", model / "asr", "--out", out_folder)
    assert embedded[0] == 1 and len(embedded[1]) == 2 and "text.wav" in embedded[2][0]
    assert sorted(p.name for p in out_folder.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("kind", ["pretrained", "asr", "hf"])
def test_embed_writes_what_the_encoder_gives(capsys, model, sounds, tmp_path, kind):
    """One .npy per file, with the structure of the folder."""
    folder, (b, a, sub) = sounds
    command = ("embed", folder, "--model", model / kind, "--out", tmp_path / "out", "--layer", "1")
    status, out, err = run(capsys, *command)
    names = ("a.npy", "b.npy", "sub/a.npy")
    assert out == [
        f"{path}\t{tmp_path / 'out' / name}" for path, name in zip((a, b, sub), names, strict=True)
    ]
    encoder = Wav2Vec2Encoder.from_hparams(source=model / "asr", run_opts=CPU)
    vectors = np.load(tmp_path / "out" / "sub" / "a.npy")
    assert np.allclose(vectors, encoder.encode_file(sub, layer=1).numpy(), atol=1e-6)
    run(capsys, *command, "--pool", "mean")
    assert np.load(tmp_path / "out" / "sub" / "a.npy").shape == (32,)
    assert (status, err) == (0, [])


def test_results_never_overwrite_each_other(capsys, model, sounds, tmp_path):
    """Two files of one name: refused before any work."""
    _, (_, a, sub) = sounds
    command = ("embed", a, sub, "--model", model / "asr", "--out", tmp_path / "out")
    status, out, err = run(capsys, *command)
    assert (status, out, len(err)) == (2, [], 1)
    assert "would both be written" in err[0] and not (tmp_path / "out").exists()


def test_what_cannot_start_is_one_line_and_status_2(capsys, model, sounds, tmp_path, monkeypatch):
    """No model, no head, no such layer, no such device, an empty folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path, out = sounds[1][0], tmp_path / "out"
    (tmp_path / "empty").mkdir()
    cases = {
        ("transcribe", path, "--model", tmp_path / "nowhere"): "no such folder",
        ("transcribe", path, "--model", "nobody/no-such-model"): "nobody/no-such-model",
        ("transcribe", path, "--model", model / "pretrained"): "fine-tune it",
        ("transcribe", path, "--model", model / "asr", "--device", "gpu"): "gpu",
        ("transcribe", path, "--model", model / "asr", "--device", "cuda:99"): "cannot load",
        ("transcribe", tmp_path / "empty", "--model", model / "asr"): "no audio files",
        ("embed", path, "--model", model / "asr", "--out", out, "--layer", "3"): "layers 0 to 2",
    }
    for command, message in cases.items():
        status, lines, err = run(capsys, *command)
        assert (status, lines, len(err)) == (2, [], 1), (command, err)
        assert message in err[0]


def test_help_teaches_and_version_is_ours(capsys):
    """Examples for both commands; the version of the package."""
    assert run(capsys, "--version")[:2] == (0, [f"w2v {__version__}"])
    for command in ("transcribe", "embed"):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0 and f"  w2v {command} talk.wav --model" in "\n".join(out)
    assert run(capsys)[0] == 2


def test_the_program_is_quiet_and_survives_a_closed_pipe(model, sounds):
    """As a process: no log lines from SpeechBrain, no traceback when the reader leaves."""
    command = [sys.executable, "-m", "w2v_plugin.cli", "transcribe", str(sounds[0])]
    command += ["--model", str(model / "asr")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 3)
    read, write = os.pipe()
    os.close(read)
    left = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(write)
    assert (left.returncode, left.stderr) == (1, b"")


def test_help_does_not_import_torch():
    """The package and its command line start at once."""
    code = (
        "import sys, w2v_plugin.cli as cli; cli.parser(); "
        "sys.exit(sorted({'torch', 'speechbrain', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
