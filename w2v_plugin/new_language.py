"""`w2v new-language`: recordings and their texts -> what training needs, and the training.

    recordings, texts ─ list ─ split by speaker ─ check ─► raw/*.csv with data cards
                                                    └─ normalize ─► data/*.csv, vocabulary, report
    hours, size of the model ─ settings ─► train.yaml ─► the command that trains

train.yaml is written last: where it is, all of the rest is.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from w2v_plugin.commands import refused
from w2v_plugin.inputs import CannotStart
from w2v_plugin.text_options import add_text_options, text_choices

CONFIG, OPTIONS = "train.yaml", "options.json"
LARGE = 20_000_000  # parameters of a body; the smaller ones train on a CPU
PARTS = ("train", "dev", "test")


def new_language(arguments: argparse.Namespace) -> int:
    """`w2v new-language`."""
    config = arguments.out / CONFIG
    if config.is_file() and not arguments.train:
        raise CannotStart(
            f"{config} is there already. Train with it: {command(config)}. To prepare anew, choose "
            f"another --out, or remove all of {arguments.out}."
        )
    if config.is_file():
        refuse_changes(arguments)
        print(f"{config} is there: the data stay as they were prepared, training goes on with it.")
    else:
        with refused("cannot prepare", (ValueError, OSError, ImportError)):
            refuse_options(arguments)
            prepare(arguments, parameters_of(arguments))
    if arguments.train:
        train(arguments, config)
    return 0


def refuse_changes(arguments: argparse.Namespace) -> None:
    """CannotStart where the data were prepared with other options: they would not be heeded."""
    path = arguments.out / OPTIONS
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    now = json.loads(written(arguments))
    if changed := [name for name in before if before[name] != now.get(name)]:
        told = "; ".join(f"--{name} {before[name]}, now {now.get(name)}" for name in changed)
        raise CannotStart(
            f"{arguments.out} was prepared with other options ({told}). Choose another --out, or "
            f"remove it to prepare anew; what only training needs can be changed in {CONFIG}."
        )


def written(arguments: argparse.Namespace) -> str:
    """What the data depend on, as JSON; places are absolute."""
    from w2v_plugin.same_training import absolute

    known = {
        name.replace("_", "-"): str(value.resolve()) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name not in ("train", "device", "run", "out")
    }
    known["pretrained"] = absolute(arguments.pretrained)
    return json.dumps(known, indent=2, ensure_ascii=False, default=str) + "\n"


def refuse_options(arguments: argparse.Namespace) -> None:
    """ValueError for what could not be trained; nothing was looked at or written yet."""
    from w2v_plugin.language_folders import check_name

    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out}: a file. Name a folder, which need not exist.")
    if trained := [name for name in ("save", "model") if (arguments.out / name).exists()]:
        raise ValueError(
            f"{arguments.out / trained[0]} is there, of a training with another {CONFIG}: what it "
            "learned would be mixed up with this. Choose another --out, or remove it."
        )
    if odd := re.findall("[<>]", f"{arguments.out.resolve()}{arguments.pretrained}"):
        raise ValueError(f"{odd[0]} in the name of a folder means something else in a YAML.")
    if (arguments.adapters is None) != (arguments.language is None):
        raise ValueError(
            "--adapters and --language go together: adapters are those of a language, such as deu; "
            "without adapters all weights learn, and the model speaks this one language."
        )
    if arguments.language is not None:
        check_name(arguments.language)
    if arguments.adapters and arguments.units != "characters":
        raise ValueError("--adapters go with --units characters.")
    if not arguments.max_s > 0:
        raise ValueError(f"--max-s {arguments.max_s:g}: expected seconds, more than 0.")
    if not arguments.dev > 0:
        raise ValueError(f"--dev {arguments.dev:g}: it picks the best model, and must be above 0.")


def parameters_of(arguments: argparse.Namespace) -> int:
    """How large what is trained from is; seeing that before the audio saves an hour of checks."""
    from w2v_plugin.continuation import body_of

    with refused(f"--pretrained {arguments.pretrained}"):
        body = body_of(arguments.pretrained, adapters=arguments.adapters)
    return sum(parameter.numel() for parameter in body.parameters())


def train(arguments: argparse.Namespace, config: Path) -> None:
    """As `command` would, and say what comes after."""
    import torch

    from w2v_plugin.transfer import run

    device = [f"--device={arguments.device}"] if arguments.device else []
    try:
        if arguments.device:
            with refused(f"--device {arguments.device}", (RuntimeError,)):
                torch.empty(0, device=arguments.device)
        with refused("cannot train", (ValueError, OSError)):
            run([str(config), *device])
    except KeyboardInterrupt:
        print("\nThe same command goes on from its last checkpoint.", file=sys.stderr)
        raise
    print(then(arguments))


def prepare(arguments: argparse.Namespace, parameters: int) -> None:
    """Write all that training needs into `arguments.out`."""
    from w2v_plugin.frames import SHORTEST_S
    from w2v_plugin.listings import list_any
    from w2v_plugin.preparation import prepare as check_and_write
    from w2v_plugin.splits import split_by_speaker
    from w2v_plugin.text_preparation import prepare_texts

    out: Path = arguments.out
    choices = text_choices(arguments)
    given = {role: getattr(arguments, f"{role}_column") for role in ("audio", "text", "speaker")}
    columns = {role: name for role, name in given.items() if name is not None}
    found = list_any(arguments.audio, arguments.text, columns=columns, encoding=arguments.encoding)
    print(f"1. Recordings: {found.kind}; {len(found)} utterances.", flush=True)
    shares = {"dev": arguments.dev, "test": arguments.test}
    limits = {"max_s": arguments.max_s, "min_s": SHORTEST_S, "need_text": True}
    split = split_by_speaker(
        found, **shares, seed=arguments.seed, apart_texts=arguments.apart_texts, **limits
    )
    parts = dict(zip(PARTS, split[:3], strict=True))
    sizes = ", ".join(f"{len(some)} {name}" for name, some in parts.items() if some)
    print(f"2. Split by {'speaker' if split.by_speaker else 'utterance'}: {sizes}.")
    for warning in split.warnings:
        print(f"   {warning}")
    raw = {out / "raw" / f"{name}.csv": some for name, some in parts.items() if some}
    print("3. Audio and texts, checked:", flush=True)
    summaries = check_and_write(raw, **limits, cut_to=out / "cut")
    for summary in summaries:
        told = [some for some in summary.warnings if "same audio" in some]  # voices: see texts
        print(textwrap.indent(f"{replace(summary, warnings=tuple(told))}", "   "))
    train, *also = raw
    report = prepare_texts(train, out / "data", also=also, **choices)
    for name in PARTS:  # of a preparation that was stopped, and split in another way
        if out / "raw" / f"{name}.csv" not in raw:
            for old in [*out.glob(f"raw/{name}.*"), *out.glob(f"data/{name}.*")]:
                old.unlink()
    print("4. Texts:\n" + textwrap.indent(str(report), "   "), flush=True)
    write_config(arguments, parameters, report.vocabulary, [path.stem for path in raw])


def write_config(
    arguments: argparse.Namespace, parameters: int, vocabulary: Path, parts: list[str]
) -> None:
    """Choose settings and write train.yaml, a recipe of its own."""
    from w2v_plugin.manifests import read_manifest, write_files
    from w2v_plugin.same_training import absolute
    from w2v_plugin.text_report import hours as spoken

    out: Path = arguments.out
    data = {name: str((out / "data" / f"{name}.csv").resolve()) for name in parts}
    hours = sum(row["duration"] for row in read_manifest(data["train"])) / 3600
    chosen = settings(hours, parameters)
    values = {
        "pretrained": absolute(arguments.pretrained),
        "train_csv": data["train"],
        "valid_csv": data["dev"],
        "test_csvs": {"test": data["test"]} if "test" in data else {},
        "output_folder": str(out.resolve()),
        "vocab": str(vocabulary.resolve()),
        "max_s": arguments.max_s,
        "adapters": arguments.adapters,
        "language": arguments.language,
    }
    template = hparams_folder() / "transfer" / ("base.yaml" if parameters >= LARGE else "tiny.yaml")
    text = filled(template.read_text(encoding="utf-8"), values | chosen)
    write_files({out / OPTIONS: written(arguments).encode(), out / CONFIG: text.encode()})
    told = ", ".join(f"{name} {value}" for name, value in chosen.items())
    size = f"{spoken(3600 * hours)} and a body of {parameters / 1e6:.1f} M parameters"
    print(f"5. Settings for {size}: {told}.")
    print(f"   They are in {out / CONFIG}, with what can be changed. Now train:\n")
    print(command(out / CONFIG))


def settings(hours: float, parameters: int) -> dict[str, Any]:
    """What depends on how much labelled speech there is.

    Small bodies: updates grow with the root of the hours, so that ten minutes are heard some thirty
    times and ten hours four times, a rule of thumb; all of the audio is heard at least once up to a
    hundred hours. Large ones: the published numbers of updates (wav2vec 2.0, appendix B; XLS-R), of
    which the first tenth trains the head alone.

    Parameters
    ----------
    hours : float
        Of labelled training audio.
    parameters : int
        Of the body.

    Example
    -------
    >>> settings(1.0, 2_000_000)["updates"], settings(1.0, 300_000_000)["updates"]
    (6000, 13000)
    """
    if parameters >= LARGE:
        updates = 13_000 if hours <= 2 else 20_000 if hours <= 30 else 50_000
        return {"updates": updates, "freeze_encoder_updates": updates // 10, "valid_every": 1000}
    updates = 500 * min(max(round(12 * math.sqrt(hours)), 3), 120)
    return {"updates": updates, "freeze_encoder_updates": 0, "valid_every": max(updates // 10, 250)}


def filled(text: str, values: dict[str, Any]) -> str:
    """A YAML with other values of some keys at its top, comments kept.

    Raises
    ------
    KeyError
        A key is not there, or more than once.

    Example
    -------
    >>> print(filled("updates: 4000 # in all\\nvocab: null\\n", {"updates": 5, "vocab": "v.json"}))
    updates: 5 # in all
    vocab: "v.json"
    <BLANKLINE>
    """
    for key, value in values.items():
        written = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
        if isinstance(value, str):
            written = yaml.safe_dump(value, default_style='"', width=math.inf, allow_unicode=True)
        line = f"{key}: {written.removesuffix('...' + chr(10)).strip()}"
        pattern = rf"(?m)^{key}:(?: [^\n#]*?)?(?P<comment> #[^\n]*)?$"
        comments = [match["comment"] or "" for match in re.finditer(pattern, text)]
        text, found = re.subn(pattern, lambda _: line + comments[0], text)  # noqa: B023
        if found != 1:
            raise KeyError(f"{key}: {found} lines of the YAML set it, expected one.")
    return text


def hparams_folder() -> Path:
    """The YAMLs, inside of an installed package or beside it in a clone of the repository."""
    here = Path(__file__).resolve().parent
    return here / "hparams" if (here / "hparams").is_dir() else here.parent / "hparams"


def command(config: Path) -> str:
    """What trains."""
    return f"python -m w2v_plugin.transfer {shlex.quote(str(config))}"


def then(arguments: argparse.Namespace) -> str:
    """What one does with a trained model."""
    out = arguments.out
    model, data, lm, scores = (shlex.quote(str(out / n)) for n in ("model", "data", "lm", "scores"))
    language = f" --language {arguments.language}" if arguments.language else ""
    test = "test" if (out / "data" / "test.csv").is_file() else "dev"
    return f"""
