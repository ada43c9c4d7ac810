"""Published checkpoints -> our models, whoever wrote them: the format is told by what is there."""

from __future__ import annotations

import logging
from pathlib import Path

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.fairseq_checkpoints import fairseq_vocabulary, load_fairseq
from w2v_plugin.hf_checkpoints import AnyModel, hf_vocabulary, load_hf
from w2v_plugin.languages import set_language
from w2v_plugin.pickles import read_pickle
from w2v_plugin.text import CharVocabulary
from w2v_plugin.torchaudio_checkpoints import load_torchaudio_file, torchaudio_vocabulary

logger = logging.getLogger(__name__)


def load_checkpoint(
    source: str | Path, *, padding: str = "exact", language: str | None = None
) -> AnyModel:
    """Load a published checkpoint, strictly and without executing code from it.

    Parameters
    ----------
    source : str or Path
        - A folder in transformers' format: config.json with model.safetensors or
          pytorch_model.bin, in one piece or in several with an index.
        - The id of one on the Hugging Face hub, as "facebook/wav2vec2-base".
        - A file of fairseq (`.pt`).
        - A state dict of torchaudio (`.pt`, `.pth`), see `load_torchaudio`.
    padding : {"exact", "mask", "reference"}
        See `Wav2Vec2`; transformers itself does what "reference" does, fairseq what "mask" does.
    language : str, optional
        Of a multilingual model (MMS), see `set_language`; None for the one it was saved with.

    Returns
    -------
    Wav2Vec2, Wav2Vec2Pretraining or Wav2Vec2CTC
        By the heads found among the weights; in evaluation mode, in float32. Its `load_report`
        says what was read, renamed, ignored and missing.

    Raises
    ------
    FileNotFoundError
        There is no such folder or file, no such model on the hub, or a file is missing.
    CheckpointMismatch
        Another architecture, or weights that do not fit; every key is named.
    ValueError
        There is no such language; those that there are, are listed.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.hf_export import export_hf
    >>> from w2v_plugin.model import Wav2Vec2
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_hf(model, folder)
    ...     model = load_checkpoint(folder)
    >>> model.load_report.format, model.load_report.read
    ('transformers', 35)
    """
    source = _folder_of(source)
    if not Path(source).is_file():
        model: AnyModel = load_hf(source, padding=padding)
    elif _is_fairseq(source):
        model = load_fairseq(source, padding=padding)
    else:
        model = load_torchaudio_file(source, padding=padding)
    logger.info("%s", report := model.load_report)
    if language is not None:
        set_language(model, source, language)
        logger.info("%s", model.load_report)
        model.load_report = report
    return model


def load_vocabulary(
    source: str | Path, model: Wav2Vec2CTC, language: str | None = None
) -> CharVocabulary:
    """What the outputs of a checkpoint's CTC head mean.

    Parameters
    ----------
    source, language
        As for `load_checkpoint`.
    model : Wav2Vec2CTC
        What `load_checkpoint` made of it.

    Raises
    ------
    FileNotFoundError
        The vocabulary is in a file of its own, and that is missing.
    ValueError
        It is damaged, has no such language, or does not fit the head.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.hf_export import export_hf
    >>> from w2v_plugin.model import Wav2Vec2
    >>> body = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> model = Wav2Vec2CTC(body, vocab_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_hf(model, folder, CharVocabulary())
    ...     load_vocabulary(folder, model).decode_tokens([7, 4, 19, 7, 6])
    'A CAT'
    """
    source = _folder_of(source)
    if not Path(source).is_file():
        vocabulary = hf_vocabulary(source, language)
    elif _is_fairseq(source):
        vocabulary = fairseq_vocabulary(source, language)
    else:
        vocabulary = torchaudio_vocabulary(source)
    vocabulary.fit(model.head.out_features, str(source))
    return vocabulary


def _folder_of(source: str | Path) -> str | Path:
    """The folder of a weights file that lies beside its config.json; else `source`."""
    path = Path(source)
    beside = path.is_file() and path.with_name("config.json").is_file()
    return path.parent if beside else source


def _is_fairseq(path: str | Path) -> bool:
    """Whether a file holds more than tensors: fairseq saves the configuration with them."""
    if Path(path).suffix == ".safetensors":
        return False
    content = read_pickle(path)
    return isinstance(content, dict) and isinstance(content.get("model"), dict)
