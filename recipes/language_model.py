"""An n-gram language model for a fine-tuned model, with the weights that decode best.

    text ─ modified Kneser-Ney ─► lm.arpa ─┐
    dev ─ the model, once ─ logits ────────┴ beam search, many times ─► decoding.json

Texts are manifests, usually those of training, or plain text with a sentence a line; the more the
better, and the closer to what will be said the better. Sentences of --dev and --test are left out
of them. Weights are chosen on --dev, whose error rate is therefore a little too good: --test, which
is decoded once, with the chosen weights, tells what the language model brings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from w2v_plugin.audio import read_audio
from w2v_plugin.circumstances import circumstances
from w2v_plugin.commands import CannotStart, load
from w2v_plugin.decoding import greedy_transcripts
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.kneser_ney import estimate
from w2v_plugin.lm_text import read_lm_text
from w2v_plugin.lm_tuning import Weights, searches, tune
from w2v_plugin.manifests import read_manifest
from w2v_plugin.ngrams import END, NgramLM, load_ngrams
from w2v_plugin.scoring import score, spaceless
from w2v_plugin.significance import ends, intervals
from w2v_plugin.text import WORD_BOUNDARY, CharVocabulary, normalize_text

EXAMPLES = """\
examples
  python recipes/language_model.py --text train.csv --model runs/ctc/model --dev dev.csv \\
      --out runs/language_model
  python recipes/language_model.py --text train.csv news.txt.gz --model runs/german/model \\
      --dev dev.csv --test test.csv --order 3 --out runs/german_lm

written into the output folder
  lm.arpa         the n-grams: for this project, KenLM, SpeechBrain, …
  decoding.json   the weights, and how they were found
  results.json    error rates without and with it, everything that was tried, circumstances

used by
  w2v transcribe talk.wav --model runs/ctc/model --lm runs/language_model
  asr.decode_with(**load_decoding("runs/language_model"))   # from w2v_plugin.ngrams