Now, for example:
  w2v transcribe talk.wav --model {model}{language}
  python recipes/language_model.py --text {data}/train.csv --model {model}{language} \\
      --dev {data}/dev.csv --out {lm}
  python recipes/evaluate.py --model {model}{language} --manifest {data}/{test}.csv --lm {lm} \\
      --out {scores}"""


def add_options(add: Any) -> None:
    """The options of `w2v new-language`, by `add_argument` of its parser."""
    add(
        "--audio", type=Path, required=True, metavar="PATH", help="folder, table or list; see below"
    )
    add("--text", type=Path, metavar="PATH", help="the texts, where they are not beside the audio")
    for role in ("audio", "text", "speaker"):
        add(f"--{role}-column", metavar="NAME", help=f"of a table, with the {role} (else guessed)")
    add("--encoding", default="utf-8", help="of tables and texts (default utf-8)")
    add("--pretrained", required=True, metavar="MODEL", help="what to start from; see below")
    add("--out", type=Path, required=True, metavar="FOLDER", help="for everything that is written")
    add(
        "--run",
        dest="train",
        action="store_true",
        help="train now; again after an interruption, to go on",
    )
    add("--device", help="for --run: cpu, cuda, … (default: cuda if there is one)")
    add("--adapters", choices=["mms", "lora"], help="train these and the head, keep the rest")
    add("--language", metavar="CODE", help="with --adapters: what the language is called, as deu")
    add("--dev", type=float, default=0.1, metavar="F", help="share to watch training (default 0.1)")
    add(
        "--test",
        type=float,
        default=0.1,
        metavar="F",
        help="share to test at the end (default 0.1)",
    )
    add("--seed", type=int, default=0, help="of the split (default 0)")
    add("--max-s", type=float, default=20.0, metavar="S", help="longest utterance (default 20)")
    add_text_options(add)
