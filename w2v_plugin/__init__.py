"""wav2vec 2.0 for SpeechBrain: pretraining, CTC fine-tuning, transcription and embeddings.

How the audio passes through the files of this package:

    wavs ─ features ─► latents ─► masking ─► encoder (positions, attention) ─► context
                          │                                                       │
                          │         interfaces, cli ◄─ decoding ◄─ CTC head ◄─────┤
                          │                                                       │
                          └──► quantizer ─► targets ───────► losses ◄─────────────┘  training only

    model        puts these together; pretraining, ctc: the heads
    audio        files -> wavs                      frames   samples <-> 20 ms frames
    checkpoints  published weights -> ours          folders  what training leaves for the interfaces
    compression  a model -> packed, half precision or INT8  (products, tiled, fourier)
    overlap      long audio in windows              batching files -> batches -> results in order
    streaming    what an encoder remembers          steps    packets -> context, chunk by chunk
    live         decoding that goes on              sessions packets -> text, endpoint -> utterances
    manifests, data, training, brains               corpora -> batches -> training steps

The names below are imported when they are first used, because SpeechBrain takes seconds to
import and `w2v --help` should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # first: folders.py reads it while the names below are imported

__all__ = [
    "BeamSearch",
    "ChunkConfig",
    "EndpointRules",
    "LiveTranscript",
    "Overlap",
    "Transcript",
    "Wav2Vec2",
    "Wav2Vec2ASR",
    "Wav2Vec2CTC",
    "Wav2Vec2Encoder",
    "Wav2Vec2Pretraining",
    "Wav2Vec2StreamingASR",
    "Wav2Vec2Units",
    "Windows",
    "__version__",
    "align",
    "convert",
    "export_hf",
    "export_onnx",
    "load_checkpoint",
    "load_ngrams",
    "load_pretraining",
    "load_torchaudio",
    "load_vocabulary",
    "optimize",
    "set_language",
]

if TYPE_CHECKING:
    from w2v_plugin.alignment import align
    from w2v_plugin.attention import ChunkConfig
    from w2v_plugin.beam import BeamSearch
    from w2v_plugin.checkpoints import load_checkpoint, load_vocabulary
    from w2v_plugin.compression import optimize
    from w2v_plugin.conversion import convert, load_pretraining
    from w2v_plugin.ctc import Wav2Vec2CTC
    from w2v_plugin.endpoint import EndpointRules
    from w2v_plugin.hf_export import export_hf
    from w2v_plugin.interfaces import Wav2Vec2ASR, Wav2Vec2Encoder
    from w2v_plugin.languages import set_language
    from w2v_plugin.live import LiveTranscript
    from w2v_plugin.live_encoders import Overlap
    from w2v_plugin.model import Wav2Vec2
    from w2v_plugin.ngrams import load_ngrams
    from w2v_plugin.onnx_export import export_onnx
    from w2v_plugin.overlap import Windows
    from w2v_plugin.pretraining import Wav2Vec2Pretraining
    from w2v_plugin.streaming_asr import Wav2Vec2StreamingASR
    from w2v_plugin.torchaudio_checkpoints import load_torchaudio
    from w2v_plugin.transcripts import Transcript
    from w2v_plugin.unit_models import Wav2Vec2Units

_HOMES = {
    "attention": ("ChunkConfig",),
    "endpoint": ("EndpointRules",),
    "live": ("LiveTranscript",),
    "live_encoders": ("Overlap",),
    "streaming_asr": ("Wav2Vec2StreamingASR",),
    "model": ("Wav2Vec2",),
    "pretraining": ("Wav2Vec2Pretraining",),
    "ctc": ("Wav2Vec2CTC",),
    "compression": ("optimize",),
    "overlap": ("Windows",),
    "transcripts": ("Transcript",),
    "alignment": ("align",),
    "ngrams": ("load_ngrams",),
    "beam": ("BeamSearch",),
    "hf_export": ("export_hf",),
    "torchaudio_checkpoints": ("load_torchaudio",),
    "languages": ("set_language",),
    "checkpoints": ("load_checkpoint", "load_vocabulary"),
    "onnx_export": ("export_onnx",),
    "conversion": ("convert", "load_pretraining"),
    "interfaces": ("Wav2Vec2ASR", "Wav2Vec2Encoder"),
    "unit_models": ("Wav2Vec2Units",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its file (PEP 562)."""
    for file, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
