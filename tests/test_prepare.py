"""The scripts of recipes/prepare: each corpus layout, built small, and real folders where present.

Real speech is looked for in an optional local folder, `W2V_SPEECH`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from w2v_plugin.manifests import read_manifest, skipped_path

ROOT = Path(__file__).resolve().parents[1]
SPEECH = Path(os.environ.get("W2V_SPEECH", ROOT.parent / "shared" / "speech"))
needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)


def script(name: str) -> ModuleType:
    """Load recipes/prepare/<name>.py; recipes are scripts and no package."""
    path = ROOT / "recipes" / "prepare" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


librispeech, folder, commands = script("librispeech"), script("folder"), script("commands")
strings = script("strings")
SCRIPTS = ("librispeech", "folder", "commands", "common_voice", "fleurs", "mls", "voxpopuli")


def real(relative: str) -> Path:
    """A real corpus, or a skip that says what is absent."""
    if not (SPEECH / relative).exists():
        pytest.skip(f"{SPEECH / relative} is absent; W2V_SPEECH names a folder of real speech")
    return SPEECH / relative


def sound(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    """Quiet noise in a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(0, 0.05, round(seconds * rate))
    soundfile.write(path, noise, rate)
    return path


def texts(path: Path) -> dict[str, str]:
    """ID -> transcript."""
    return {row["ID"]: row["wrd"] for row in read_manifest(path)}


def run(module: ModuleType, *arguments: object) -> int:
    """The exit code of a script."""
    return module.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_teaches_with_examples(name: str, capsys) -> None:
    """--help shows commands to copy, and only options that exist."""
    module = script(name)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "examples" in shown
    assert f"python recipes/prepare/{name}.py" in shown
    known = set(re.findall(r"--[a-z][a-z-]*", module.parser().format_usage()))
    assert set(re.findall(r"(?<= )--[a-z][a-z-]*", module.EXAMPLES)) <= known


def test_scripts_run_from_any_folder(tmp_path: Path) -> None:
    """As programs, too."""
    path = ROOT / "recipes" / "prepare" / "folder.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(path), "--data", "nowhere", "--out", "m.csv"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "folder.py: nowhere: no such file or folder.\n"


