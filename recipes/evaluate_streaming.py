"""How good and how fast is a model while somebody speaks: error rates and latencies.

For every chunk and left context three texts of each utterance:

    offline    the whole utterance is heard (the same for all)
    masked     the whole is there, but each frame sees only its chunk and the left context
    streamed   packets of 100 ms through `Wav2Vec2StreamingASR.stream`

The last two must be equal, character by character with their times; utterances where they are not
are counted. Then, at one left context, what a speaker waits for: see w2v_plugin/latency.py for what
the words mean. And with --hour, an hour of these utterances as one stream: does it grow, does it
slow down, does it hear worse?
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import jiwer
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from w2v_plugin.alignment import align
from w2v_plugin.attention import ChunkConfig
from w2v_plugin.audio import read_audio
from w2v_plugin.circumstances import circumstances
from w2v_plugin.commands import CannotStart, load
from w2v_plugin.errors import BadManifest, NotStreamable
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.latency import Playback, delays, play, unstable
from w2v_plugin.manifests import read_manifest
from w2v_plugin.streaming_asr import Wav2Vec2StreamingASR
from w2v_plugin.text import normalize_text
from w2v_plugin.transcripts import Span, Transcript

EXAMPLES = """\
examples
  python recipes/evaluate_streaming.py --model runs/ctc/model --manifest test.csv \\
      --output_folder runs/streaming
  python recipes/evaluate_streaming.py --model runs/ctc/model --manifest test.csv --limit 50 \\
      --chunks 320 640 --lefts 5.12 all --precision int8 --hour --output_folder runs/streaming_int8

written into the output folder
  results.json    all figures, and what it takes to get them again
  tables.md       error rates, latencies and the hour, as tables
  latency.png     word error rate against what a speaker waits
