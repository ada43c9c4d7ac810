"""A synthetic corpus of spoken commands, made in seconds without any download.

espeak-ng speaks one to three commands of a 29-word grammar ("turn on the blue kitchen light") with
20 voices. Test voices are never trained on, and a hash of its text reserves each command for
training, dev or test, so neither voice nor sentence of a test has been heard before. The speech is
intelligible but very regular: the corpus tests a pipeline and is no evidence about real speech.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from w2v_plugin.manifests import Utterance, write_manifest

WORKER = Path(__file__).with_name("espeak_worker.py")
FORMAT = 1  # raised whenever the same options give other audio

ROOMS = ("kitchen", "bedroom", "garden")
COLORS = ("red", "blue", "green")
DEVICES = ("light", "fan", "heater")
OPENINGS = ("door", "window")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

TRAIN_VOICES = (
    *("m1", "m2", "m4", "m6", "m7", "f1", "f2", "f3", "f5", "Alex", "Alicia", "Andrea", "Andy"),
    *("Annie", "max", "miguel", "pedro", "quincy", "rob", "steph"),
)
DEV_VOICES = ("m3",)
TEST_VOICES = ("m5", "f4", "linda")
ODD_VOICES = ("m8", "Mike", "klatt5")  # whispery, thin, and made by another synthesizer

# 22.05 kHz * 320 / 441 = 16 kHz; the others change pitch, tempo and formants by up to 6 %. Numbers
# with small prime factors, because each is the length of a Fourier transform.
DOWN = (416, 420, 425, 432, 441, 448, 450, 455, 459, 465)
LONGEST_S = 5.0  # of an utterance
COMMANDS_PER_UTTERANCE, THEIR_WEIGHTS = (1, 2, 3), (60, 30, 10)  # about 2 s on average

EXAMPLES = """examples
  the whole corpus, about 70 minutes of audio (135 MB):
    python recipes/prepare/commands.py --out runs/data/commands
  a small one, to try things out:
    python recipes/prepare/commands.py --out runs/data/tiny --train-minutes 1 \\
        --unlabelled-minutes 1 --dev-minutes 0.2 --test-minutes 0.5 --odd-minutes 0.5

what it writes
  unlabelled.csv   training voices; the text column is empty
  train.csv        training voices, other recordings than unlabelled.csv
  dev.csv          one more voice (m3), to watch training; never report it
  test.csv         ordinary unseen voices (m5, f4, linda)
  test_odd.csv     odd unseen voices (m8, Mike, klatt5)
  phones.json      {utterance: [[seconds, phone], ...]}, "_" is a pause
  corpus.json      options, counts, SHA-256 of all audio; a second run with the same options stops
                   there and leaves everything as it is

