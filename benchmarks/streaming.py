"""Streaming with BASE's shape: what a chunk costs, and how many streams one process serves.

    python benchmarks/streaming.py [--rounds 60] [--only chunks|sessions]

chunks    one stream on one thread, random weights: time in `Session.feed` for a packet that
          completes a chunk, in float32 and INT8, and what a speaker waits at worst: chunk + 5 ms +
          computing. Beside it, interleaved in the same process, what one has to do without a state:
          transformers' Wav2Vec2ForCTC (sdpa) hears left context and chunk anew each time.
sessions  eight speakers at once, a small model, real time, batched steps: is anybody kept waiting?

Writes its sections of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import measure
import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.compression import optimize
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.endpoint import EndpointRules
from w2v_plugin.frames import HOP, RECEPTIVE_FIELD
from w2v_plugin.live import GreedyDecoder
from w2v_plugin.live_encoders import ChunkEncoder
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.sessions import Session, feed
from w2v_plugin.text import CharVocabulary

LEFT = 256  # frames, 5.12 s
CHUNKS = (16, 24, 32, 48)
SPEAKERS, SECONDS = 8, 60
SMALL = {"dim": 256, "layers": 6, "heads": 4, "ffn_dim": 1024, "channels": (128,) * 7}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60, help="chunks of each kind (default: 60)")
    parser.add_argument("--only", choices=["chunks", "sessions"])
    arguments = parser.parse_args()
    if arguments.only != "sessions":
        chunks_section(arguments.rounds)
    if arguments.only != "chunks":
        sessions_section()


def make(precision: str = "fp32", **shape: object) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    body = Wav2Vec2(**shape, extractor_norm="layer", conv_bias=True, normalize=False)  # type: ignore[arg-type]
    return optimize(Wav2Vec2CTC(body, vocab_size=32).eval(), precision)


def session(model: Wav2Vec2CTC, chunk: ChunkConfig) -> Session:
    return Session(ChunkEncoder(model, chunk), GreedyDecoder(CharVocabulary()), EndpointRules())


def speech(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


# --- what a chunk costs --------------------------------------------------------------------------


def chunks_section(rounds: int) -> None:
    torch.set_num_threads(1)
    models = {precision: make(precision) for precision in ("fp32", "int8")}
    theirs = transformers_model()
    rows = []
    for frames in CHUNKS:
        chunk = ChunkConfig(frames, LEFT)
        sessions = {name: session(model, chunk) for name, model in models.items()}
        for one in sessions.values():  # full left context
            one.feed(speech((LEFT + 2 * frames) * HOP + 80))
        packet = speech(frames * HOP)
        window = speech((LEFT + frames - 1) * HOP + RECEPTIVE_FIELD)[None]
        jobs: dict[str, Callable[[], object]] = {
            name: partial(one.feed, packet) for name, one in sessions.items()
        }
        jobs["transformers"] = partial(theirs, window)
        times = measure.interleaved(jobs, rounds)
        for name, one in sessions.items():
            ms = 1000 * np.array(times[name])
            p50, p95, p99 = np.percentile(ms, [50, 95, 99])
            ratio, low, high = measure.ratios(times[name], times["transformers"])
            rows.append(
                [
                    f"{20 * frames} ms",
                    name,
                    f"{p50:.0f}",
                    f"{p95:.0f}",
                    f"{p99:.0f}",
                    f"{p50 / 20 / frames:.2f}",
                    f"{20 * frames + 5 + p95:.0f}",
                    f"{one.encoder.nbytes / 2**20:.1f}",
                    f"{ratio:.2f} ({low:.2f}-{high:.2f})",
                ]
            )
    header = ["chunk", "", "p50 ms", "p95 ms", "p99 ms", "RTF", "a speaker waits at worst, ms"]
    header += ["state MiB", "of transformers without a state"]
    measure.write_section(
        "Streaming: what a chunk costs",
        "`python benchmarks/streaming.py --only chunks`. "
        f"{measure.circumstances()} 1 thread, BASE's shape (layer norm in the extractor), random "
        f"weights, left context 5.12 s, {rounds} rounds. Waiting at worst: chunk + 5 ms + p95. The "
        "peer hears left context and chunk anew for every chunk.\n\n" + measure.table(header, rows),
    )


def transformers_model() -> Callable[[Tensor], object]:
    config = Wav2Vec2Config(
        feat_extract_norm="layer", conv_bias=True, attn_implementation="sdpa", vocab_size=32
    )
    model = Wav2Vec2ForCTC(config).eval()

    @torch.inference_mode()
    def run(wavs: Tensor) -> object:
        return model(wavs).logits

    return run


# --- many speakers -------------------------------------------------------------------------------


def sessions_section() -> None:
    """Packets of 100 ms from every speaker, when they are due."""
    torch.set_num_threads(2)
    rows = []
    body = Wav2Vec2(**SMALL, extractor_norm="layer", conv_bias=True)  # type: ignore[arg-type]
    parameters = sum(p.numel() for p in body.parameters()) / 1e6
    for precision in ("fp32", "int8"):
        model, chunk = make(precision, **SMALL), ChunkConfig(32, LEFT)
        sessions = [session(model, chunk) for _ in range(SPEAKERS)]
        wavs = [speech(SECONDS * 16_000, seed).split(1600) for seed in range(SPEAKERS)]
        late, busy, start = [], 0.0, time.perf_counter()
        for number, packets in enumerate(zip(*wavs, strict=True), start=1):
            due = start + number * 0.1
            time.sleep(max(due - time.perf_counter(), 0.0))
            begin = time.perf_counter()
            feed(sessions, packets)
            end = time.perf_counter()
            busy += end - begin
            late.append(1000 * (end - due))
        p50, p95, worst = *np.percentile(late, [50, 95]), max(late)
        rows.append(
            [
                precision,
                f"{p50:.0f}",
                f"{p95:.0f}",
                f"{worst:.0f}",
                f"{100 * busy / SECONDS:.0f} %",
                "nobody" if late[-1] < 100 and worst < 640 else "yes",
            ]
        )
    header = [
        "",
        "done after it was due, p50 ms",
        "p95 ms",
        "worst ms",
        "time busy",
        "falls behind",
    ]
    measure.write_section(
        "Streaming: eight speakers, one model",
        "`python benchmarks/streaming.py --only sessions`. "
        f"{measure.circumstances()} 2 threads, a model of {parameters:.1f} M parameters, random "
        f"weights, chunks of 640 ms, left context 5.12 s; {SPEAKERS} speakers in real time for "
        f"{SECONDS} s, packets of 100 ms, batched steps.\n\n" + measure.table(header, rows),
    )


if __name__ == "__main__":
    main()
