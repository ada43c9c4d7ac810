"""Ours -> one ONNX file: raw samples in, logits or context out, any batch and any length.

    wavs, lengths ─ [normalize ─ convolutions ─ positions ─ attention] ─► logits | context
                    all of it in the graph, masks included            └─► frame_lengths

The graph is traced from the model itself, with two parts respelled: extractor and positions look
at views of one buffer, which ONNX does not have, so they are plain convolutions here.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.features import ConvExtractor, ConvLayer, TimeGroupNorm
from w2v_plugin.frames import SAMPLE_RATE, frame_lengths, receptive_field, valid_frames
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.positions import ConvPositions
from w2v_plugin.text import WORD_BOUNDARY, CharVocabulary


def export_onnx(
    model: Wav2Vec2 | Wav2Vec2CTC, path: str | Path, *, vocabulary: CharVocabulary | None = None
) -> None:
    """Write a model as an ONNX file (opset 20) that needs nothing of ours.

    The graph takes `wavs` (batch, samples), float32 at 16 kHz as they were recorded, and `lengths`
    (batch,), int64, the valid samples of each row: padding may hold anything. It returns `logits`
    (batch, frames, vocab) of a CTC model or `context` (batch, frames, dim), and `frame_lengths`
    (batch,), int64; frames beyond them are meaningless. Normalization is inside, and padding
    does to the result what `model.padding` says. A row holds 400 to 2**24 samples (17 minutes).

    The file's metadata are strings: `sample_rate`, `hop` and `receptive_field` (samples),
    `padding`, and with a vocabulary `vocabulary` (JSON, symbol -> output), `blank` (its output)
    and `word_boundary` (the symbol that stands for a space).

    Parameters
    ----------
    model : Wav2Vec2 or Wav2Vec2CTC
        In float32, not optimized; it stays as it is.
    path : str or Path
        Must not exist yet. The file appears complete or not at all. If the weights exceed the
        2 GB that ONNX allows in one file, they are in a second one beside it, named `path` +
        ".data", and belong together.
    vocabulary : CharVocabulary, optional
        What the outputs of a Wav2Vec2CTC mean.

    Raises
    ------
    ImportError
        The packages of the extra "onnx" are missing.
    FileExistsError
        There is such a file already.
    ValueError
        Not a model that can be exported, or a vocabulary that does not fit it.
    OSError
        The disk is full, for example; nothing is left behind.

    Example
    -------
    >>> import onnxruntime
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model.onnx")
    ...     export_onnx(model, path)
    ...     session = onnxruntime.InferenceSession(path)
    >>> wavs = torch.randn(2, 16000).numpy()
    >>> context, frames = session.run(None, {"wavs": wavs, "lengths": [16000, 8000]})
    >>> context.shape, frames.tolist()
    ((2, 49, 16), [49, 24])
    """
    _check(model)
    ctc = isinstance(model, Wav2Vec2CTC)
    metadata = _metadata(model) | ({} if vocabulary is None else _symbols(model, vocabulary))
    with _new_file(path) as new:
        graph = Graph(model).eval()
        device = next(model.parameters()).device
        # two frames at least, or the tracer takes the number of frames for a constant
        example = torch.zeros(2, SAMPLE_RATE, device=device)
        lengths = torch.tensor([SAMPLE_RATE, SAMPLE_RATE // 2], device=device)
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph,
                (example, lengths),
                dynamo=True,
                verbose=False,
                input_names=["wavs", "lengths"],
                output_names=["logits" if ctc else "context", "frame_lengths"],
                dynamic_shapes={"wavs": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}},
            )
            assert program is not None
            _label(program.model, metadata)
            program.save(new)


class Graph(nn.Module):
    """What is traced: a copy of a model that shares its weights and knows no training.

    Example
    -------
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7).eval()
    >>> wavs, lengths = torch.randn(2, 16000), torch.tensor([16000, 8000])
    >>> context, frames = Graph(model)(wavs, lengths)
    >>> torch.allclose(context[0], model(wavs).context[0], atol=1e-5), frames.tolist()
    (True, [49, 24])
    """

    def __init__(self, model: Wav2Vec2 | Wav2Vec2CTC) -> None:
        super().__init__()
        shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
        self.model = copy.deepcopy(model, shared)
        wav2vec2 = self.model.wav2vec2 if isinstance(self.model, Wav2Vec2CTC) else self.model
        wav2vec2.extractor = _Extractor(wav2vec2.extractor)  # type: ignore[assignment]
        wav2vec2.encoder.positions = _Positions(wav2vec2.encoder.positions)  # type: ignore[assignment]

    def forward(self, wavs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) and (batch,) valid samples -> logits or context, and valid frames."""
        out = self.model(wavs, lengths.double() / wavs.shape[1])
        return (out.context if out.logits is None else out.logits), out.frame_lengths


