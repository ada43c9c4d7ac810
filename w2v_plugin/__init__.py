"""wav2vec 2.0 for SpeechBrain: pretraining, CTC fine-tuning, transcription and embeddings.

How the audio passes through the files of this package:

    wavs ─ features ─► latents ─► masking ─► encoder (positions, attention) ─► context
                          │                                                       │
                          │         interfaces, cli ◄─ decoding ◄─ CTC head ◄─────┤
                          │                                                       │
                          └──► quantizer ─► targets ───────► losses ◄─────────────┘  training only

    model        puts these together; pretraining, ctc: the heads
    checkpoints  published weights <-> ours         folders  what training leaves for the interfaces
    audio        files -> wavs                      frames   samples <-> 20 ms frames
    manifests, data, training, brains               corpora -> batches -> training steps

The names below are imported when they are first used, because SpeechBrain takes seconds to
import and `w2v --help` should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # first: folders.py reads it while the names below are imported

__all__ = [
    "ChunkConfig",
    "Wav2Vec2",
    "Wav2Vec2ASR",
    "Wav2Vec2CTC",
    "Wav2Vec2Encoder",
    "Wav2Vec2Pretraining",
    "__version__",
    "export_hf",
    "load_checkpoint",
    "load_torchaudio",
]

if TYPE_CHECKING:
    from w2v_plugin.attention import ChunkConfig
    from w2v_plugin.checkpoints import export_hf, load_checkpoint
    from w2v_plugin.ctc import Wav2Vec2CTC
    from w2v_plugin.interfaces import Wav2Vec2ASR, Wav2Vec2Encoder
    from w2v_plugin.model import Wav2Vec2
    from w2v_plugin.pretraining import Wav2Vec2Pretraining
    from w2v_plugin.torchaudio_checkpoints import load_torchaudio

_HOMES = {
    "attention": ("ChunkConfig",),
    "checkpoints": ("export_hf", "load_checkpoint"),
    "torchaudio_checkpoints": ("load_torchaudio",),
    "interfaces": ("Wav2Vec2ASR", "Wav2Vec2Encoder"),
    "model": ("Wav2Vec2",),
    "pretraining": ("Wav2Vec2Pretraining",),
    "ctc": ("Wav2Vec2CTC",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its file (PEP 562)."""
    for file, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
