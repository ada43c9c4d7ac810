"""Published corpora in their exact layouts, built small."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from w2v_plugin.manifests import flagged_path, read_manifest, skipped_path

ROOT = Path(__file__).resolve().parents[1]
SEEDS = iter(range(10**6))


def script(name: str) -> ModuleType:
    """Load recipes/prepare/<name>.py; recipes are scripts and no package."""
    path = ROOT / "recipes" / "prepare" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"layout_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sound(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    """Quiet noise in a new file, other noise each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(next(SEEDS)).normal(0, 0.05, round(seconds * rate))
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, noise, rate, **kind)
    return path


def write(path: Path, lines: list[str]) -> Path:
    """Lines of a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(name: str, *arguments: object) -> int:
    """The exit code of a script."""
    return script(name).main([str(argument) for argument in arguments])


def texts(path: Path) -> dict[str, str]:
    """ID -> transcript."""
    return {row["ID"]: row["wrd"] for row in read_manifest(path)}


# --- LibriSpeech and Libri-light -------------------------------------------------------------


def chapter(folder: Path, speaker: str, book: str, count: int) -> None:
    """One chapter of LibriSpeech."""
    names = [f"{speaker}-{book}-{n:04d}" for n in range(count)]
    for name in names:
        sound(folder / speaker / book / f"{name}.flac")
    lines = [f"{name} WORDS OF {name}" for name in names]
    write(folder / speaker / book / f"{speaker}-{book}.trans.txt", lines)


def test_librispeech_all_splits_at_once(tmp_path: Path, capsys) -> None:
    """A manifest and a card for each that is there; other folders are left alone."""
    for split, speaker in (("train-clean-100", "19"), ("dev-clean", "26"), ("mine", "3")):
        chapter(tmp_path / "LibriSpeech" / split, speaker, "7", 2)
    data = ("--data", tmp_path / "LibriSpeech")
    assert run("librispeech", *data, "--split", "all", "--out", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        *("dev-clean.card.md", "dev-clean.card.png", "dev-clean.csv"),
        *("train-clean-100.card.md", "train-clean-100.card.png", "train-clean-100.csv"),
    ]
    assert run("librispeech", *data, "--split", "all", "--out", tmp_path / "all.csv") == 0
    assert len(read_manifest(tmp_path / "all.csv")) == 4
    assert run("librispeech", "--data", tmp_path, "--split", "all", "--out", tmp_path) == 2
    assert "holds none of train-clean-5" in capsys.readouterr().err


def test_libri_light_labels(tmp_path: Path, capsys) -> None:
    """10 minutes are 1h/0, an hour all of 1h, ten hours 9h as well."""
    root = tmp_path / "librispeech_finetuning"
    for number in range(6):
        for kind in ("clean", "other"):
            chapter(root / "1h" / str(number) / kind, f"{number}{kind[0]}", "1", 1)
    chapter(root / "9h" / "clean", "90", "1", 2)
    chapter(root / "9h" / "other", "91", "1", 1)
    module, counts = script("librispeech"), {}
    for size in ("10min", "1h", "10h"):
        counts[size] = len(module.list_labels(root, size))
    assert counts == {"10min": 2, "1h": 12, "10h": 15}
    where = ("--data", root, "--labels", "10min", "--out", tmp_path / "m.csv")
    assert run("librispeech", *where) == 0
    assert texts(tmp_path / "m.csv")["0c-1-0000"] == "WORDS OF 0c-1-0000"
    assert run("librispeech", "--data", tmp_path, *where[2:]) == 2
    assert "librispeech_finetuning of Libri-light" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", [0, -1, "nan"])
def test_librispeech_minutes_are_more_than_none(minutes, tmp_path: Path, capsys) -> None:
    chapter(tmp_path / "train-clean-5", "19", "7", 2)
    where = ("--data", tmp_path, "--split", "train-clean-5", "--out", tmp_path / "m.csv")
    assert run("librispeech", *where, "--minutes", minutes) == 2
    assert f"--minutes {minutes}: expected more than 0" in capsys.readouterr().err
    assert not (tmp_path / "m.csv").exists()


# --- Common Voice ----------------------------------------------------------------------------

CV = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender"
CV += "\taccents\tvariant\tlocale\tsegment"
CV_OLD = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"


@pytest.fixture
def common_voice(tmp_path: Path) -> Path:
    """A release with every tsv, in which voices of dev and test were validated, too."""
    root = tmp_path / "cv-corpus-17.0-2024-03-15" / "de"
    said = {
        "1": ("ann", '"""Nein"", sagte er."', 2, 0),
        "2": ("bob", "Guten Tag", 2, 1),
        "3": ("cat", "Wörter\u2028und mehr", 5, 0),
        "4": ("ann", "Wer?", 1, 0),
    }
    rows = {}
    for name, (client, sentence, up, down) in said.items():
        clip = f"common_voice_de_{name}.mp3"
        sound(root / "clips" / clip, rate=48_000)
        rows[name] = f"{client}\t{clip}\tabc\t{sentence}\t\t{up}\t{down}\t\t\t\t\tde\t"
    for split, names in {"train": "14", "dev": "2", "test": "3", "validated": "1234"}.items():
        write(root / f"{split}.tsv", [CV, *(rows[name] for name in names)])
    lengths = [f"common_voice_de_{name}.mp3\t{540 if name != '2' else 5400}" for name in said]
    write(root / "clip_durations.tsv", ["clip\tduration[ms]", *lengths])
    write(root / "validated_sentences.tsv", ["sentence_id\tsentence\tsentence_domain"])
    return root


