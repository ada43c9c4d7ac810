"""How many words are wrong, how sure is that, and which system is better?

Transcribes test sets with models, or takes texts that were written before, and scores them: WER,
CER, MER, WIL, intervals, speakers, commonest errors, and every difference to the first system with
its interval and p-value.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.circumstances import circumstances
from w2v_plugin.cli import parser as command_line
from w2v_plugin.commands import open_interface, refused, search_options
from w2v_plugin.errors import BadAudio, BadManifest, NotStreamable
from w2v_plugin.evaluation import Answers, Evaluation
from w2v_plugin.folders import is_folder as is_model_folder
from w2v_plugin.hypotheses import Reference, read_hypotheses, read_references, write_hypotheses
from w2v_plugin.inputs import CannotStart
from w2v_plugin.language_folders import per_language
from w2v_plugin.manifests import read_manifest
from w2v_plugin.score_pages import draw, page
from w2v_plugin.score_report import markdown, p_value, rate, sections
from w2v_plugin.scoring import METRICS

EXAMPLES = """\
examples
  one model, two test sets
      python recipes/evaluate.py --model runs/ctc/model --manifest dev.csv test.csv \\
          --out runs/eval/ctc
  is the second better than the first? (with a language model)
      python recipes/evaluate.py --model runs/a/model --model runs/b/model --manifest test.csv \\
          --lm lm.arpa --out runs/eval/a_b
  texts from elsewhere: columns ID,hyp, or ID,spk_id,ref,hyp, or what `w2v transcribe --out` wrote
      python recipes/evaluate.py --hyp theirs.csv --hyp ours.tsv --manifest test.csv \\
          --out runs/eval/x
      python recipes/evaluate.py --hyp runs/ctc/hyp_test.csv --out runs/eval/y

further options
  Those of `w2v transcribe` for the model and its decoding, the same for all models: --device,
  --precision (here fp32 unless given), --lm, --beam, --alpha, --beta, --hot-words, --chunk-ms,
  --language (of models that have several), --batch-s, ….

written into the output folder
  results.json               all figures, and what it takes to get them again; small
  report.md, report.html     the same for people; the page shows the errors word by word
  errors_<test>.png          error rates by speaker and by length
  hyp_<test>_<system>.csv    every text, for --hyp or other tools