"""
BOOTSTRAP = {"draws": 1000, "seed": 0}


@dataclass
class Spoken:
    """A manifest as the model hears it: (frames, vocab) of each utterance, and the true texts."""

    path: Path
    texts: list[str]
    logits: list[Tensor]


def listen(asr: Any, path: Path) -> Spoken:
    """Compute the logits of a manifest; nothing after this needs the audio."""
    rows, letters = read_manifest(path), asr.tokenizer.letters
    texts = [normalize_text(row["wrd"], letters) for row in rows]
    if lost := sum(bool(asr.tokenizer.unknown(text)) for text in texts):
        print(f"{path}: {lost} texts have characters that the model cannot say: errors, always")
    bar = tqdm(rows, desc=f"logits of {path.name}", unit="utt", disable=None)
    return Spoken(path, texts, [asr.logits([read_audio(row["wav"])])[0] for row in bar])


def sentences_of(path: Path, vocabulary: CharVocabulary) -> set[str]:
    """What is said in a manifest; CannotStart if n-grams of words are no help for it."""
    texts = {normalize_text(row["wrd"], vocabulary.letters) for row in read_manifest(path)}
    if not any(texts):
        raise CannotStart(f"{path}: no text. Expected what is said, in the column `wrd`.")
    if spaceless(sorted(texts)) and not any(" " in text for text in texts):
        raise CannotStart(
            f"{path}: its texts have no spaces between words, and n-grams are of words. Separate "
            "the words in all texts, and train with them, or decode without a language model."
        )
    return texts


def fit(lm: NgramLM, texts: Sequence[str]) -> dict[str, float]:
    """How well the language model knows texts: unknown words, and perplexity of the others."""
    total, count, words, unknown = 0.0, 0, 0, 0
    for text in texts:
        state = lm.start()
        for word in [*text.split(), END]:
            log_prob, state = lm.score(state, word)
            if word == END or word in lm:
                total, count = total + log_prob, count + 1
            else:
                unknown += 1
            words += word != END
    return {
        "OOV": round(100 * unknown / words, 2),
        "perplexity": round(math.exp(-total / count), 1),
        "words": words,
    }


# --- error rates ---------------------------------------------------------------------------------


def error_rates(references: Sequence[str], systems: dict[str, Sequence[str]]) -> dict[str, Any]:
    """WER and CER of each system with 95 % intervals, and what the last gains over the first.

    All in percent; intervals draw utterances.
    """
    scored = {name: score(references, texts) for name, texts in systems.items()}
    arrays = np.stack([found.array for found in scored.values()])
    drawn = intervals(arrays, [""] * len(references), BOOTSTRAP["draws"], BOOTSTRAP["seed"])["95"]
    rates: dict[str, Any] = {}
    for place, (name, found) in enumerate(scored.items()):
        characters = score(references, systems[name], "characters").total
        rates[name] = {
            "WER": round(found.total.error_rate, 2),
            "WER_95": ends(None if drawn is None else drawn[:, place]),
            "CER": round(characters.error_rate, 2),
            "errors": found.total.errors,
        }
    first, *_, last = rates
    rates["gain"] = {
        "points": round(rates[first]["WER"] - rates[last]["WER"], 2),
        "points_95": ends(None if drawn is None else drawn[:, 0] - drawn[:, -1]),
    }
    return rates


def compare(
    spoken: Spoken, asr: Any, weights: Weights, folder: Path, how: dict[str, Any]
) -> dict[str, Any]:
    """Greedy, beam search alone, and with the language model."""
    lengths = [torch.tensor([len(frames)]) for frames in spoken.logits]
    pairs = zip(spoken.logits, lengths, strict=True)
    with searches(folder / "lm.arpa", asr.tokenizer, spoken.logits, **how) as decode:
        systems = {
            "greedy": [greedy_transcripts(x[None], n, asr.tokenizer)[0].text for x, n in pairs],
            "beam search": decode(None),
            "language model": decode(weights),
        }
    return {
        "manifest": str(spoken.path),
        "utterances": len(spoken.texts),
        **fit(load_ngrams(folder / "lm.arpa"), spoken.texts),
        **error_rates(spoken.texts, systems),
    }


def table(name: str, rates: dict[str, Any]) -> str:
    """What is printed of one manifest."""
    lines = [
        f"{name}: {rates['utterances']} utterances; {rates['OOV']} % of the words unknown to the "
        f"language model, perplexity of the others {rates['perplexity']}",
        f"  {'':16}{'WER':>7}  {'95 %':<17}{'CER':>7}",
    ]
    for system in ("greedy", "beam search", "language model"):
        found = rates[system]
        low, high = found["WER_95"] or (math.nan, math.nan)
        between = f"{low:.2f} to {high:.2f}"
        lines.append(f"  {system:16}{found['WER']:7.2f}  {between:<17}{found['CER']:7.2f}")
    low, high = rates["gain"]["points_95"] or (math.nan, math.nan)
    lines.append(f"  gain {rates['gain']['points']:.2f} points of WER, {low:.2f} to {high:.2f}")
    return "\n".join(lines)


# --- the command ---------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", required=True, nargs="+", type=Path, metavar="FILE",
        help="manifests (.csv) and plain texts (.txt, .txt.gz)",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="model folder, file or hub id")
    parser.add_argument("--language", metavar="CODE", help="of a model with several")
    parser.add_argument("--dev", required=True, type=Path, help="manifest to choose weights on")
    parser.add_argument(
        "--test", nargs="*", default=[], type=Path, metavar="FILE", help="manifests, decoded once"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--order", type=positive, default=4, help="words in the longest n-grams (default: 4)"
    )
    parser.add_argument(
        "--beam", type=positive, default=50, help="hypotheses to keep (default: 50)"
    )
    parser.add_argument("--device", help="for the logits: cpu, cuda, … (default: cpu)")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1,
        help="processes that search (default: one per processor)",
    )  # fmt: skip
    return parser.parse_args(argv)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 or more")
    return int(text)


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before the model is loaded."""
    if (arguments.out / "results.json").exists():  # written last
        raise CannotStart(f"{arguments.out} holds a language model. Choose another folder.")
    heard = {path.resolve() for path in (arguments.dev, *arguments.test)}
    if len(heard) < 1 + len(arguments.test):
        raise CannotStart("--dev and --test name the same manifest: weights are chosen on --dev.")
    for path in arguments.text:
        if not path.is_file():
            raise CannotStart(f"{path}: no such file.")
        if path.resolve() in heard:
            raise CannotStart(
                f"{path} is both --text and what is evaluated: error rates would be worth nothing. "
                "Give the text of training."
            )


