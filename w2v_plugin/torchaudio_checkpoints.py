"""torchaudio's wav2vec 2.0 -> ours. It nests the same names differently, has one head, no masks.

Surprising: the files that torchaudio publishes hold three outputs (and VoxPopuli's a fourth) that
its pipelines cut off after loading. They are recognized by their names, and cut here as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.frames import KERNELS, STRIDES
from w2v_plugin.hf_checkpoints import HF_NAMES
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.shapes import HEAD_DIM, shapes_of
from w2v_plugin.text import CharVocabulary
from w2v_plugin.weights import Names, load_strict, read_weights, translate, without_values

TORCHAUDIO_EPS = 1e-5  # of the waveform normalization in torchaudio's bundles
HEAD = ("aux.weight", "aux.bias")

# Our names -> theirs, derived from transformers'.
TORCHAUDIO_NAMES: Names = {
    ours: re.sub("^encoder", "encoder.transformer", theirs or "").replace(
        "feature_projection", "encoder.feature_projection"
    )
    for ours, theirs in HF_NAMES.items()
    if ours.startswith(("extractor", "projection", "encoder"))
} | {"head": "aux", "mask_embedding": None}


def torchaudio_name(name: str) -> str | None:
    """Name of our parameter in torchaudio; None if it has none there.

    Example
    -------
    >>> torchaudio_name("wav2vec2.encoder.norm.bias")
    'encoder.transformer.layer_norm.bias'
    """
    return translate(name.removeprefix("wav2vec2."), TORCHAUDIO_NAMES)


def load_torchaudio(
    model: nn.Module | Mapping[str, Tensor],
    *,
    heads: int | None = None,
    normalize: bool | None = None,
    padding: str = "exact",
) -> Wav2Vec2 | Wav2Vec2CTC:
    """Take over a torchaudio model.

    Parameters
    ----------
    model : torchaudio.models.Wav2Vec2Model or mapping of str to Tensor
        A module, such as a bundle's `get_model()`, or its state dict. Shapes are read off the
        weights; what they do not tell, off the module. A state dict is taken for pre-norm if
        its extractor has layer norms, as in all published models.
    heads : int, optional
        Of attention; None for those of the module, or 64 channels each, as all published models.
    normalize : bool, optional
        Whether it was trained on normalized waveforms. None for what the module does; of a state
        dict: those with layer norms in the extractor were (LARGE LV-60, XLSR), others not.
    padding : {"exact", "mask", "reference"}
        See `Wav2Vec2`.

    Returns
    -------
    Wav2Vec2 or Wav2Vec2CTC
        The latter if there is an auxiliary head; in evaluation mode.

    Raises
    ------
    CheckpointMismatch
        Another architecture, or weights that do not fit; every key is named.

    Example
    -------
    >>> import torch, torchaudio
    >>> theirs = torchaudio.models.wav2vec2_model(
    ...     "group_norm", [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2, False,
    ...     16, 0.0, 8, 4, 1, 2, 0.0, 32, 0.0, 0.0, False, 0.0, None)
    >>> load_torchaudio(theirs)(torch.randn(1, 16000)).context.shape
    torch.Size([1, 49, 16])
    """
    known: dict[str, Any] = {}
    if isinstance(model, nn.Module):
        known["normalize"] = getattr(model, "normalize_waveform", False)
        model = model.get_submodule("model") if hasattr(model, "normalize_waveform") else model
        known |= _attributes(model)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    given = {"heads": heads, "normalize": normalize}
    known |= {key: value for key, value in given.items() if value is not None}
    # copies: the caller's model goes on living
    copies = {key: tensor.detach().clone() for key, tensor in state.items()}
    return _take_over(copies, known, padding, "torchaudio model")


def load_torchaudio_file(path: str | Path, *, padding: str = "exact") -> Wav2Vec2 | Wav2Vec2CTC:
    """Load a state dict of torchaudio from a `.pt` or `.pth` file; see `load_checkpoint`.

    What `load_torchaudio` says about state dicts holds here. A file that torchaudio publishes is
    known by its name, and loses the outputs that torchaudio's pipelines cut off.
    """
    state, bundle = read_weights(Path(path)), _bundle(path)
    cut = getattr(bundle, "_remove_aux_axis", None) or ()
    if HEAD[0] in state and len(state[HEAD[0]]) == len(_labels(bundle)) + len(cut):
        kept = [row for row in range(len(state[HEAD[0]])) if row not in cut]
        state |= {key: state[key][kept] for key in HEAD}
    return _take_over(state, {}, padding, str(path))


def torchaudio_vocabulary(path: str | Path) -> CharVocabulary:
    """Labels of a file that torchaudio publishes; the blank, "-", comes first.

    Raises
    ------
    FileNotFoundError
        Nobody knows what the outputs of a file of another name mean.

    Example
    -------
    >>> torchaudio_vocabulary("wav2vec2_fairseq_base_ls960_asr_ls960.pth").decode_tokens([7, 4])
    'IA'
    """
    labels = _labels(_bundle(path))
    if not labels:
        raise FileNotFoundError(
            f"{path}: a state dict does not say what its outputs mean, and this is no file name "
            "that torchaudio publishes. Load it with `load_torchaudio`, and give its labels to "
            "`CharVocabulary.from_symbols`."
        )
    return CharVocabulary.from_symbols({label: i for i, label in enumerate(labels)}, labels[0])


def _take_over(
    state: dict[str, Tensor], known: dict[str, Any], padding: str, source: str
) -> Wav2Vec2 | Wav2Vec2CTC:
    """A model of the tensors in `state`."""
    if all(key.startswith("model.") for key in state):  # of a bundle that normalizes
        state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    found = shapes_of(lambda name: state.get(torchaudio_name(name) or ""))
    if absent := {"dim", "ffn_dim", "channels", "positions_kernel"} - found.keys():
        raise CheckpointMismatch(
            f"{source}: not the names of a Wav2Vec2Model: nothing tells its {min(absent)}. "
            "Expected the state dict of torchaudio.models.Wav2Vec2Model."
        )
    if "strides" not in known and tuple(found["kernels"]) != KERNELS:
        raise CheckpointMismatch(
            f"{source}: kernels {found['kernels']} are not the published {KERNELS}, so the strides "
            "are unknown. Pass the module itself."
        )
    layer_norm = found["extractor_norm"] == "layer"
    guessed = {
        "heads": max(1, found["dim"] // HEAD_DIM),
        "strides": list(STRIDES),
        "norm_first": layer_norm,
        "normalize": layer_norm,
    }
    shapes = guessed | found | known
    with without_values():
        body = Wav2Vec2(**shapes, normalize_eps=TORCHAUDIO_EPS, padding=padding)
        head = state.get(HEAD[0])
        ours = body if head is None else Wav2Vec2CTC(body, vocab_size=len(head))
    load_strict(ours, state, source, translate=torchaudio_name, format="torchaudio", take_over=True)
    return ours.eval()


def _attributes(model: Any) -> dict[str, Any]:
    """What a module knows and its weights do not."""
    layer = model.encoder.transformer.layers[0]
    return {
        "heads": layer.attention.num_heads,
        "norm_first": layer.layer_norm_first,  # of a layer: the transformer's own is inverted
        "strides": [block.conv.stride[0] for block in model.feature_extractor.conv_layers],
    }


def _bundle(path: str | Path) -> Any:
    """torchaudio's description of a file that it publishes, or None."""
    import torchaudio.pipelines  # here: nobody else needs it

    bundles = vars(torchaudio.pipelines).values()
    return next((b for b in bundles if getattr(b, "_path", None) == Path(path).name), None)


def _labels(bundle: Any) -> tuple[str, ...]:
    return bundle.get_labels() if hasattr(bundle, "get_labels") else ()
