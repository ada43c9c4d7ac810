"""wav2vec 2.0 for SpeechBrain."""

__version__ = "0.1.0"