# --- LibriSpeech -----------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two speakers, one chapter each, four utterances of half a second."""
    root = tmp_path / "LibriSpeech"
    for speaker, chapter in (("19", "198"), ("26", "495")):
        place = root / "train-clean-5" / speaker / chapter
        names = [f"{speaker}-{chapter}-{n:04d}" for n in range(4)]
        for name in names:
            sound(place / f"{name}.flac")
        lines = [f"{name} WORD {n}\n" for n, name in enumerate(names)]
        (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return root


def prepare(corpus: Path, out: Path, *more: object) -> int:
    """librispeech.py on the fixture."""
    return run(librispeech, "--data", corpus, "--split", "train-clean-5", "--out", out, *more)


def test_librispeech_layout_is_read(corpus: Path, tmp_path: Path) -> None:
    """Ids, speakers and transcripts come from the original layout, in a fixed order."""
    assert prepare(corpus, tmp_path / "m.csv") == 0
    rows = read_manifest(tmp_path / "m.csv")
    assert len(rows) == 8 and rows[5]["ID"] == "26-495-0001"
    assert (rows[5]["spk_id"], rows[5]["wrd"], rows[5]["duration"]) == ("26", "WORD 1", 0.5)


def test_librispeech_names_transcript_and_line_of_bad_audio(corpus: Path, tmp_path: Path) -> None:
    """Line 2 of the chapter lists a file that is gone; line 4 has no words."""
    chapter = corpus / "train-clean-5" / "19" / "198"
    (chapter / "19-198-0001.flac").unlink()
    table = chapter / "19-198.trans.txt"
    table.write_text(table.read_text().replace("19-198-0003 WORD 3", "19-198-0003"))
    assert prepare(corpus, tmp_path / "m.csv", "--need-text") == 0
    reasons = skipped_path(tmp_path / "m.csv").read_text()
    assert f"{table}:2\t" in reasons and "no such file" in reasons
    assert f"{table}:4\t" in reasons and "empty transcript" in reasons
    assert len(read_manifest(tmp_path / "m.csv")) == 6


def test_librispeech_audio_without_a_line_is_unlabelled(corpus: Path, tmp_path: Path) -> None:
    """It still serves pretraining."""
    sound(corpus / "train-clean-5" / "19" / "198" / "19-198-0009.flac")
    assert prepare(corpus, tmp_path / "m.csv") == 0
    assert texts(tmp_path / "m.csv")["19-198-0009"] == ""


def test_librispeech_duplicate_lines_are_refused(corpus: Path, tmp_path: Path, capsys) -> None:
    """Both lines are named."""
    table = corpus / "train-clean-5" / "19" / "198" / "19-198.trans.txt"
    table.write_text(table.read_text() + "19-198-0002 AGAIN\n")
    assert prepare(corpus, tmp_path / "m.csv") == 2
    message = capsys.readouterr().err
    assert f"{table}:5: id '19-198-0002' was already used at {table}:3" in message


def test_librispeech_keep_takes_ids_and_paths(corpus: Path, tmp_path: Path, capsys) -> None:
    """Unknown names are an error, because a test list must be complete."""
    keep = tmp_path / "keep.txt"
    keep.write_text("26-495-0003\ntrain-clean-5/19/198/19-198-0000.flac\n\n")
    assert prepare(corpus, tmp_path / "m.csv", "--keep", keep) == 0
    assert list(texts(tmp_path / "m.csv")) == ["19-198-0000", "26-495-0003"]
    keep.write_text("26-495-0003\n99-999-0000\n")
    assert prepare(corpus, tmp_path / "m.csv", "--keep", keep) == 2
    assert f"{keep}:2: '99-999-0000' is not in this split" in capsys.readouterr().err


def test_librispeech_minutes_are_seeded_and_balanced(corpus: Path, tmp_path: Path, capsys) -> None:
    """Two seconds of half-second clips are two clips of each of the two speakers."""
    chosen = []
    for seed in (1, 1, 2, 3, 4):
        assert prepare(corpus, tmp_path / "m.csv", "--minutes", 2 / 60, "--seed", seed) == 0
        rows = read_manifest(tmp_path / "m.csv")
        assert sorted(row["spk_id"] for row in rows) == ["19", "19", "26", "26"]
        chosen.append([row["ID"] for row in rows])
    assert chosen[0] == chosen[1] and len({tuple(ids) for ids in chosen}) > 1
    assert prepare(corpus, tmp_path / "m.csv", "--minutes", 5) == 2
    assert "only 0.1 minutes to choose from" in capsys.readouterr().err


def test_librispeech_says_which_folder_it_wants(tmp_path: Path, capsys) -> None:
    """A wrong --data or layout ends with one line and no traceback."""
    assert prepare(tmp_path, tmp_path / "m.csv") == 2
    assert "--data is the folder that holds the splits" in capsys.readouterr().err
    (tmp_path / "train-clean-5").mkdir()
    assert prepare(tmp_path, tmp_path / "m.csv") == 2
    assert "recipes/prepare/folder.py" in capsys.readouterr().err


# --- folders and tables ----------------------------------------------------------------------


def test_folder_with_sidecar_texts(tmp_path: Path) -> None:
    """a.txt is the transcript of a.flac; the folder is the speaker; audio without text stays."""
    data = tmp_path / "data"
    sound(data / "ann" / "a.flac")
    sound(data / "bob" / "b.wav", rate=44_100)
    (data / "ann" / "a.txt").write_text("Hello  there\n", encoding="utf-8")
    assert run(folder, "--data", data, "--out", tmp_path / "m.csv") == 0
    rows = read_manifest(tmp_path / "m.csv")
    seen = [(row["ID"], row["spk_id"], row["wrd"]) for row in rows]
    assert seen == [("a", "ann", "Hello there"), ("b", "bob", "")]


def test_folder_names_the_empty_text_file(tmp_path: Path) -> None:
    """A sidecar without words is left out where text is needed."""
    data = tmp_path / "data"
    for name, text in (("a", "yes"), ("b", "\n")):
        sound(data / f"{name}.wav")
        (data / f"{name}.txt").write_text(text)
    assert run(folder, "--data", data, "--out", tmp_path / "m.csv", "--need-text") == 0
    reasons = skipped_path(tmp_path / "m.csv").read_text()
    assert f"{data / 'b.txt'}:1\t{data / 'b.wav'}\tempty transcript" in reasons


def test_equal_file_names_in_two_folders_keep_apart(tmp_path: Path) -> None:
    """Ids become whole relative paths then."""
    data = tmp_path / "data"
    sound(data / "ann" / "1.wav")
    sound(data / "bob" / "1.wav")
    assert run(folder, "--data", data, "--out", tmp_path / "m.csv") == 0
    assert list(texts(tmp_path / "m.csv")) == ["ann-1", "bob-1"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four clips of four speakers in a TSV without quoting."""
    lines = ["path\tspeaker\tlanguage\ttranscript"]
    for n in range(4):
        sound(tmp_path / "t" / f"s{n}" / f"{n}.ogg")
        lines.append(f's{n}/{n}.ogg\ts{n}\ten\tsay "{n}, please')
    (tmp_path / "t" / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t" / "manifest.tsv"


def test_tsv_is_read_without_quoting(table: Path, tmp_path: Path) -> None:
    """A lone quote is a letter like any other."""
    assert run(folder, "--table", table, "--out", tmp_path / "m.csv") == 0
    assert texts(tmp_path / "m.csv")["3"] == 'say "3, please'
    assert read_manifest(tmp_path / "m.csv")[1]["spk_id"] == "s1"


def test_csv_with_other_column_names(tmp_path: Path) -> None:
    """Quoted text, another audio root, and no speaker column."""
    sound(tmp_path / "clips" / "x.wav")
    (tmp_path / "cv.csv").write_text('file,sentence\nx.wav,"well, yes"\n')
    columns = ("--audio-column", "file", "--text-column", "sentence", "--speaker-column", "")
    where = ("--table", tmp_path / "cv.csv", "--data", tmp_path / "clips")
    assert run(folder, *where, *columns, "--out", tmp_path / "m.csv") == 0
    (row,) = read_manifest(tmp_path / "m.csv")
    assert (row["wrd"], row["spk_id"]) == ("well, yes", "clips")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("who\tsays\na.wav\tyes\n", "manifest.tsv:1: no line begins with the name of a recording"),
        ("path\tspeaker\ttranscript\na.wav\tann\n", "manifest.tsv:2: 2 values"),
        ("path\tspeaker\ttranscript\n \tann\tyes\n", "manifest.tsv:2: column 'path' is empty"),
    ],
)
def test_bad_tables_are_refused_naming_the_line(
    content: str, message: str, tmp_path: Path, capsys
) -> None:
    """One line on stderr, exit code 2."""
    (tmp_path / "manifest.tsv").write_text(content)
    where = ("--table", tmp_path / "manifest.tsv")
    assert run(folder, *where, "--out", tmp_path / "m.csv") == 2
    assert message in capsys.readouterr().err


def test_table_lines_with_bad_audio_are_named(table: Path, tmp_path: Path, capsys) -> None:
    """Missing and fake audio by line; the same file twice is an error naming both lines."""
    (table.parent / "s0" / "0.ogg").unlink()
    (table.parent / "s2" / "2.ogg").write_text("no audio")
    assert run(folder, "--table", table, "--out", tmp_path / "m.csv") == 0
    reasons = skipped_path(tmp_path / "m.csv").read_text()
    assert f"{table}:2\t" in reasons and f"{table}:4\t" in reasons
    table.write_text(table.read_text() + "s3/3.ogg\ts3\ten\tagain\n")
    assert run(folder, "--table", table, "--out", tmp_path / "m.csv") == 2
    assert f"{table}:6: id '3' was already used at {table}:5" in capsys.readouterr().err


def test_split_by_speaker_shares_no_speaker(table: Path, tmp_path: Path) -> None:
    """And the same seed sets the same speakers aside."""
    train, dev = tmp_path / "train.csv", tmp_path / "dev.csv"
    arguments = ("--table", table, "--out", train, "--dev-out", dev)
    for _ in range(2):
        assert run(folder, *arguments, "--split-by-speaker", 0.25, "--seed", 3) == 0
        sides = [{row["spk_id"] for row in read_manifest(path)} for path in (train, dev)]
        assert [len(side) for side in sides] == [3, 1] and not sides[0] & sides[1]
    assert run(folder, *arguments, "--holdout", 0.5) == 0
    assert len(read_manifest(dev)) == 2 and not texts(dev).keys() & texts(train).keys()
    with pytest.raises(SystemExit):
        run(folder, "--table", table, "--out", train, "--holdout", 0.5)


def test_keep_and_drop_make_the_official_digit_split(tmp_path: Path) -> None:
    """The regular expressions of --help, on file names like the real ones."""
    for speaker in ("ann", "bob"):
        for index in (0, 4, 5, 10, 14):
            sound(tmp_path / "d" / speaker / f"7_{speaker}_{index}.flac", rate=8000)
    where = ("--data", tmp_path / "d", "--out", tmp_path / "m.csv")
    assert run(folder, *where, "--keep", r"_[0-4]\.flac$") == 0
    test = set(texts(tmp_path / "m.csv"))
    assert test == {"7_ann_0", "7_ann_4", "7_bob_0", "7_bob_4"}
    assert run(folder, *where, "--drop", r"_[0-4]\.flac$") == 0
    assert len(read_manifest(tmp_path / "m.csv")) == 6


# --- synthetic commands ----------------------------------------------------------------------

TINY = ("--train-minutes", 0.2, "--unlabelled-minutes", 0.2, "--dev-minutes", 0.1)
TINY += ("--test-minutes", 0.15, "--odd-minutes", 0.15)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under a minute of commands, made once."""
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed")
    out = tmp_path_factory.mktemp("commands") / "tiny"
    assert run(commands, "--out", out, *TINY) == 0
    return out


def test_grammar_has_29_words_and_disjoint_reserves() -> None:
    """Every command belongs to exactly one reserve, and every reserve knows every word."""
    every = commands.commands()
    assert len(every) == len(set(every)) == 800
    words = {word for command in every for word in command.split()}
    assert len(words) == 29
    for reserve in ("train", "dev", "test"):
        mine = [command for command in every if commands.reserve_of(command) == reserve]
        assert len(mine) > 50 and {word for command in mine for word in command.split()} == words


def test_voices_of_the_splits_are_disjoint() -> None:
    """20 training voices; nobody is heard in two of train, dev, test and test_odd."""
    groups = (commands.TRAIN_VOICES, commands.DEV_VOICES, commands.TEST_VOICES, commands.ODD_VOICES)
    assert [len(group) for group in groups] == [20, 1, 3, 3]
    assert len(set().union(*groups)) == 27


def test_requests_use_only_their_reserve() -> None:
    """No test sentence, nor any command in it, can be trained on."""
    said = {}
    for reserve in ("train", "dev", "test"):
        split = commands.Split(reserve, ("m1",), reserve, 1.0)
        asked = commands.requests(split, 0, 0, 500)
        said[reserve] = {part for one in asked for part in one["spoken"].split(", ")}
    assert all(commands.reserve_of(c) == reserve for reserve, cs in said.items() for c in cs)
    assert not said["train"] & said["test"] and not said["dev"] & said["test"]


@needs_espeak
def test_same_options_give_the_same_audio(tiny: Path, tmp_path: Path) -> None:
    """Also with another number of helper processes; another seed gives another corpus."""
    shas = [json.loads((tiny / "corpus.json").read_text())["sha256"]]
    for number, more in enumerate((("--workers", 1), ("--seed", 1))):
        assert run(commands, "--out", tmp_path / str(number), *TINY, *more) == 0
        shas.append(json.loads((tmp_path / str(number) / "corpus.json").read_text())["sha256"])
    assert shas[0] == shas[1] != shas[2]


@needs_espeak
def test_a_second_run_does_nothing(tiny: Path, capsys) -> None:
    """Files keep their times, and the script says why."""
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert run(commands, "--out", tiny, *TINY) == 0
    assert "already there with these options" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@needs_espeak
def test_corpus_audio_is_sane_and_phones_fit(tiny: Path) -> None:
    """16 kHz mono, 0.5 to 5 s, neither silent nor clipped; phones lie inside and ascend."""
    phones = json.loads((tiny / "phones.json").read_text())
    for name in ("unlabelled", "train", "dev", "test", "test_odd"):
        for row in read_manifest(tiny / f"{name}.csv"):
            wav, rate = soundfile.read(row["wav"])
            assert rate == 16_000 and wav.ndim == 1 and 0.5 < row["duration"] <= 5.0
            assert 0.01 < np.sqrt(np.mean(wav**2)) < 0.3 and np.abs(wav).max() < 0.999
            times = [second for second, _ in phones[row["ID"]]]
            assert times == sorted(times) and times[0] >= 0 and times[-1] <= row["duration"]
            assert bool(row["wrd"]) == (name != "unlabelled")


@needs_espeak
def test_the_progress_bar_reaches_its_end(monkeypatch, tmp_path: Path, capsys) -> None:
    """On a terminal, too, where the last utterance goes beyond the seconds asked for."""
    shown = commands.tqdm
    monkeypatch.setattr(commands, "tqdm", lambda **more: shown(**{**more, "disable": False}))
    assert run(commands, "--out", tmp_path / "bar", *TINY) == 0
    assert "48/48 s of audio" in capsys.readouterr().err


@needs_espeak
def test_an_unknown_variant_is_refused() -> None:
    """espeak-ng itself would speak with its default voice and say nothing."""
    request = {"id": "x", "voice": "en-us+nobody"}
    job = {"seed": 1, "folder": ".", "seconds": 1.0, "max_s": 5.0}
    lines = json.dumps(job) + "\n" + json.dumps(request) + "\n"
    command = [sys.executable, str(commands.WORKER)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no voice 'en-us+nobody'" in done.stderr


def test_a_missing_espeak_says_what_to_install(monkeypatch, tmp_path: Path, capsys) -> None:
    """One line instead of a traceback."""
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    assert run(commands, "--out", tmp_path / "none") == 2
    assert "pip install espeakng-loader" in capsys.readouterr().err


# --- real speech, where there is some --------------------------------------------------------


def test_real_librispeech_subset(tmp_path: Path) -> None:
    """47 utterances of 28 speakers in FLAC."""
    data = real("LibriSpeech/train-clean-5").parent
    assert prepare(data, tmp_path / "m.csv", "--need-text") == 0
    rows = read_manifest(tmp_path / "m.csv")
    assert (len(rows), len({row["spk_id"] for row in rows})) == (47, 28)
    assert sum(row["duration"] for row in rows) == pytest.approx(600, abs=30)


def test_real_test_lists_share_no_speaker(tmp_path: Path) -> None:
    """240 test utterances and 77 to tune on, 20 other speakers each."""
    data, speakers = real("LibriSpeech/test-clean").parent, []
    for name, count in (("test", 240), ("dev", 77)):
        keep, out = data / f"test-clean-{name}.txt", tmp_path / f"{name}.csv"
        where = ("--data", data, "--split", "test-clean", "--keep", keep, "--out", out)
        assert run(librispeech, *where) == 0
        rows = read_manifest(out)
        assert len(rows) == count
        speakers.append({row["spk_id"] for row in rows})
    assert len(speakers[0]) == len(speakers[1]) == 20 and not speakers[0] & speakers[1]


def test_real_digits_have_their_official_split(tmp_path: Path) -> None:
    """300 of 3000 are test; 8 kHz FLAC is resampled while checking."""
    table, out = real("digits_fsdd/manifest.tsv"), tmp_path / "m.csv"
    assert run(folder, "--table", table, "--keep", r"_[0-4]\.flac$", "--out", out) == 0
    rows = read_manifest(out)
    assert (len(rows), len({row["spk_id"] for row in rows})) == (300, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("librispeech_train_clean_5_opus", 1519),
        ("german_kerstin_opus", 1374),
        ("malayalam_smc_opus", 1735),
    ],
)
def test_real_opus_tables(name: str, count: int, tmp_path: Path) -> None:
    """Every line of every real table is usable."""
    table = real(f"{name}/manifest.tsv")
    assert run(folder, "--table", table, "--need-text", "--out", tmp_path / "m.csv") == 0
    assert len(read_manifest(tmp_path / "m.csv")) == count


# --- strings -------------------------------------------------------------------------------------


def write_words(folder: Path) -> Path:
    """Two speakers, two words each; each recording is a constant of its own."""
    lines = ["ID,duration,wav,spk_id,wrd"]
    for speaker in ("ann", "bob"):
        for word in ("one", "two"):
            value = {"one": 0.25, "two": 0.5}[word] * {"ann": 1, "bob": -1}[speaker]
            path = folder / f"{speaker}-{word}.wav"
            soundfile.write(path, np.full(4000, value), 16000)
            lines.append(f"{path.stem},0.25,{path.name},{speaker},{word}")
    (folder / "words.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "words.csv"


def test_strings_are_words_of_one_speaker_in_the_order_of_the_text(tmp_path: Path) -> None:
    words = write_words(tmp_path)
    out = ["--manifest", str(words), "--minutes", "0.5", "--words", "2", "4"]
    assert strings.main([*out, "--out", str(tmp_path / "numbers")]) == 0
    rows = read_manifest(tmp_path / "numbers.csv")
    assert sum(row["duration"] for row in rows) >= 30
    for row in rows:
        wav, _ = soundfile.read(row["wav"])
        sign = {"ann": 1, "bob": -1}[row["spk_id"]]
        heard = {0.25: "one", 0.5: "two"}
        blocks = np.abs(wav[wav != 0]).reshape(-1, 4000)  # 4000 samples a word, pauses are zeros
        assert row["wrd"].split() == [heard[float(block[0])] for block in blocks]
        assert (np.sign(wav[wav != 0]) == sign).all()
        assert 2 <= len(blocks) <= 4
    assert strings.main([*out, "--out", str(tmp_path / "again")]) == 0
    again = read_manifest(tmp_path / "again.csv")
    assert [(r["wrd"], r["duration"]) for r in rows] == [(r["wrd"], r["duration"]) for r in again]


def test_strings_need_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_words(tmp_path)
    silent = [",".join(line.split(",")[:4]) + "," for line in words.read_text().splitlines()[1:]]
    words.write_text("\n".join(["ID,duration,wav,spk_id,wrd", *silent]) + "\n")
    assert strings.main(["--manifest", str(words), "--out", str(tmp_path / "numbers")]) == 2
    assert "no utterance has a text" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--minutes=nan", "--minutes=inf", "--minutes=0", "--pause=nan"])
def test_strings_have_a_length(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        strings.main(["--manifest", "words.csv", "--out", "numbers", wrong])
    assert "--minutes must be above 0, --pause not below, both finite" in capsys.readouterr().err