def test_common_voice_splits(common_voice: Path, tmp_path: Path) -> None:
    """Speakers are clients, quoting is undone, lengths are compared with the release's."""
    assert run("common_voice", "--data", common_voice, "--out", tmp_path / "out") == 0
    rows = read_manifest(tmp_path / "out" / "train.csv")
    assert [(row["ID"], row["spk_id"], row["wrd"]) for row in rows] == [
        ("common_voice_de_1", "ann", '"Nein", sagte er.'),
        ("common_voice_de_4", "ann", "Wer?"),
    ]
    assert texts(tmp_path / "out" / "test.csv") == {"common_voice_de_3": "Wörter und mehr"}
    assert "but the corpus says 5.40 s" in flagged_path(tmp_path / "out" / "dev.csv").read_text()
    assert not flagged_path(tmp_path / "out" / "train.csv").exists()


def test_common_voice_splits_without_clips(common_voice: Path, tmp_path: Path, capsys) -> None:
    """Small languages have headers only; the others are worth having, none is an error."""
    write(common_voice / "dev.tsv", [CV])
    assert run("common_voice", "--data", common_voice, "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").glob("t*.csv")} >= {"train.csv", "test.csv"}
    assert not (tmp_path / "out" / "dev.csv").exists()
    assert f"no clips are listed for {tmp_path}/out/dev.csv" in capsys.readouterr().err
    where = ("--data", common_voice, "--split", "dev", "--out", tmp_path / "m.csv")
    assert run("common_voice", *where) == 2


def test_common_voice_votes_and_voices_of_other_splits(common_voice: Path, tmp_path: Path) -> None:
    """What is left out is counted with its line."""
    out = tmp_path / "m.csv"
    where = ("--data", common_voice, "--split", "validated", "--out", out)
    assert run("common_voice", *where, "--without", "dev", "test", "--min-up", 2) == 0
    assert list(texts(out)) == ["common_voice_de_1"]
    skipped = skipped_path(out).read_text()
    for line, reason in ((3, "a voice of dev"), (4, "a voice of test"), (5, "votes: 1 up, 0 down")):
        assert f"validated.tsv:{line}\t" in skipped and reason in skipped
    assert run("common_voice", *where, "--max-down", 0) == 0
    assert "common_voice_de_2" not in texts(out)


def test_common_voice_old_releases_and_bad_folders(tmp_path: Path, capsys) -> None:
    """Clips without a suffix, a column called accent; lists of sentences are none of clips."""
    sound(tmp_path / "clips" / "abc.mp3", rate=48_000)
    write(tmp_path / "train.tsv", [CV_OLD, "ann\tabc\tHallo\t2\t0\t\t\t"])
    where = ("--data", tmp_path, "--out", tmp_path / "m.csv")
    assert run("common_voice", *where, "--split", "train") == 0
    assert texts(tmp_path / "m.csv") == {"abc": "Hallo"}
    assert run("common_voice", *where, "--split", "validated") == 2
    assert "validated.tsv: no such file" in capsys.readouterr().err
    write(tmp_path / "validated.tsv", ["sentence_id\tsentence", "1\tHallo"])
    assert run("common_voice", *where, "--split", "validated") == 2
    assert "validated.tsv:1: no column client_id, path" in capsys.readouterr().err


def test_common_voice_votes_that_are_no_numbers(common_voice: Path, tmp_path: Path) -> None:
    """A digit need not be one that numbers are written with."""
    table = common_voice / "train.tsv"
    table.write_text(table.read_text().replace("\t2\t0\t", "\t²\t0\t"))
    where = ("--data", common_voice, "--split", "train", "--out", tmp_path / "m.csv")
    assert run("common_voice", *where) == 0
    assert list(texts(tmp_path / "m.csv")) == ["common_voice_de_4"]
    skipped = skipped_path(tmp_path / "m.csv").read_text()
    assert f"{table}:2\t" in skipped and "votes are no numbers: '²' up, '0' down" in skipped