"""
SILENCE_S = 3.0  # after each utterance, for endpoint rules to find its end
MINUTE = 60 * SAMPLE_RATE


class Utterances:
    """Audio, true texts, and when their words are said.

    Parameters
    ----------
    asr : Wav2Vec2StreamingASR
        Aligns the texts, hearing the whole utterance.
    rows : list of dict
        Of a manifest.
    """

    def __init__(self, asr: Wav2Vec2StreamingASR, rows: list[dict[str, Any]]) -> None:
        letters = asr.tokenizer.letters
        self.wavs = [read_audio(row["wav"]) for row in rows]
        self.texts = [normalize_text(row["wrd"], letters) for row in rows]
        self.logits = [asr.logits([wav])[0] for wav in self.wavs]
        self.spans: list[Sequence[Span]] = []
        for logits, text in zip(self.logits, self.texts, strict=True):
            try:
                self.spans.append(align(logits, text, asr.tokenizer).words)
            except ValueError:  # characters that the model does not know
                self.spans.append(())

    def __len__(self) -> int:
        return len(self.wavs)

    @property
    def seconds(self) -> float:
        """Of audio."""
        return sum(map(len, self.wavs)) / SAMPLE_RATE

    def error_rate(self, texts: Sequence[str]) -> dict[str, float]:
        """Word and character error rates, in percent."""
        pairs = [(t, h) for t, h in zip(self.texts, texts, strict=True) if t]
        truth, found = [t for t, _ in pairs], [h for _, h in pairs]
        return {
            "WER": round(100 * jiwer.wer(truth, found), 2),
            "CER": round(100 * jiwer.cer(truth, found), 2),
        }


def decoded(asr: Wav2Vec2StreamingASR, logits: Iterable[Tensor]) -> list[Transcript]:
    return [asr.decode(frames[None])[0] for frames in logits]


# --- error rates ---------------------------------------------------------------------------------


def matrix(
    asr: Wav2Vec2StreamingASR, data: Utterances, chunks: Sequence[ChunkConfig], quiet: bool
) -> list[dict[str, Any]]:
    """Error rates offline, masked and streamed, at each chunk and left context."""
    offline = data.error_rate([t.text for t in decoded(asr, data.logits)])
    rows = [{"chunk": None, "left": None, "offline": offline}]
    bar = tqdm(total=len(chunks) * len(data), desc="error rates", unit="utt", disable=quiet)
    for chunk in chunks:
        masked = decoded(asr, (asr.logits([wav], chunk)[0] for wav in data.wavs))
        streamed = []
        for wav in data.wavs:
            finals = play(asr.stream(chunk, rules=None), wav).finals
            streamed.append(finals[-1] if finals else Transcript(""))
            bar.update()
        rows.append(
            {
                "chunk": chunk.chunk,
                "left": chunk.left,
                "offline": offline,
                "masked": data.error_rate([t.text for t in masked]),
                "streamed": data.error_rate([t.text for t in streamed]),
                "different": sum(
                    tokens(a) != tokens(b) for a, b in zip(masked, streamed, strict=True)
                ),
                "utterances": len(data),
            }
        )
    bar.close()
    return rows


def tokens(transcript: Transcript) -> list[tuple[str, float, float]]:
    """Characters and their times."""
    return [(c.text, c.start, c.end) for c in transcript.characters]


# --- latencies -----------------------------------------------------------------------------------


def latencies(
    asr: Wav2Vec2StreamingASR, data: Utterances, how: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    """What a speaker waits for, in milliseconds, with `stream(**how)`."""
    times: dict[str, list[float]] = {
        key: [] for key in ("perceived", "emission", "first", "final", "flush")
    }
    computing: list[float] = []
    total, texts, changed, words, state = Playback(), [], 0, 0, 0
    pairs = list(zip(data.wavs, data.spans, strict=True))
    for wav, spans in tqdm(pairs, desc="latencies", unit="utt", disable=quiet):
        session = asr.stream(**how, rules=None)
        known_end = play(session, wav)
        texts.append(" ".join(final.text for final in known_end.finals))
        open_end = play(asr.stream(**how), torch.cat([wav, torch.zeros(int(SILENCE_S * 16000))]))
        total.audio_s += known_end.audio_s
        total.compute_s += known_end.compute_s
        computing += known_end.compute_ms
        state = max(state, known_end.state_bytes)
        counts = unstable(known_end)
        changed, words = changed + counts[0], words + counts[1]
        found = delays(known_end, spans)
        times["perceived"] += found.perceived
        times["emission"] += found.emission
        times["first"] += [] if found.first is None else [found.first]
        times["flush"] += [] if found.final is None else [found.final]
        ended = delays(open_end, spans)
        times["final"] += [] if ended.final is None else [ended.final]
    return {
        **data.error_rate(texts),
        "algorithmic_ms": session.encoder.latency_ms,
        "compute_ms": percentiles(computing),
        "rtf": round(total.compute_s / total.audio_s, 4),
        "perceived_ms": percentiles([1000 * t for t in times["perceived"]]),
        "emission_ms": percentiles([1000 * t for t in times["emission"]]),
        "first_text_ms": percentiles([1000 * t for t in times["first"]]),
        "final_ms": percentiles([1000 * t for t in times["final"]]),
        "final_known_end_ms": percentiles([1000 * t for t in times["flush"]]),
        "unstable_words": changed / max(words, 1),
        "state_mib": round(state / 2**20, 3),
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """50, 95 and 99 %."""
    if not values:
        return None
    return {f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95, 99)}


# --- an hour -------------------------------------------------------------------------------------


def one_stream(
    asr: Wav2Vec2StreamingASR, data: Utterances, chunk: ChunkConfig, minutes: int, quiet: bool
) -> dict[str, Any]:
    """Utterances one after the other, again and again: memory, speed and errors by the minute."""
    session, heard, spoken = asr.stream(chunk), [], []
    memory, state, took = [], [], []
    utterances = cycle(zip(data.wavs, data.texts, strict=True))
    for _ in tqdm(range(minutes), desc="one stream", unit="min", disable=quiet):
        samples, start = 0, time.process_time()
        while samples < MINUTE:
            wav, text = next(utterances)
            spoken.append(text)
            samples += len(wav)
            for packet in wav.split(SAMPLE_RATE // 10):
                heard += [event.text for event in session.feed(packet) if event.is_final]
        took.append((time.process_time() - start) / samples * SAMPLE_RATE)
        state.append(session.encoder.nbytes)
        gc.collect()
        memory.append(resident_bytes())
    heard += [event.text for event in session.finish()]
    third, after = max(minutes // 3, 1), minutes // 6  # allocators have settled
    slope = float(np.polyfit(range(len(memory) - after), memory[after:], 1)[0])
    return {
        "minutes": minutes,
        "WER": round(100 * jiwer.wer(" ".join(spoken), " ".join(heard)), 2),
        "state_bytes": [min(state), max(state)],
        "resident_mib": [round(memory[after] / 2**20, 1), round(memory[-1] / 2**20, 1)],
        "resident_mib_per_hour": round(slope * 60 / 2**20, 3),
        "rtf_first_third": round(float(np.mean(took[:third])), 4),
        "rtf_last_third": round(float(np.mean(took[-third:])), 4),
    }


def resident_bytes() -> int:
    """Memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# --- tables and picture --------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> str:
    """All figures for people, in Markdown."""
    lines = ["| chunk | left | offline | masked | streamed | differ |", "|---|---|---|---|---|---|"]
    for row in report["error_rates"]:
        if row["chunk"] is None:
            lines.append(f"| full | all | {both(row['offline'])} | | | |")
            continue
        left = "all" if row["left"] is None else f"{row['left'] * 0.02:.2f} s"
        cells = " | ".join(both(row[key]) for key in ("offline", "masked", "streamed"))
        differ = f"{row['different']} of {row['utterances']}"
        lines.append(f"| {row['chunk'] * 20} ms | {left} | {cells} | {differ} |")
    lines += [
        "",
        "| | WER | algorithmic | compute p50 / p95 / p99 | RTF | perceived | emission "
        "| first text | final | final, known end | unstable | state |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["latencies"].items():
        keys = ("perceived_ms", "emission_ms", "first_text_ms", "final_ms", "final_known_end_ms")
        cells = [f"{row['WER']:.2f}", f"{row['algorithmic_ms']:.0f}", spread(row["compute_ms"])]
        cells += [f"{row['rtf']:.3f}", *(spread(row[key]) for key in keys)]
        cells += [f"{100 * row['unstable_words']:.1f} %", f"{row['state_mib']:.2f} MiB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if (hour := report.get("one_stream")) is not None:
        lines += ["", f"| one stream of {hour['minutes']} minutes | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in hour.items() if key != "minutes"]
    return "\n".join(lines) + "\n"


def both(rates: dict[str, float]) -> str:
    return f"{rates['WER']:.2f} / {rates['CER']:.2f}"


def spread(values: dict[str, float] | None) -> str:
    return "" if values is None else " / ".join(f"{value:.0f}" for value in values.values())


def draw(report: dict[str, Any], path: Path) -> None:
    """Word error rate against user-perceived latency."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, row in report["latencies"].items():
        if row["perceived_ms"] is None:
            continue
        low, high = row["perceived_ms"]["p50"], row["perceived_ms"]["p95"]
        overlap = not name.endswith("ms")
        color = "tab:orange" if overlap else "tab:blue"
        axis.plot([low, high], [row["WER"]] * 2, "-", color=color, alpha=0.6)
        axis.plot(low, row["WER"], "o", color=color)
        axis.plot(high, row["WER"], "|", color=color, markersize=12)
        axis.annotate(name, (low, row["WER"]), textcoords="offset points", xytext=(4, 6))
    offline = report["error_rates"][0]["offline"]["WER"]
    axis.axhline(offline, color="gray", linestyle="--", label=f"whole utterance: {offline:.1f} %")
    axis.set_xlabel("a word is shown so long after its end (ms): median to 95 %, with computing")
    axis.set_ylabel("word error rate (%)")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# --- the command ---------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder, file or hub id")
    parser.add_argument("--manifest", required=True, type=Path, help="CSV with wav and wrd")
    parser.add_argument("--output_folder", required=True, type=Path)
    parser.add_argument("--limit", type=int, help="utterances, spread evenly (default: all)")
    parser.add_argument("--chunks", type=int, nargs="+", default=[320, 480, 640, 960], metavar="MS")
    parser.add_argument(
        "--lefts", type=left_of, nargs="+", default=[2.56, 5.12, 10.24, None], metavar="S",
        help="seconds of left context, or all (default: 2.56 5.12 10.24 all)",
    )  # fmt: skip
    parser.add_argument(
        "--latency_left", type=left_of, default=5.12, metavar="S",
        help="left context at which latencies are measured (default: 5.12)",
    )  # fmt: skip
    parser.add_argument(
        "--overlaps", nargs="*", default=["half"], metavar="NAME",
        help="overlapping windows to measure, too: half, accurate, fast (default: half)",
    )  # fmt: skip
    parser.add_argument("--hour", action="store_true", help="also an hour as one stream")
    parser.add_argument("--minutes", type=int, default=60, help="of --hour (default: 60)")
    parser.add_argument("--precision", default="fp32", help="fp32 (default), int8, bf16, fp16")
    parser.add_argument("--device", help="cpu (default), cuda, …", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--noprogressbar", action="store_true")
    return parser.parse_args(argv)


def left_of(text: str) -> float | None:
    return None if text == "all" else float(text)


def config(ms: int, left_s: float | None) -> ChunkConfig:
    return ChunkConfig(ms // 20, None if left_s is None else round(left_s * 50))


def spread_evenly(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """So many of them, from all of the list."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def main(argv: Sequence[str]) -> None:
    """Run the recipe with command-line arguments."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    asr = load(
        "Wav2Vec2StreamingASR", arguments.model, arguments.device, precision=arguments.precision
    )
    asr.mods["model"].wav2vec2.check_streamable()
    rows = spread_evenly(read_manifest(arguments.manifest), arguments.limit)
    data, quiet = Utterances(asr, rows), arguments.noprogressbar
    chunks = [config(ms, left) for ms in arguments.chunks for left in arguments.lefts]
    report: dict[str, Any] = {
        **circumstances(asr.choice.device, arguments.manifest),
        "model": arguments.model,
        "precision": asr.choice.precision,
        "threads": arguments.threads,
        "utterances": len(data),
        "utterances_without_times": sum(not spans for spans in data.spans),
        "seconds": round(data.seconds, 1),
        "error_rates": matrix(asr, data, chunks, quiet),
    }
    how = {f"{ms} ms": {"chunk": config(ms, arguments.latency_left)} for ms in arguments.chunks}
    how |= {f"overlap {name}": {"overlap": name} for name in arguments.overlaps}
    report["latencies"] = {
        name: latencies(asr, data, options, quiet) for name, options in how.items()
    }
    if arguments.hour:
        chunk = config(arguments.chunks[0], arguments.latency_left)
        report["one_stream"] = one_stream(asr, data, chunk, arguments.minutes, quiet)
    folder = arguments.output_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "tables.md").write_text(text := tables(report))
    draw(report, folder / "latency.png")
    print(text + f"written into {folder}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CannotStart, BadManifest, NotStreamable) as error:
        sys.exit(f"evaluate_streaming.py: error: {error}")