def build(arguments: argparse.Namespace, vocabulary: CharVocabulary) -> dict[str, Any]:
    """Write the n-grams; what is reported of them."""
    heard = [sentences_of(path, vocabulary) for path in (arguments.dev, *arguments.test)]
    try:
        text = read_lm_text(arguments.text, vocabulary, without=set().union(*heard))
        model = estimate(text.sentences, arguments.order)
    except ValueError as error:
        raise CannotStart(str(error)) from error
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "decoding.json").unlink(missing_ok=True)  # of a run that did not end
    model.write(arguments.out / "lm.arpa")
    counts = [len(order.word) for order in model.orders]
    print(f"{arguments.out / 'lm.arpa'}: {', '.join(map(str, counts))} n-grams of 1 word and more")
    return {
        "order": len(counts),
        "ngrams": counts,
        "discounts": [order.discounts for order in model.orders],
        "sentences": len(text.sentences),
        "words": text.words,
        "words_that_cannot_be_said": dict(text.unknown.most_common(100)),
        "sentences_left_out": text.shared,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def make(arguments: argparse.Namespace) -> None:
    """Write all that the recipe writes."""
    start = time.perf_counter()
    check(arguments)
    folder = arguments.out
    asr = load(
        "Wav2Vec2ASR", arguments.model, arguments.device or "cpu", language=arguments.language
    )
    if WORD_BOUNDARY not in asr.tokenizer.lab2ind:
        raise CannotStart(f"{arguments.model} says no word boundaries, and n-grams are of words.")
    text = build(arguments, asr.tokenizer)
    how = {"beam": arguments.beam, "workers": arguments.workers}
    dev = listen(asr, arguments.dev)
    known = fit(load_ngrams(folder / "lm.arpa"), dev.texts)
    if known["OOV"] == 100:
        raise CannotStart(
            f"{arguments.dev}: none of its words occurs in the text. Is it another "
            "language, or without spaces between words?"
        )
    with searches(folder / "lm.arpa", asr.tokenizer, dev.logits, **how) as decode:
        weights, trials = tune(decode, dev.texts)
    used = [*arguments.text, arguments.dev, *arguments.test]
    if Path(arguments.model).exists():
        used.append(arguments.model)
    report = {
        **circumstances(asr.choice.device, *used),
        "model": arguments.model,
        "bootstrap": BOOTSTRAP,
        "text": text,
        "weights": {**asdict(weights), "beam": arguments.beam},
        "dev": compare(dev, asr, weights, folder, how),
        "test": {},
    }
    print(
        f"weights: alpha {weights.alpha:g}, beta {weights.beta:g}, oov {weights.oov:g}, of "
        f"{len(trials)} settings that were tried"
    )
    print(table("dev", report["dev"]))
    chosen = {name: report[name] for name in ("weights", "model", "command", "commit", "sha256")}
    write(folder / "decoding.json", {**chosen.pop("weights"), "found_on": report["dev"], **chosen})
    for path in arguments.test:
        found = compare(listen(asr, path), asr, weights, folder, how)
        report["test"][str(path)] = found
        print(table(path.stem, found))
    report["trials"] = [asdict(trial) for trial in trials]
    report["seconds"] = round(time.perf_counter() - start, 1)
    write(folder / "results.json", report)
    print(f"written into {folder}")


def main(argv: Sequence[str]) -> int:
    """Run the recipe; 2 and one line on stderr where it cannot be done."""
    try:
        make(parse(argv))
    except (CannotStart, BadAudio, BadManifest, OSError) as error:
        print(f"language_model.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlanguage_model.py: interrupted; the same command begins anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
