"""`w2v new-language`: from a folder of recordings to a trained model, step by step."""

import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from w2v_plugin.cli import main
from w2v_plugin.folders import save_pretrained
from w2v_plugin.interfaces import Wav2Vec2ASR
from w2v_plugin.manifests import read_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.new_language import filled, hparams_folder, settings

HERTZ = {"a": 300, "ß": 700, "ü": 1500, " ": 0}
WORDS = ("aß", "ßü", "üa", "aüß")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four speakers, twelve utterances each: a tone for each letter; texts beside the audio."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    for speaker in range(4):
        (folder / f"s{speaker}").mkdir()
        for i in range(12):
            words = [WORDS[(i + j * speaker) % 4] for j in range(2)]
            tones = [HERTZ[letter] * (1 + 0.02 * speaker) for letter in " ".join(words)]
            time = torch.arange(3200) / 16000
            wav = torch.cat([torch.sin(2 * torch.pi * hertz * time) for hertz in tones])
            wav = 0.3 * wav + 0.01 * torch.randn(len(wav), generator=generator)
            soundfile.write(folder / f"s{speaker}" / f"u{speaker}_{i}.wav", wav.numpy(), 16000)
            text = f"{words[0]}, {words[1]}!".replace("a", "A")
            (folder / f"s{speaker}" / f"u{speaker}_{i}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    folder = tmp_path_factory.mktemp("pretrained")
    options = {"extractor_norm": "layer", "conv_bias": True, "norm_first": True}
    save_pretrained(folder, Wav2Vec2(**shape, **options, positions_kernel=8, positions_groups=4))
    return folder


def call(recordings: Path, pretrained: Path, out: Path, *more: str) -> int:
    split = ["--dev", "0.25", "--test", "0.25"]
    where = [f"--audio={recordings}", f"--pretrained={pretrained}", f"--out={out}"]
    return main(["new-language", *where, *split, *more])


def test_from_recordings_to_a_model(
    recordings: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared, edited as a user would, trained with --run, and used."""
    out = tmp_path / "new"
    assert call(recordings, pretrained, out) == 0
    told = capsys.readouterr().out
    assert "48 utterances" in told and "Split by speaker: 24 train, 12 dev, 12 test" in told
    speakers = [
        {row["spk_id"] for row in read_manifest(out / "data" / f"{name}.csv")}
        for name in ("train", "dev", "test")
    ]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 4
    texts = {row["wrd"] for row in read_manifest(out / "data" / "train.csv")}
    assert texts <= {f"{a} {b}" for a in WORDS for b in WORDS}
    vocabulary = json.loads((out / "data" / "vocab.json").read_text(encoding="utf-8"))
    assert {"a", "ß", "ü", "|", "<pad>"} <= set(vocabulary) and "A" not in vocabulary
    assert f"python -m w2v_plugin.transfer {out / 'train.yaml'}" in told
    capsys.readouterr()

    assert call(recordings, pretrained, out) == 2  # would write over what may have been edited
    assert "is there already" in capsys.readouterr().err

    config = out / "train.yaml"
    shorter = {"updates": 4, "valid_every": 2, "log_every": 1, "batch_s": 4.0}
    config.write_text(filled(config.read_text(encoding="utf-8"), shorter), encoding="utf-8")
    prepared = (out / "data" / "train.csv").stat().st_mtime_ns
    assert call(recordings, pretrained, out, "--run", "--device=cpu") == 0
    assert (out / "data" / "train.csv").stat().st_mtime_ns == prepared
    told = capsys.readouterr().out
    assert re.search(r"test +WER", told) and f"--model {out / 'model'}" in told
    asr = Wav2Vec2ASR.from_hparams(source=str(out / "model"))
    assert set(asr.transcribe_file(recordings / "s0" / "u0_0.wav")) <= set("aßü ")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--map", "é"], "expected OLD=NEW"),
        (["--audio", "nowhere"], "nowhere"),
        (["--pretrained", "nowhere"], "nowhere"),
        (["--dev", "1.5"], "1.5"),
        (["--dev", "0"], "picks the best model"),
        (["--dev", "nan"], "must be above 0"),
        (["--adapters", "mms"], "go together"),
        (["--language", "deu"], "go together"),
        (["--adapters=mms", "--language=deu", "--units=bpe"], "--units characters"),
        (["--out", __file__], "a file"),
        (["--min-count", "99"], "--min-count"),
        (["--text-column", "said", "--text", __file__], "no column 'said'"),
        (["--encoding", "klingon"], "knows no such encoding"),
    ],
)
def test_what_cannot_be_prepared_is_told_and_leaves_no_configuration(
    recordings: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    assert call(recordings, pretrained, tmp_path / "new", *options) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1
    assert not (tmp_path / "new" / "train.yaml").exists()


def test_no_audio_is_decoded_for_a_model_that_is_none(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checking hours of audio takes long; the name of the model is checked before it."""
    assert call(recordings, Path(__file__), tmp_path / "new") == 2
    told = capsys.readouterr()
    assert f"--pretrained {__file__}" in told.err and not told.out
    assert not (tmp_path / "new").exists()


def test_preparing_anew_leaves_nothing_of_before(
    recordings: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test set of another split has what is trained on now; a checkpoint speaks other letters."""
    out = tmp_path / "new"
    assert call(recordings, pretrained, out) == 0
    assert call(recordings, pretrained, out) == 2
    assert f"or remove all of {out}" in capsys.readouterr().err
    (out / "train.yaml").unlink()
    assert call(recordings, pretrained, out, "--test=0") == 0
    assert not [*out.glob("*/test.*")] and (out / "data" / "dev.csv").exists()
    (out / "train.yaml").unlink()
    (out / "save").mkdir()
    capsys.readouterr()
    assert call(recordings, pretrained, out) == 2
    assert f"{out / 'save'} is there, of a training with another" in capsys.readouterr().err


def test_what_is_too_short_to_train_with_is_left_out(
    recordings: Path, pretrained: Path, tmp_path: Path
) -> None:
    """And not refused by the training."""
    copies = tmp_path / "copies"
    shutil.copytree(recordings, copies)
    soundfile.write(copies / "s1" / "short.wav", [0.1, -0.1] * 400, 16000)
    (copies / "s1" / "short.txt").write_text("ß", encoding="utf-8")
    assert call(copies, pretrained, tmp_path / "new") == 0
    skipped = [path.read_text() for path in (tmp_path / "new" / "raw").glob("*.skipped.tsv")]
    assert len(skipped) == 1 and "0.05 s long, the shortest accepted is 0.1 s" in skipped[0]


def test_what_is_too_long_is_no_test_set(
    recordings: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of what a speaker said may be left out; the sizes are those of the others."""
    copies = tmp_path / "copies"
    shutil.copytree(recordings, copies)
    (copies / "s9").mkdir()
    soundfile.write(copies / "s9" / "long.wav", [0.1, -0.1] * 8000 * 22, 16000)
    (copies / "s9" / "long.txt").write_text("ß", encoding="utf-8")
    assert call(copies, pretrained, tmp_path / "new") == 0
    assert "Split by speaker: 25 train, 12 dev, 12 test." in capsys.readouterr().out
    skipped = (tmp_path / "new" / "raw" / "train.skipped.tsv").read_text()
    assert "22.00 s long, the longest accepted is 20 s" in skipped


def test_the_same_recording_in_two_parts_is_told(
    recordings: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied under another speaker; speakers and texts differ, so nothing else tells."""
    copies = tmp_path / "copies"
    shutil.copytree(recordings, copies)
    for speaker in range(1, 4):
        shutil.copy(copies / "s0" / "u0_0.wav", copies / f"s{speaker}" / f"u{speaker}_0.wav")
    assert call(copies, pretrained, tmp_path / "new", "--test=0", "--max-s=9.5") == 0
    told = capsys.readouterr().out
    assert re.search(r"   warning: \d recordings? of train.csv: \S+ same audio as dev.csv", told)
    text = (tmp_path / "new" / "train.yaml").read_text(encoding="utf-8")
    assert "\nmax_s: 9.5 #" in text and "\ntest_csvs: {} #" in text


def test_other_options_are_not_ignored(
    recordings: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data are there, prepared with those of before; nothing is trained with half of them."""
    assert call(recordings, pretrained, tmp_path / "new") == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    more = ("--adapters=mms", "--language=deu", "--run")
    assert call(recordings, pretrained, tmp_path / "new", *more) == 2
    error = capsys.readouterr().err
    assert "--adapters None, now mms; --language None, now deu" in error and "--out" in error
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--adapters=mms", "--language=de,u"), "language='de,u', expected letters"),
        (("--max-s=nan",), "--max-s nan: expected seconds"),
    ],
)
def test_options_are_looked_at_before_the_audio(
    options: tuple[str, ...],
    message: str,
    recordings: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(recordings, pretrained, tmp_path / "new", *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_interrupted_training_says_how_to_go_on(
    recordings: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call(recordings, pretrained, tmp_path / "new") == 0

    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("w2v_plugin.transfer.run", interrupted)
    assert call(recordings, pretrained, tmp_path / "new", "--run", "--device=cpu") == 130
    assert "same command goes on" in capsys.readouterr().err
    assert call(recordings, pretrained, tmp_path / "new", "--run", "--device=gpu0") == 2
    assert "--device gpu0" in capsys.readouterr().err


def test_settings_grow_with_the_hours() -> None:
    updates = [settings(hours, 2_000_000)["updates"] for hours in (0.05, 0.25, 1, 4, 100)]
    assert updates == [1500, 3000, 6000, 12000, 60000]
    large = [settings(hours, 95_000_000) for hours in (0.2, 10, 100)]
    assert [some["updates"] for some in large] == [13000, 20000, 50000]
    assert all(some["freeze_encoder_updates"] == some["updates"] // 10 for some in large)


@pytest.mark.parametrize("value", ["a b", "#5", "null", "C:\\x", "ü'\"", "!ref <x>"])
def test_filled_survives_any_name(value: str) -> None:
    text = filled("a: !PLACEHOLDER # why\nb: 1\n", {"a": value})
    assert yaml.safe_load(text) == {"a": value, "b": 1} and text.endswith("# why\nb: 1\n")


def test_filled_refuses_a_key_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="c: 0 lines"):
        filled("a: 1\nb:\n  c: 2\n", {"c": 3})


def test_the_configurations_have_all_that_is_set() -> None:
    for name in ("tiny", "base"):
        text = (hparams_folder() / "transfer" / f"{name}.yaml").read_text(encoding="utf-8")
        keys = ("pretrained", "train_csv", "valid_csv", "test_csvs", "output_folder", "vocab")
        more = dict.fromkeys((*keys, "adapters", "language"), "x")
        filled(text, more | settings(1.0, 1) | settings(1.0, 10**9))
