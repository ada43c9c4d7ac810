"""How good and how fast is a model while somebody speaks: error rates and latencies.

For every chunk and left context three texts of each utterance:

    offline    the whole utterance is heard (the same for all)
    masked     the whole is there, but each frame sees only its chunk and the left context
    streamed   packets of 100 ms through `Wav2Vec2StreamingASR.stream`

The last two must be equal, text and characters with their times; utterances where they are not are
counted. Then, at one left context, what a speaker waits for: see w2v_plugin/latency.py for what the
words mean. And with --hour, an hour of these utterances as one stream, with pauses, again and again
if they are fewer: does it grow, does it slow down, does it hear worse?

All is written after every setting, so that an interrupted run leaves what it measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from w2v_plugin.alignment import align
from w2v_plugin.attention import ChunkConfig
from w2v_plugin.audio import read_audio
from w2v_plugin.circumstances import circumstances
from w2v_plugin.commands import CannotStart, load
from w2v_plugin.errors import BadAudio, BadManifest, NotStreamable
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.latency import percentiles, play, summary
from w2v_plugin.latency_tables import draw, tables
from w2v_plugin.live_encoders import OVERLAPS
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
PAUSE_S = 0.5  # between those of one stream: closely cut ones would make one word of two
MINUTE = 60 * SAMPLE_RATE
PACKET = SAMPLE_RATE // 10
ENDLESS = ChunkConfig(10**6)


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
            except ValueError:  # characters that the model does not know, or too many
                self.spans.append(())

    def __len__(self) -> int:
        return len(self.wavs)

    @property
    def seconds(self) -> float:
        """Of audio."""
        return sum(map(len, self.wavs)) / SAMPLE_RATE

    def error_rate(self, texts: Sequence[str]) -> dict[str, float]:
        """Word and character error rates, in percent."""
        return {
            "WER": round(100 * jiwer.wer(self.texts, [*texts]), 2),
            "CER": round(100 * jiwer.cer(self.texts, [*texts]), 2),
        }


def decoded(asr: Wav2Vec2StreamingASR, logits: Iterable[Tensor]) -> list[Transcript]:
    return [asr.decode(frames[None])[0] for frames in logits]


# --- error rates ---------------------------------------------------------------------------------


def matrix(
    asr: Wav2Vec2StreamingASR, data: Utterances, chunks: Sequence[ChunkConfig | None], quiet: bool
) -> Iterator[dict[str, Any]]:
    """Error rates offline, masked and streamed, at each chunk and left context; None: all."""
    offline = data.error_rate([t.text for t in decoded(asr, data.logits)])
    bar = tqdm(total=len(chunks) * len(data), desc="error rates", unit="utt", disable=quiet)
    for setting in chunks:
        chunk = setting or ENDLESS
        masked = decoded(asr, (asr.logits([wav], chunk)[0] for wav in data.wavs))
        streamed = []
        for wav in data.wavs:
            finals = play(asr.stream(chunk, rules=None), wav).finals
            streamed.append(finals[-1] if finals else Transcript(""))
            bar.update()
        yield {
            "chunk": None if setting is None else setting.chunk,
            "left": chunk.left,
            "offline": offline,
            "masked": data.error_rate([t.text for t in masked]),
            "streamed": data.error_rate([t.text for t in streamed]),
            "different": sum(tokens(a) != tokens(b) for a, b in zip(masked, streamed, strict=True)),
            "utterances": len(data),
        }
    bar.close()


def tokens(transcript: Transcript) -> tuple[str, list[tuple[str, float, float]]]:
    """The text, in which spaces are, and characters with their times."""
    return transcript.text, [(c.text, c.start, c.end) for c in transcript.characters]


# --- latencies -----------------------------------------------------------------------------------


def latencies(
    asr: Wav2Vec2StreamingASR, data: Utterances, how: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    """What a speaker waits for, with `stream(**how)`."""
    ongoing, ended, silence = [], [], torch.zeros(int(SILENCE_S * SAMPLE_RATE))
    for wav in tqdm(data.wavs, desc="latencies", unit="utt", disable=quiet):
        ended.append(play(asr.stream(**how, rules=None), wav))
        ongoing.append(play(asr.stream(**how), torch.cat([wav, silence]), finish=False))
    texts = [" ".join(final.text for final in done.finals) for done in ended]
    return {
        **data.error_rate(texts),
        "algorithmic_ms": asr.stream(**how).encoder.latency_ms,
        **summary(ongoing, ended, data.spans),
    }


# --- an hour -------------------------------------------------------------------------------------


def one_stream(
    asr: Wav2Vec2StreamingASR, data: Utterances, chunk: ChunkConfig, minutes: int, quiet: bool
) -> dict[str, Any]:
    """Utterances one after the other, again and again: memory, speed and errors by the minute."""
    session, heard, spoken = asr.stream(chunk), [], []
    memory, state, took, cpu, samples, rest = [], [], [], [], 0, torch.zeros(0)
    utterances = cycle(zip(data.wavs, data.texts, strict=True))
    for _ in tqdm(range(minutes), desc="one stream", unit="min", disable=quiet):
        wavs = [rest]
        while sum(map(len, wavs)) < MINUTE:
            wav, text = next(utterances)
            wavs += [wav, torch.zeros(int(PAUSE_S * SAMPLE_RATE))]
            spoken.append(text)
        joined = torch.cat(wavs)
        whole = len(joined) // PACKET * PACKET  # packets of one size, as a microphone gives them
        rest = joined[whole:]
        start = time.process_time()
        done = play(session, joined[:whole], finish=False)
        cpu.append((time.process_time() - start) / done.audio_s)
        samples += whole
        heard += [final.text for final in done.finals]
        took.append(done.compute_ms)
        state.append(done.state_bytes)
        del done, joined, wavs
        gc.collect()
        memory.append(resident_bytes())
    heard += [final.text for final in play(session, rest).finals]
    third, after = max(minutes // 3, 1), minutes // 6  # by then allocators have settled
    slope = float(np.polyfit(range(len(memory) - after), memory[after:], 1)[0])  # least squares
    return {
        "chunk": chunk.chunk,
        "left": chunk.left,
        "minutes": round(samples / MINUTE, 1),
        "pause_s": PAUSE_S,
        "times_heard": round(len(spoken) / len(data), 1),  # each utterance
        "WER": round(100 * jiwer.wer(" ".join(spoken), " ".join(heard)), 2),
        "state_bytes_first_third": max(state[:third]),
        "state_bytes_last_third": max(state[-third:]),
        "compute_ms_first_third": percentiles([ms for part in took[:third] for ms in part]),
        "compute_ms_last_third": percentiles([ms for part in took[-third:] for ms in part]),
        "cpu_rtf_first_third": round(float(np.mean(cpu[:third])), 4),  # others on the machine
        "cpu_rtf_last_third": round(float(np.mean(cpu[-third:])), 4),  # disturb it less
        "resident_mib_warm": round(memory[after] / 2**20, 1),
        "resident_mib_end": round(memory[-1] / 2**20, 1),
        "resident_mib_per_hour": round(slope * 60 / 2**20, 3),
    }


def resident_bytes() -> int:
    """Memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def write(report: dict[str, Any], folder: Path) -> None:
    """What is known so far."""
    (folder / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (folder / "tables.md").write_text(tables(report), encoding="utf-8")
    if report["latencies"]:
        draw(report, folder / "latency.png")


# --- the command ---------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder, file or hub id")
    parser.add_argument("--manifest", required=True, type=Path, help="CSV with wav and wrd")
    parser.add_argument("--output_folder", required=True, type=Path)
    parser.add_argument("--limit", type=int, help="utterances, spread evenly (default: all)")
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[320, 480, 640, 960], metavar="MS",
        help="milliseconds (default: 320 480 640 960); error rates also of the whole as one chunk",
    )  # fmt: skip
    parser.add_argument(
        "--lefts", type=left_of, nargs="+", default=[2.56, 5.12, 10.24, None], metavar="S",
        help="seconds of left context, or all (default: 2.56 5.12 10.24 all)",
    )  # fmt: skip
    parser.add_argument(
        "--latency_left", type=left_of, default=5.12, metavar="S",
        help="left context at which latencies are measured (default: 5.12)",
    )  # fmt: skip
    parser.add_argument(
        "--overlaps", nargs="*", default=["half"], choices=list(OVERLAPS),
        help="overlapping windows to measure, too (default: half)",
    )  # fmt: skip
    parser.add_argument(
        "--hour", action="store_true", help="also an hour as one stream, in the first chunk size"
    )
    parser.add_argument("--minutes", type=int, default=60, help="of --hour (default: 60)")
    parser.add_argument("--precision", default="fp32", help="fp32 (default), int8, bf16, fp16")
    parser.add_argument("--device", help="cpu (default), cuda, …", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--noprogressbar", action="store_true")
    return parser.parse_args(argv)


def left_of(text: str) -> float | None:
    return None if text == "all" else float(text)


def config(ms: int, left_s: float | None) -> ChunkConfig:
    left_ms = None if left_s is None else round(1000 * left_s)
    if ms < 20 or ms % 20 or (left_ms or 0) < 0 or (left_ms or 0) % 20:
        raise CannotStart(f"{ms} ms after {left_s} s: expected whole frames of 20 ms.")
    return ChunkConfig(ms // 20, None if left_ms is None else left_ms // 20)


def spread_evenly(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """So many of them, from all of the list."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def main(argv: Sequence[str]) -> None:
    """Run the recipe with command-line arguments."""
    arguments = parse(argv)
    folder, quiet = arguments.output_folder, arguments.noprogressbar
    chunks = [config(ms, left) for ms in arguments.chunks for left in arguments.lefts]
    how = {f"{ms} ms": {"chunk": config(ms, arguments.latency_left)} for ms in arguments.chunks}
    how |= {f"overlap {name}": {"overlap": name} for name in arguments.overlaps}
    if (folder / "results.json").exists():
        raise CannotStart(f"{folder} holds results. Choose another folder.")
    if arguments.minutes < 2 or (arguments.limit is not None and arguments.limit < 1):
        raise CannotStart("expected --minutes of 2 or more, and --limit of 1 or more.")
    torch.set_num_threads(arguments.threads)
    asr = load(
        "Wav2Vec2StreamingASR", arguments.model, arguments.device, precision=arguments.precision
    )
    asr.mods["model"].wav2vec2.check_streamable()
    rows = spread_evenly(read_manifest(arguments.manifest), arguments.limit)
    data = Utterances(asr, rows)
    report: dict[str, Any] = {
        **circumstances(asr.choice.device, arguments.manifest),
        "load": os.getloadavg()[0],  # what else the machine does
        "model": arguments.model,
        "manifest": str(arguments.manifest),
        "precision": asr.choice.precision,
        "threads": arguments.threads,
        "utterances": len(data),
        "utterances_without_times": sum(not spans for spans in data.spans),
        "seconds": round(data.seconds, 1),
        "silence_s": SILENCE_S,
        "latency_left": arguments.latency_left,
        "error_rates": [],
        "latencies": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for row in matrix(asr, data, [None, *chunks], quiet):
        report["error_rates"].append(row)
        write(report, folder)
    for name, options in how.items():
        report["latencies"][name] = latencies(asr, data, options, quiet)
        write(report, folder)
    if arguments.hour:
        chunk = config(arguments.chunks[0], arguments.latency_left)
        alone = report["latencies"][f"{chunk.ms} ms"]["WER"]
        found = one_stream(asr, data, chunk, arguments.minutes, quiet)
        report["one_stream"] = {"WER_utterances_alone": alone, **found}
        write(report, folder)
    print(tables(report) + f"written into {folder}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CannotStart, BadAudio, BadManifest, NotStreamable, OSError) as error:
        sys.exit(f"evaluate_streaming.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("evaluate_streaming.py: interrupted; what was measured is in the output folder")