def test_common_voice_in_another_encoding(common_voice: Path, tmp_path: Path, capsys) -> None:
    """The message does not send anybody to an option that this script lacks."""
    table = common_voice / "train.tsv"
    table.write_text(table.read_text(), encoding="utf-16")
    where = ("--data", common_voice, "--split", "train", "--out", tmp_path / "m.csv")
    assert run("common_voice", *where) == 2
    message = capsys.readouterr().err
    assert "train.tsv:1: not utf-8 but UTF-16. Convert it to UTF-8 (iconv -f utf-16" in message
    assert "--encoding utf-16 to a command that has this option" in message


# --- FLEURS ----------------------------------------------------------------------------------


@pytest.fixture
def fleurs(tmp_path: Path) -> Path:
    """Two people read the same sentence; one line has a wrong number of samples."""
    root = tmp_path / "data" / "de_de"
    for split in ("train", "dev", "test"):
        lines = []
        for name, samples in (("111", 8000), ("222", 80_000)):
            sound(root / "audio" / split / f"{name}.wav")
            said = "Das ist's!\tdas ist's\td a s | i s t ' s |"
            lines.append(f"1654\t{name}.wav\t{said}\t{samples}\tFEMALE")
        write(root / f"{split}.tsv", lines)
    return root


def test_fleurs(fleurs: Path, tmp_path: Path) -> None:
    """No header, ids that repeat, two texts, speakers that nobody knows."""
    assert run("fleurs", "--data", fleurs, "--out", tmp_path / "out") == 0
    rows = read_manifest(tmp_path / "out" / "train.csv")
    assert [(row["ID"], row["spk_id"], row["wrd"]) for row in rows] == [
        ("1654-111", "", "Das ist's!"),
        ("1654-222", "", "Das ist's!"),
    ]
    assert "1654-222\tlength" in flagged_path(tmp_path / "out" / "train.csv").read_text()
    one = ("--split", "dev", "--text", "normalized", "--out", tmp_path / "dev.csv")
    assert run("fleurs", "--data", fleurs, *one) == 0
    assert set(texts(tmp_path / "dev.csv").values()) == {"das ist's"}


def test_fleurs_that_is_still_packed_or_damaged(fleurs: Path, tmp_path: Path, capsys) -> None:
    table = fleurs / "train.tsv"
    table.write_text(
        table.read_text()
        + "1655\t333.wav\tonly\t1\n1\t1.wav\ta\tb\tc\tFEMALE\t9\n"
        + "2\t2.wav\ta\tb\tc\t²\tFEMALE\n"
    )
    where = ("--data", fleurs, "--split", "train", "--out", tmp_path / "m.csv")
    assert run("fleurs", *where) == 0
    skipped = skipped_path(tmp_path / "m.csv").read_text()
    assert f"{table}:3\t" in skipped and "4 values, but there are 7 columns" in skipped
    assert f"{table}:4\t" in skipped and "'FEMALE': are columns out of place?" in skipped
    assert f"{table}:5\t" in skipped and "'²': are columns out of place?" in skipped
    (fleurs / "audio" / "train").rename(fleurs / "audio" / "gone")
    assert run("fleurs", *where) == 2
    assert "Unpack it first: tar xzf" in capsys.readouterr().err


# --- MLS -------------------------------------------------------------------------------------