Texts are compared as the manifest has them, in Unicode NFC and the case of the vocabulary, nothing
else is changed: prepare them with recipes/prepare/text.py, as for training. Nothing is left out:
audio that cannot be read counts as deleted words and is listed (exit status 1). WER and CER are
what SpeechBrain's ErrorRateStats gives, which training writes as wer_<test>.txt (there without
utterances that have no text; here words that are said in them are insertions).
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Our options; `decoding` holds those of `w2v transcribe`."""
    parser = argparse.ArgumentParser(
        "evaluate.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the rest belongs to another parser
    )
    add = parser.add_argument
    add("--model", action="append", default=[], help="model folder or checkpoint; again for more")
    add("--hyp", action="append", default=[], type=Path, help="file of texts; again for more")
    add("--manifest", nargs="+", default=[], type=Path, help="test sets, from recipes/prepare/")
    add("--names", nargs="+", help="of the systems: models, then files (default: from the paths)")
    add("--out", type=Path, required=True, help="output folder, without results in it")
    add("--bootstrap", type=count, default=1000, help="draws for intervals (default: 1000)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    add("--show", type=int, default=100, help="utterances in report.html (default: 100)")
    arguments, rest = parser.parse_known_args(argv)
    if not arguments.model and not arguments.hyp:
        parser.error("nothing to evaluate: give --model or --hyp")
    if arguments.model and not arguments.manifest:
        parser.error("--model needs the --manifest of a test set")
    if arguments.hyp and len(arguments.manifest) > 1:
        parser.error("--hyp holds the texts of one test set: give one --manifest")
    if rest and not arguments.model:
        parser.error(f"{rest[0]} is about models: give --model")
    arguments.names = names_of(arguments, parser)
    arguments.decoding = [decoding(model, rest, parser) for model in arguments.model]
    return arguments


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def decoding(
    model: str, rest: Sequence[str], parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """The options of `w2v transcribe`, with its checks."""
    given = ["transcribe", "-", "--model", model, "--precision", "fp32", *rest]
    found = command_line().parse_args(given)
    if is_model_folder(model) and per_language(model) is None:
        found.language = None  # it is about other models of the comparison
    if found.inputs != ["-"] or found.resume or found.format != "text" or found.model != model:
        parser.error(f"{' '.join(rest)}: expected options for the model and its decoding only")
    return found


def names_of(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """One for each system, for tables and file names."""
    sources = [*map(Path, arguments.model), *arguments.hyp]
    names = arguments.names or [name_of(source) for source in sources]
    if len(names) != len(sources):
        parser.error(f"--names: {len(names)} names for {len(sources)} systems")
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[^/\\\s][^/\\]*", n) for n in names):
        parser.error(f"systems need different names that can be file names, got {names}: --names")
    return names


def name_of(source: Path) -> str:
    """What tells a path from others: runs/a/model -> a, b/hyp_test.csv -> hyp_test."""
    source = source.absolute() if source.name in ("", ".", "..") else source
    if source.suffix.lower() in (".csv", ".tsv", ".txt", ".pt", ".onnx"):
        return source.stem
    return source.parent.name if source.name == "model" and source.parent.name else source.name


# --- test sets -----------------------------------------------------------------------------------


def test_sets(arguments: argparse.Namespace) -> dict[str, list[Reference]]:
    """References by the name of the test set."""
    if not arguments.manifest:
        return {arguments.hyp[0].stem: read_references(arguments.hyp[0])}
    names = [path.stem for path in arguments.manifest]
    if len(set(names)) < len(names):
        raise CannotStart(f"--manifest: two files with one name, {' '.join(names)}. Rename one.")
    return {path.stem: references_of(path) for path in arguments.manifest}


def references_of(manifest: Path) -> list[Reference]:
    rows = read_manifest(manifest)
    return [
        Reference(row["ID"], row["spk_id"], row["wrd"], row["wav"], row["duration"]) for row in rows
    ]


# --- systems -------------------------------------------------------------------------------------


def answers_of_model(
    name: str, options: argparse.Namespace, tests: dict[str, list[Reference]]
) -> Iterator[tuple[str, Answers]]:
    """Transcribe every test set."""
    search = search_options(options)
    asr = open_interface("Wav2Vec2ASR", options)
    if search:
        with refused("beam search"):
            asr.decode_with(**search)
    chunk = None if options.chunk_ms is None else ChunkConfig(options.chunk_ms // 20)
    how = {name: str(value) for name, value in vars(options).items() if name in SHOWN and value}
    device, precision = str(asr.choice.device), asr.choice.precision
    about = {
        "source": options.model,
        "device": device,
        "decoding": {
            "on": f"{precision} on {device}",
            "search": "beam" if search else "greedy",
            **how,
        },
        "seed": training_seed(Path(options.model)),
    }
    for test, references in tests.items():
        texts, failed = {}, {}
        paths = [Path(reference.wav) for reference in references]
        found = asr.transcripts(paths, batch_s=options.batch_s, chunk=chunk)
        bar = tqdm(found, desc=f"{name}, {test}", total=len(paths), unit="utt", disable=None)
        for reference, (_, result) in zip(references, bar, strict=True):
            if isinstance(result, BadAudio):
                failed[reference.id] = " ".join(str(result).split())
            else:
                texts[reference.id] = result[0].text
        yield test, Answers(name, texts, asr.tokenizer, failed, about)


SHOWN = ("lm", "alpha", "beta", "beam", "hot_words", "chunk_ms", "language", "window_s")


def training_seed(model: Path) -> int | None:
    """Of the run whose output folder holds this model, if it does."""
    settings = model.parent / "hyperparams.yaml"
    if not settings.is_file():
        return None
    found = re.search(r"^seed: *(\d+)", settings.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else None


def collect(
    arguments: argparse.Namespace, tests: dict[str, list[Reference]]
) -> dict[str, list[Answers]]:
    """Answers of all systems, models first, by test set; each is kept as a file at once."""
    answers: dict[str, list[Answers]] = {test: [] for test in tests}
    names = iter(arguments.names)
    # files first, though they come last in the tables: a wrong one is known before the hours
    texts = [read_hypotheses(path, next(iter(tests.values()))) for path in arguments.hyp]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for options in arguments.decoding:
        name = next(names)
        for test, found in answers_of_model(name, options, tests):
            answers[test].append(found)
            keep(arguments.out, test, tests[test], found)
        gc.collect()  # one model at a time
    for path, said in zip(arguments.hyp, texts, strict=True):
        test = next(iter(tests))
        answers[test].append(Answers(next(names), said, about={"source": str(path)}))
        keep(arguments.out, test, tests[test], answers[test][-1])
    return answers


def keep(folder: Path, test: str, references: Sequence[Reference], answers: Answers) -> None:
    texts = [answers.texts.get(reference.id, "") for reference in references]
    write_hypotheses(said_path(folder, test, answers.system), references, texts)


def said_path(folder: Path, test: str, system: str) -> Path:
    return folder / f"hyp_{test}_{system}.csv"


# --- reports -------------------------------------------------------------------------------------


def write_all(
    arguments: argparse.Namespace, evaluations: Sequence[Evaluation], how: dict[str, Any]
) -> None:
    """results.json last, so that its presence means finished."""
    folder = arguments.out
    title = f"Evaluation: {', '.join(arguments.names)}"
    line = f"{how['command']} (commit {how['commit']}; {how['hardware']}; torch {how['torch']})"
    parts = [f"# {title}\n\n`{line}`\n"]
    for evaluation in evaluations:
        picture = f"errors_{evaluation.name}.png"
        (folder / picture).write_bytes(draw(evaluation))
        parts.append(markdown(sections(evaluation.report), picture))
    write(folder / "report.md", "\n".join(parts))
    write(folder / "report.html", page(evaluations, title, line, arguments.show))
    everything = how | {
        "bootstrap": {"draws": arguments.bootstrap, "seed": arguments.seed},
        "tests": [evaluation.report for evaluation in evaluations],
    }
    text = json.dumps(everything, indent=1, ensure_ascii=False, allow_nan=False)
    write(folder / "results.json", text + "\n")


def write(path: Path, text: str) -> None:
    """All of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