The same seed gives the same audio on any number of --workers. Needs espeak-ng, as a Python wheel:
pip install espeakng-loader
"""


@dataclass(frozen=True)
class Split:
    """One manifest: who speaks, from which commands, how much."""

    name: str
    voices: tuple[str, ...]
    reserve: str  # "train", "dev" or "test": the commands it may use
    minutes: float
    parts: int = 1  # each made by a fresh, seeded process; two big ones keep two cores busy
    labelled: bool = True


def commands() -> list[str]:
    """Every command of the grammar, in a fixed order."""
    colors, rooms = ("", *COLORS), ("", *ROOMS)
    grammar = (
        (("turn",), ("on", "off"), ("the",), colors, rooms, DEVICES),
        (("set the",), colors, rooms, DEVICES, ("to",), NUMBERS),
        (("open", "close"), ("the",), colors, rooms, OPENINGS),
        (("open", "close"), ("the",), rooms, OPENINGS, NUMBERS),
    )
    every = itertools.chain.from_iterable(itertools.product(*slots) for slots in grammar)
    return [" ".join(filter(None, words)) for words in every]


def reserve_of(command: str) -> str:
    """Which splits may use a command: a tenth dev, a fifth test, the rest train."""
    tenth = hashlib.sha256(command.encode()).digest()[0] * 10 // 256
    return {0: "dev", 1: "test", 2: "test"}.get(tenth, "train")


def requests(split: Split, part: int, seed: int, count: int) -> list[dict[str, Any]]:
    """What espeak-ng is asked to say, more than enough of it; the same for the same arguments."""
    generator = random.Random(f"{FORMAT}/{seed}/{split.name}/{part}")
    # by first word, otherwise the many "set the ..." commands would be nearly all
    kinds: dict[str, list[str]] = {}
    for command in commands():
        if reserve_of(command) == split.reserve:
            kinds.setdefault(command.split()[0], []).append(command)
    asked = []
    for index in range(count):
        voice = split.voices[index % len(split.voices)]
        (size,) = generator.choices(COMMANDS_PER_UTTERANCE, THEIR_WEIGHTS)
        said = [generator.choice(kinds[generator.choice(sorted(kinds))]) for _ in range(size)]
        asked.append(
            {
                "id": f"{split.name}-{part}-{index:05d}-{voice}",
                "voice": f"en-us+{voice}",
                "speaker": voice,
                "text": " ".join(said),
                "spoken": ", ".join(said),
                "rate": generator.randint(150, 200),
                "pitch": generator.randint(35, 65),
                "pitch_range": generator.randint(30, 70),
                "volume": 70,  # 100 clips with some voices
                "down": generator.choice(DOWN),
            }
        )
    return asked


def make_part(split: Split, part: int, *, seed: int, out: Path, bar: tqdm) -> list[dict[str, Any]]:
    """Run one helper process; returns its requests that became audio, with seconds and phones."""
    folder, seconds = out / "wavs" / split.name, split.minutes * 60 / split.parts
    folder.mkdir(parents=True, exist_ok=True)
    asked = requests(split, part, seed, int(seconds) + 50)  # an utterance is longer than 1 s
    digest = hashlib.sha256(f"{seed}/{split.name}/{part}".encode()).digest()
    random_seed = int.from_bytes(digest[:3], "big")
    job = {"seed": random_seed, "folder": str(folder), "seconds": seconds, "max_s": LONGEST_S}
    by_id, made = {request["id"]: request for request in asked}, []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:  # a pipe could fill and block
        lines.writelines(json.dumps(line) + "\n" for line in (job, *asked))
        lines.seek(0)
        command = [sys.executable, str(WORKER)]
        with subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for answer in map(json.loads, worker.stdout):
                made.append({**by_id[answer["id"]], **answer})
                step = min(answer["seconds"], seconds)  # tqdm drops a total that is exceeded
                seconds -= step
                bar.update(step)
    if worker.returncode:
        raise RuntimeError(f"espeak_worker.py failed for {split.name}; its message stands above")
    return made


def synthesize(
    splits: list[Split], *, seed: int, out: Path, workers: int
) -> dict[str, list[dict[str, Any]]]:
    """Make every part, `workers` processes at a time, and put them together in a fixed order."""
    jobs = [(split, part) for split in splits for part in range(split.parts)]
    total = sum(split.minutes for split in splits) * 60
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}]"
    bar = tqdm(total=total, desc="espeak-ng", bar_format=form, disable=None)
    with bar, ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda job: make_part(*job, seed=seed, out=out, bar=bar), jobs)
        made: dict[str, list[dict[str, Any]]] = {}
        for (split, _), part in zip(jobs, parts, strict=True):
            made.setdefault(split.name, []).extend(part)
    return made


def audio_digest(out: Path, made: dict[str, list[dict[str, Any]]]) -> str:
    """SHA-256 over all wav files, in the order of the manifests."""
    digest = hashlib.sha256()
    for name, utterances in made.items():
        for utterance in utterances:
            digest.update((out / "wavs" / name / f"{utterance['id']}.wav").read_bytes())
    return digest.hexdigest()


def write_corpus(out: Path, splits: list[Split], made: dict[str, list[dict[str, Any]]]) -> None:
    """Manifests and phones.json."""
    phones = {u["id"]: u["phones"] for utterances in made.values() for u in utterances}
    (out / "phones.json").write_text(json.dumps(phones, ensure_ascii=False), encoding="utf-8")
    for split in splits:
        listed = [
            Utterance(
                id=u["id"],
                wav=out / "wavs" / split.name / f"{u['id']}.wav",
                speaker=u["speaker"],
                text=u["text"] if split.labelled else "",
                source=f"{WORKER.name}:{u['id']}",
            )
            for u in made[split.name]
        ]
        print(write_manifest(out / f"{split.name}.csv", listed, need_text=split.labelled))


def splits_of(options: argparse.Namespace) -> list[Split]:
    """The five splits at the sizes asked for; those of 0 minutes are left out."""
    unlabelled, train = options.unlabelled_minutes, options.train_minutes
    every = [
        Split("unlabelled", TRAIN_VOICES, "train", unlabelled, parts=2, labelled=False),
        Split("train", TRAIN_VOICES, "train", train, parts=2),
        Split("dev", DEV_VOICES, "dev", options.dev_minutes),
        Split("test", TEST_VOICES, "test", options.test_minutes),
        Split("test_odd", ODD_VOICES, "test", options.odd_minutes),
    ]
    return [split for split in every if split.minutes > 0]


def build(options: argparse.Namespace) -> None:
    """Make the corpus, unless it is there already."""
    out, note = options.out.resolve(), options.out.resolve() / "corpus.json"
    splits = splits_of(options)
    wanted: dict[str, Any] = {"format": FORMAT, "seed": options.seed, "folder": str(out)}
    wanted["minutes"] = {split.name: split.minutes for split in splits}
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")).get("options") == wanted:
        print(f"{out}: already there with these options, nothing to do (delete {note} to redo it)")
        return
    note.unlink(missing_ok=True)
    for stale in (out / "wavs").glob("*/*-?-?????-*.wav"):  # only what this script names so
        stale.unlink()
    made = synthesize(splits, seed=options.seed, out=out, workers=options.workers)
    write_corpus(out, splits, made)
    record: dict[str, Any] = {"options": wanted}
    record["voices"] = {split.name: " ".join(split.voices) for split in splits}
    record["words"] = " ".join(sorted(set(" ".join(commands()).split())))
    record["utterances"] = {name: len(utterances) for name, utterances in made.items()}
    record["seconds"] = {n: round(sum(u["seconds"] for u in us), 2) for n, us in made.items()}
    record["sha256"] = audio_digest(out, made)
    note.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--out", type=Path, required=True, help="folder to write; created where needed")
    add("--train-minutes", type=float, default=30, help="with labels (default 30)")
    add("--unlabelled-minutes", type=float, default=30, help="for pretraining (default 30)")
    add("--dev-minutes", type=float, default=2, help="to watch training (default 2)")
    add("--test-minutes", type=float, default=4, help="ordinary unseen voices (default 4)")
    add("--odd-minutes", type=float, default=3, help="odd unseen voices (default 3)")
    add("--seed", type=int, default=0, help="another seed gives another corpus (default 0)")
    add("--workers", type=int, default=2, help="helper processes at a time (default 2)")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be made."""
    options = parser().parse_args(argv)
    if importlib.util.find_spec("espeakng_loader") is None:
        print("commands.py: espeak-ng is missing: pip install espeakng-loader", file=sys.stderr)
        return 2
    try:
        build(options)
    except (RuntimeError, OSError, ValueError) as error:
        print(f"commands.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