class _Extractor(nn.Module):
    """A `ConvExtractor`, same call and same answer, channels-first."""

    def __init__(self, extractor: ConvExtractor) -> None:
        super().__init__()
        self.kernels, self.strides = extractor.kernels, extractor.strides
        self.norm, self.layers = extractor.norm, extractor.layers

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        return frame_lengths(lengths, self.kernels, self.strides)

    def forward(self, wavs: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            lengths = torch.full((len(wavs),), wavs.shape[1], device=wavs.device)
        x = wavs[:, None]
        for layer in self.layers:
            assert isinstance(layer, ConvLayer)
            x = layer.conv(x)
            if isinstance(layer.norm, TimeGroupNorm):  # of the first layer
                x = _norm_over_time(
                    x, frame_lengths(lengths, self.kernels[:1], self.strides[:1]), layer.norm
                )
            elif layer.norm is not None:
                x = layer.norm(x.transpose(1, 2)).transpose(1, 2)
            x = F.gelu(x)
        return x.transpose(1, 2)


def _norm_over_time(x: Tensor, lengths: Tensor, norm: TimeGroupNorm) -> Tensor:
    """`TimeGroupNorm` of (batch, channels, frames)."""
    valid = valid_frames(lengths, x.shape[2])[:, None].to(x.dtype)
    count = lengths.clamp(min=1)[:, None, None]
    mean = (x * valid).sum(2, keepdim=True) / count
    var = ((x - mean) * valid).square().sum(2, keepdim=True) / count
    scale = norm.weight[:, None] * torch.rsqrt(var + norm.eps)
    return x * scale + (norm.bias[:, None] - mean * scale)


class _Positions(nn.Module):
    """`ConvPositions` of whole utterances with the weight norm folded in."""

    def __init__(self, positions: ConvPositions) -> None:
        super().__init__()
        conv = positions.conv
        self.groups = conv.groups
        self.weight, self.bias = nn.Parameter(conv.weight.detach()), conv.bias
        self.around = positions.past, positions.future

    def forward(self, x: Tensor, chunk: None = None) -> Tensor:
        x = F.pad(x.transpose(1, 2), self.around)
        return F.gelu(F.conv1d(x, self.weight, self.bias, groups=self.groups)).transpose(1, 2)


def _check(model: nn.Module) -> None:
    """Refuse what cannot be exported, before anything is written."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'ONNX export needs the package {error.name}: pip install "w2v_plugin[onnx]".'
        ) from error
    if not isinstance(model, (Wav2Vec2, Wav2Vec2CTC)):
        raise ValueError(
            f"Got a {type(model).__name__}, expected a Wav2Vec2 or a Wav2Vec2CTC. "
            "Of a model with other heads, export `model.wav2vec2`."
        )
    wav2vec2 = model if isinstance(model, Wav2Vec2) else model.wav2vec2
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32} or not isinstance(wav2vec2.extractor, ConvExtractor):
        raise ValueError(
            "Got a model in another precision or made ready for use, expected one in float32 as "
            "`load_checkpoint` returns it. Load it again and export that."
        )


def _metadata(model: Wav2Vec2 | Wav2Vec2CTC) -> dict[str, str]:
    wav2vec2 = model if isinstance(model, Wav2Vec2) else model.wav2vec2
    kernels, strides = wav2vec2.extractor.kernels, wav2vec2.extractor.strides
    return {
        "sample_rate": str(SAMPLE_RATE),
        "hop": str(math.prod(strides)),
        "receptive_field": str(receptive_field(kernels, strides)),
        "padding": wav2vec2.padding,
    }


def _symbols(model: Wav2Vec2 | Wav2Vec2CTC, vocabulary: CharVocabulary) -> dict[str, str]:
    if not isinstance(model, Wav2Vec2CTC):
        raise ValueError(
            f"Got a vocabulary for a {type(model).__name__}, which has no outputs to name. "
            "Export a Wav2Vec2CTC, or leave it out."
        )
    fitted = CharVocabulary.from_symbols(vocabulary.lab2ind, vocabulary.blank_label)
    fitted.fit(model.head.out_features, "vocabulary")
    symbols = dict(sorted(fitted.lab2ind.items(), key=lambda item: item[1]))
    return {
        "vocabulary": json.dumps(symbols, ensure_ascii=False),
        "blank": str(fitted.get_blank_index()),
        "word_boundary": WORD_BOUNDARY,
    }


def _label(graph_model: Any, metadata: dict[str, str]) -> None:
    """Our metadata instead of the exporter's, which tell source files of this machine."""
    graph = graph_model.graph
    for part in (graph_model, graph, *graph.inputs, *graph.initializers.values(), *graph):
        part.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            value.metadata_props.clear()
    graph_model.producer_name = "w2v_plugin"
    graph_model.metadata_props.update(metadata)
    result = graph.outputs[0]
    batch, _, width = result.shape
    result.shape = type(result.shape)([batch, "frames", width])


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own insides; what it writes is tested."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _new_file(path: str | Path) -> Iterator[Path]:
    """A file to write, which appears under its name when all went well, or not at all."""
    path = Path(path).absolute()
    for taken in (path, path.with_name(f"{path.name}.data")):
        if taken.exists():
            raise FileExistsError(f"{taken} exists. Choose another name or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        yield Path(beside) / path.name
        for file in sorted(Path(beside).iterdir(), reverse=True):  # weights first
            file.rename(path.parent / file.name)