def summary(evaluations: Iterable[Evaluation]) -> Iterator[str]:
    """For the terminal."""
    for evaluation in evaluations:
        report = evaluation.report
        for system in report["systems"]:
            rates = (f"{m} {rate(system[m], system[f'{m}_95'])} %" for m in METRICS)
            yield f"{report['test']}, {system['system']}: {', '.join(rates)}"
            if missing := len(system["unanswered"]):
                yield f"  {missing} of {report['utterances']} utterances without a text"
        for row in report["differences"]:
            p = p_value(row["p"])
            yield (
                f"{report['test']}, {row['system']} - {row['other']}: {row['metric']} "
                f"{rate(row['points'], row['points_95'], '+.2f')}, p: {p}"
            )


def evaluate(arguments: argparse.Namespace) -> int:
    """Exit status: 1 where an utterance has no text."""
    if (arguments.out / "results.json").exists():
        raise CannotStart(f"{arguments.out} holds results. Choose another folder.")
    tests = test_sets(arguments)
    files = [said_path(arguments.out, test, name) for test in tests for name in arguments.names]
    if len(set(files)) < len(files):
        twice = next(file.name for file in files if files.count(file) > 1)
        raise CannotStart(f"Two systems and test sets would write {twice}: give other --names.")
    for name, references in tests.items():
        Evaluation(name, references, ())  # a test set without a word is refused before the hours
    answers = collect(arguments, tests)
    how = {"repeats": arguments.bootstrap, "seed": arguments.seed}
    evaluations = [Evaluation(name, tests[name], answers[name], **how) for name in tests]
    language_models = [options.lm for options in arguments.decoding if options.lm]
    files = [*arguments.manifest, *arguments.hyp, *map(Path, arguments.model), *language_models]
    found = answers[next(iter(tests))][0].about.get("device", "cpu")
    write_all(arguments, evaluations, circumstances(found, *filter(Path.exists, files)))
    print("\n".join(summary(evaluations)))
    print(f"Report: {arguments.out / 'report.html'}")
    return int(any(s["unanswered"] for e in evaluations for s in e.report["systems"]))


def main(argv: Sequence[str]) -> int:
    """Run the recipe; 2 and one line on stderr where it cannot be done."""
    try:
        return evaluate(parse(argv))
    except (CannotStart, BadManifest, NotStreamable, FloatingPointError, OSError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted; finished texts are in the folder: --hyp", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
