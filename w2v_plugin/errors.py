"""What can go wrong, in words that say what was got, what was expected and what to do.

ValueError
├── BadAudio             a file or an array that is not usable speech
├── BadManifest          a line of a manifest that cannot be used
└── CheckpointMismatch   weights and architecture do not belong together
RuntimeError
├── NotStreamable        this architecture needs the whole utterance
├── DoesNotFit           training needs more memory than there is
├── CheckpointNotSaved   a full disk, most likely; the one before is still there
└── TrainingCollapsed    the codebook died; going on would waste the machine
"""


class BadAudio(ValueError):
    """An audio file or waveform cannot be used; the message names it and the remedy."""


class BadManifest(ValueError):
    """A manifest row cannot be used; the message names file and line."""


class CheckpointMismatch(ValueError):
    """A checkpoint lacks keys, has unknown keys, or has other shapes than the model."""


class NotStreamable(RuntimeError):
    """A model whose answer depends on the whole utterance was asked to work in chunks."""


class TrainingCollapsed(RuntimeError):
    """Self-supervised training reached the trivial solution (one code for everything)."""


class DoesNotFit(RuntimeError):
    """A training step needs more memory than there is; the message says what to lower."""


class CheckpointNotSaved(RuntimeError):
    """A checkpoint could not be written; the message says why and which one is still there."""