@pytest.fixture(params=[".flac", ".opus"])
def mls(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """mls_polish or mls_polish_opus, six and two utterances."""
    root = tmp_path / f"mls_polish{'_opus' if request.param == '.opus' else ''}"
    for split, count in (("train", 8), ("dev", 2)):
        lines, segments = [], []
        for number in range(count):
            name = f"12_345_{number:06d}"
            sound(root / split / "audio" / "12" / "345" / f"{name}{request.param}")
            lines.append(f"{name}\tsłowo {number}")
            segments.append(f"{name}\thttp://archive.org/book.mp3\t{number}.0\t{number}.5")
        write(root / split / "transcripts.txt", lines)
        write(root / split / "segments.txt", segments)
    limited = root / "train" / "limited_supervision"
    for number in range(6):
        write(limited / "1hr" / str(number) / "handles.txt", [f"12_345_{number:06d}"])
    write(limited / "9hr" / "handles.txt", ["12_345_000006"])
    write(root / "metainfo.txt", [" SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE"])
    return root


def test_mls(mls: Path, tmp_path: Path) -> None:
    """Names lead to the audio, whichever download it is; segments tell lengths."""
    where = ("--data", mls, "--split", "train", "dev", "--out", tmp_path / "out")
    assert run("mls", *where) == 0
    rows = read_manifest(tmp_path / "out" / "train.csv")
    assert len(rows) == 8 and (rows[3]["spk_id"], rows[3]["wrd"]) == ("12", "słowo 3")
    assert not flagged_path(tmp_path / "out" / "train.csv").exists()


def test_mls_of_both_downloads_in_one_folder(mls: Path) -> None:
    sound(mls / "train" / "audio" / "12" / "345" / "12_345_000090.flac")
    sound(mls / "train" / "audio" / "12" / "345" / "12_345_000091.opus")
    table = mls / "train" / "transcripts.txt"
    table.write_text(table.read_text() + "12_345_000090\tnowe\n12_345_000091\tnowe\n")
    *others, flac, opus = script("mls").list_split(mls, "train")
    assert (flac.wav.suffix, opus.wav.suffix) == (".flac", ".opus")
    assert all(each.wav.is_file() for each in (*others, flac, opus))


@pytest.mark.parametrize(("size", "count"), [("10min", 1), ("1h", 6), ("9h", 1), ("10h", 7)])
def test_mls_limited_supervision(mls: Path, size: str, count: int) -> None:
    assert len(script("mls").list_split(mls, "train", size)) == count


def test_mls_damage(mls: Path, tmp_path: Path, capsys) -> None:
    table = mls / "train" / "transcripts.txt"
    table.write_text(table.read_text() + "nonsense\n12_345_000099\tgone\n", encoding="utf-8")
    where = ("--data", mls, "--split", "train", "--out", tmp_path / "m.csv")
    assert run("mls", *where) == 0
    skipped = skipped_path(tmp_path / "m.csv").read_text()
    assert f"{table}:9\t" in skipped and "expected 'speaker_book_number TAB text'" in skipped
    assert f"{table}:10\t" in skipped and "no such file" in skipped
    write(mls / "train" / "limited_supervision" / "9hr" / "handles.txt", ["7_7_7"])
    assert run("mls", *where, "--limited", "9h") == 2
    assert "handles.txt:1: '7_7_7' is not in transcripts.txt" in capsys.readouterr().err


# --- VoxPopuli -------------------------------------------------------------------------------


@pytest.fixture
def voxpopuli(tmp_path: Path) -> Path:
    """What get_asr_data and get_unlabelled_data write."""
    root = tmp_path / "voxpopuli"
    folder = root / "transcribed_data" / "de"
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender"
    for split, event in (("train", "20120116-0900-PLENARY-5-de_1"), ("dev", "20090114-0900-de_2")):
        sound(folder / event[:4] / f"{event}.ogg")
        line = f'{event}\tSagte "Ja".\tsagte ja\t{"None" if split == "dev" else 96}\t{split}\tmale'
        write(folder / f"asr_{split}.tsv", [header, line])
    sound(root / "unlabelled_data" / "de" / "2010" / "20100101-0900-PLENARY-1_de_0.ogg")
    return root


def test_voxpopuli(voxpopuli: Path, tmp_path: Path, capsys) -> None:
    where = ("--data", voxpopuli, "--language", "de")
    assert run("voxpopuli", *where, "--split", "train", "dev", "--out", tmp_path / "out") == 0
    (row,) = read_manifest(tmp_path / "out" / "train.csv")
    assert (row["ID"], row["spk_id"], row["wrd"]) == (
        *("20120116-0900-PLENARY-5-de_1", "96", "sagte ja"),
    )
    assert read_manifest(tmp_path / "out" / "dev.csv")[0]["spk_id"] == ""
    raw = ("--split", "train", "--text", "raw", "--out", tmp_path / "raw.csv")
    assert run("voxpopuli", *where, *raw) == 0
    assert list(texts(tmp_path / "raw.csv").values()) == ['Sagte "Ja".']
    assert run("voxpopuli", *where, "--unlabelled", "--out", tmp_path / "u.csv") == 0
    assert texts(tmp_path / "u.csv") == {"20100101-0900-PLENARY-1_de_0": ""}
    assert run("voxpopuli", *where, "--split", "test", "--out", tmp_path / "t.csv") == 2
    assert "asr_test.tsv: no such file" in capsys.readouterr().err


def test_one_manifest_for_several_splits_is_refused(
    voxpopuli: Path, tmp_path: Path, capsys
) -> None:
    where = ("--data", voxpopuli, "--language", "de", "--out", tmp_path / "m.csv")
    assert run("voxpopuli", *where) == 2
    assert "one manifest, but 3 splits (train, dev, test)" in capsys.readouterr().err
