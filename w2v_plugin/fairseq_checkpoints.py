"""fairseq's checkpoints -> ours: pretrained (Wav2Vec2Model), fine-tuned (Wav2VecCtc), MMS.

A `.pt` file holds the weights (`model`), how they were trained (`cfg` or `args`) and sometimes the
dictionary of its outputs (`task_state`). MMS has one `adapter` per language besides, each with a
head and a dictionary of its own. Files are read by pickles.py, without fairseq and without
executing them.

Surprising: the CTC blank is called `<s>` here. It is row 0 of the head, as transformers' `<pad>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.fairseq_options import DETAILS, SHAPES, build_fairseq, flat_options
from w2v_plugin.hf_checkpoints import AnyModel
from w2v_plugin.pickles import read_pickle
from w2v_plugin.shapes import shapes_of
from w2v_plugin.text import CharVocabulary
from w2v_plugin.weights import Names, load_strict, translate

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # rows 0 to 3, never written into a dictionary file
BODY, HEAD = "w2v_encoder.w2v_model.", "w2v_encoder.proj"
IGNORED = ("_ema", "num_updates")  # states of the training, kept among the weights
SHOWN = 20  # names in an error message

# Our names -> theirs; {} is the number of a layer, None has no counterpart.
FAIRSEQ_NAMES: Names = {
    "extractor.layers.{}.conv": "feature_extractor.conv_layers.{}.0",
    "projection.norm": "layer_norm",
    "projection.linear": "post_extract_proj",
    "mask_embedding": "mask_emb",
    "encoder.positions.conv": "encoder.pos_conv.0",
    "encoder.norm": "encoder.layer_norm",
    "encoder.layers.{}.attention.q": "encoder.layers.{}.self_attn.q_proj",
    "encoder.layers.{}.attention.k": "encoder.layers.{}.self_attn.k_proj",
    "encoder.layers.{}.attention.v": "encoder.layers.{}.self_attn.v_proj",
    "encoder.layers.{}.attention.out": "encoder.layers.{}.self_attn.out_proj",
    "encoder.layers.{}.attention_norm": "encoder.layers.{}.self_attn_layer_norm",
    "encoder.layers.{}.ffn_in": "encoder.layers.{}.fc1",
    "encoder.layers.{}.ffn_out": "encoder.layers.{}.fc2",
    "encoder.layers.{}.ffn_norm": "encoder.layers.{}.final_layer_norm",
    "encoder.layers.{}.adapter.norm.weight": "encoder.layers.{}.adapter_layer.ln_W",
    "encoder.layers.{}.adapter.norm.bias": "encoder.layers.{}.adapter_layer.ln_b",
    "encoder.layers.{}.adapter.linear_1.weight": "encoder.layers.{}.adapter_layer.W_a",
    "encoder.layers.{}.adapter.linear_1.bias": "encoder.layers.{}.adapter_layer.b_a",
    "encoder.layers.{}.adapter.linear_2.weight": "encoder.layers.{}.adapter_layer.W_b",
    "encoder.layers.{}.adapter.linear_2.bias": "encoder.layers.{}.adapter_layer.b_b",
    "quantizer.codebook": "quantizer.vars",
    "quantizer.logits": "quantizer.weight_proj",
    "quantizer.updates": None,
    "project_targets": "project_q",
    "project_context": "final_proj",
    "head": HEAD,
}
# Where the norms of the extractor are, by extractor_mode.
EXTRACTOR_NORM_NAMES = {
    "default": "feature_extractor.conv_layers.{}.2",
    "layer_norm": "feature_extractor.conv_layers.{}.2.1",
}


def fairseq_name(name: str, *, mode: str = "default", fine_tuned: bool = False) -> str | None:
    """Name of our parameter in fairseq; None if it has none there.

    Parameters
    ----------
    name : str
        Ours.
    mode : {"default", "layer_norm"}
        fairseq's extractor_mode.
    fine_tuned : bool
        Whether the file holds a Wav2VecCtc.

    Example
    -------
    >>> fairseq_name("wav2vec2.encoder.layers.3.ffn_in.bias", fine_tuned=True)
    'w2v_encoder.w2v_model.encoder.layers.3.fc1.bias'
    """
    names = {"extractor.layers.{}.norm": EXTRACTOR_NORM_NAMES[mode], **FAIRSEQ_NAMES}
    theirs = translate(name.removeprefix("wav2vec2."), names)
    return BODY + theirs if theirs and fine_tuned and not theirs.startswith(HEAD) else theirs


def load_fairseq(path: str | Path, *, padding: str = "exact") -> AnyModel:
    """Load a checkpoint of fairseq.

    Parameters
    ----------
    path : str or Path
        The `.pt` file, in the zip format or the one before PyTorch 1.6.
    padding : {"exact", "mask", "reference"}
        See `Wav2Vec2`; fairseq itself does what "mask" does.

    Returns
    -------
    Wav2Vec2Pretraining, Wav2Vec2CTC or Wav2Vec2
        By the heads found among the weights; in evaluation mode.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CheckpointMismatch
        It is damaged or unsafe, has another architecture, or weights that do not fit; every key
        is named.

    Example
    -------
    >>> load_fairseq("no/such/file.pt")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no/such/file.pt: no such file. Expected a checkpoint.
    """
    return read_fairseq(path).model(padding)


def fairseq_vocabulary(path: str | Path, language: str | None = None) -> CharVocabulary:
    """What the outputs of a checkpoint mean.

    Parameters
    ----------
    path : str or Path
        The `.pt` file. If it has no dictionary inside, the `dict.ltr.txt` beside it is read.
    language : str, optional
        Which one of an MMS file; None for the head that it holds itself.

    Raises
    ------
    FileNotFoundError
        There is no dictionary.
    ValueError
        It does not belong to the head, or there is no such language.
    """
    checkpoint = read_fairseq(path)
    return checkpoint.vocabulary() if language is None else checkpoint.language(language)[1]


@dataclass
class FairseqCheckpoint:
    """What was in a file; see `read_fairseq`."""

    path: Path
    weights: dict[str, Any]  # in fairseq's names; tensors, except for the ignored ones
    options: dict[str, Any]  # see `flat_options`
    symbols: list[str] | None  # of the outputs, if the file has a dictionary
    adapters: dict[str, Any]  # of an MMS file: language -> model, task_state

    @property
    def languages(self) -> list[str]:
        """Those that have an adapter, sorted; empty unless it is an MMS file."""
        return sorted(self.adapters)

    def name(self, ours: str) -> str | None:
        """Name of our parameter in this file; None if it has none."""
        mode = self.options.get("extractor_mode", "default")
        return fairseq_name(ours, mode=mode, fine_tuned=_is_fine_tuned(self.weights))

    def model(self, padding: str = "exact") -> AnyModel:
        """The model, in evaluation mode; see `load_fairseq`."""
        source, outputs = str(self.path), None
        if _is_fine_tuned(self.weights) and not (outputs := _outputs(self.weights)):
            raise CheckpointMismatch(
                f"{source}: fine-tuned, but without {HEAD}. Only CTC models and pretrained ones "
                "can be loaded."
            )
        weights = _tensors(self.weights, source)
        found = shapes_of(lambda ours: weights.get(str(self.name(ours))))
        model = build_fairseq(
            self.options,
            outputs=outputs,
            quantizer=any(key.startswith(("quantizer.", "project_q.")) for key in weights),
            adapter_dim=found.get("adapter_dim"),
            padding=padding,
            source=source,
        )
        ignored = {key: "only training needs it" for key in weights if _is_ignored(key)}
        fill = partial(load_strict, translate=self.name, ignored=ignored, format="fairseq")
        try:
            fill(model, weights, source)
        except CheckpointMismatch as error:
            names = SHAPES | DETAILS
            contradictions = [
                f"{names[key]}={self.options[names[key]]!r}, the weights have {value!r}"
                for key, value in found.items()
                if key in names and self.options.get(names[key], value) != value
            ]
            if not contradictions:
                raise
            raise CheckpointMismatch(
                f"{source}: its configuration contradicts its weights: "
                f"{'; '.join(contradictions)}. Take the file as fairseq wrote it. {error}"
            ) from error
        return model.eval()

    def vocabulary(self) -> CharVocabulary:
        """What the outputs mean; see `fairseq_vocabulary`."""
        if self.symbols is not None:
            return _vocabulary(self.symbols, str(self.path), self.weights)
        expected = f"dict.{self.options.get('labels', 'ltr')}.txt"
        found = list(self.path.parent.glob(expected)) or sorted(self.path.parent.glob("dict.*.txt"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{self.path}: the file has no dictionary, and there are {len(found)} beside it. "
                f"It says what the outputs mean: put the one that the model was fine-tuned with "
                f"into {self.path.parent}, as {expected}."
            )
        return _vocabulary([*SPECIALS, *read_dictionary(found[0])], str(found[0]), self.weights)

    def language(self, name: str) -> tuple[dict[str, Tensor], CharVocabulary]:
        """Adapters, head and vocabulary of one language (MMS).

        Parameters
        ----------
        name : str
            One of `languages`.

        Returns
        -------
        tuple
            Weights in our names ("wav2vec2.encoder.layers.0.adapter.norm.weight", …,
            "head.bias"), and the vocabulary of the head.

        Raises
        ------
        ValueError
            There is no such language.
        CheckpointMismatch
            Keys are missing or unknown.
        """
        if name not in self.adapters:
            some = ", ".join(self.languages[:SHOWN]) or "none"
            more = ", …" if len(self.adapters) > SHOWN else ""
            raise ValueError(
                f"{self.path}: no adapter for {name!r}; it has {len(self.adapters)} languages: "
                f"{some}{more}. Choose one of `read_fairseq(path).languages`."
            )
        source = f"{self.path}, language {name}"
        weights = _tensors(self.adapters[name]["model"], source)
        adapter = [ours for ours in FAIRSEQ_NAMES if ".adapter." in ours]
        layers = range(self.options["encoder_layers"])
        ours = [f"wav2vec2.{key.format(layer)}" for layer in layers for key in adapter]
        theirs = {key: str(self.name(key)) for key in (*ours, "head.weight", "head.bias")}
        if wrong := sorted(set(theirs.values()) ^ set(weights)):
            raise CheckpointMismatch(
                f"{source}: {len(wrong)} keys are missing or unknown, such as {wrong[0]}. "
                "Expected an adapter for every layer and a head; copy or download the file again."
            )
        symbols = _symbols(self.adapters[name].get("task_state"))
        vocabulary = _vocabulary(symbols or [], source, weights)
        return {key: weights[value].clone() for key, value in theirs.items()}, vocabulary


def read_fairseq(path: str | Path) -> FairseqCheckpoint:
    """Read a file of fairseq without executing it.

    Parameters
    ----------
    path : str or Path
        The `.pt` file.

    Returns
    -------
    FairseqCheckpoint
        From which model, vocabulary and languages can be taken. Its tensors are mapped from the
        file, as far as possible; what is taken from it is a copy.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CheckpointMismatch
        It is damaged or unsafe, or holds something else.
    """
    path = Path(path)
    content = read_pickle(path)
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise CheckpointMismatch(
            f"{path}: not a checkpoint of fairseq. Expected a dict with `model` (weights) and "
            "`cfg` or `args` (how they were trained)."
        )
    config = content.get("cfg") or content.get("args")
    if not isinstance(config, dict):
        raise CheckpointMismatch(
            f"{path}: no configuration (`cfg` or `args`), which says the number of attention "
            "heads and whether audio is normalized. Take the file as fairseq wrote it."
        )
    options = flat_options(config, fine_tuned=_is_fine_tuned(weights), source=str(path))
    symbols = _symbols(content.get("task_state"))
    adapters = content.get("adapter") or {}
    if not all(isinstance(entry.get("model"), dict) for entry in adapters.values()):
        raise CheckpointMismatch(
            f"{path}: `adapter` is not what MMS has there. Expected languages, each with a `model`."
        )
    return FairseqCheckpoint(path, weights, options, symbols, adapters)


def read_dictionary(path: str | Path) -> list[str]:
    """Symbols of a dict.ltr.txt, in the order of their rows from 4 on.

    Parameters
    ----------
    path : str or Path
        Lines of a symbol and a count. The four special symbols are not among them.

    Raises
    ------
    CheckpointMismatch
        A line is not of that form.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "dict.ltr.txt")
    ...     _ = path.write_text("| 94802\\nE 51860\\n")
    ...     read_dictionary(path)
    ['|', 'E']
    """
    symbols = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        symbol, _, count = line.rstrip().rpartition(" ")
        if not symbol or not count.isdecimal():
            raise CheckpointMismatch(
                f"{path}, line {number}: got {line!r}, expected a symbol and a count, as "
                '"E 51860". Take the dictionary as fairseq wrote it.'
            )
        symbols.append(symbol)
    return symbols


def _is_fine_tuned(weights: Mapping[str, Any]) -> bool:
    return any(key.startswith(BODY) for key in weights)


def _is_ignored(key: str) -> bool:
    return key.rpartition(".")[2] in IGNORED


def _outputs(weights: Mapping[str, Any]) -> int:
    """Rows of the head; 0 if there is none."""
    head = weights.get(f"{HEAD}.weight")
    return len(head) if isinstance(head, Tensor) and head.ndim else 0


def _tensors(weights: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Checked; adapters without their first axis, which counts them."""
    tensors = dict(weights)
    for key, tensor in weights.items():
        if not isinstance(tensor, Tensor) and not _is_ignored(key):
            raise CheckpointMismatch(
                f"{source}: {key} is a {type(tensor).__name__}, expected a tensor. Take the file "
                "as fairseq wrote it."
            )
        if ".adapter_layer." in key:
            if tensor.ndim == 0 or len(tensor) != 1:
                raise CheckpointMismatch(
                    f"{source}: {key} has shape {tuple(tensor.shape)}, expected (1, …), one "
                    "adapter. Published models have no more."
                )
            tensors[key] = tensor[0]
    return tensors


def _symbols(task_state: Any) -> list[str] | None:
    """Symbols of a pickled dictionary, special ones included; None if there is none."""
    dictionary = task_state.get("target_dictionary") if isinstance(task_state, dict) else None
    return dictionary.get("symbols") if isinstance(dictionary, dict) else None


def _vocabulary(symbols: list[str], source: str, weights: Mapping[str, Any]) -> CharVocabulary:
    rows = {symbol: row for row, symbol in enumerate(symbols)}
    vocabulary = CharVocabulary.from_symbols(rows, blank=SPECIALS[0])
    vocabulary.fit(_outputs(weights), source)
    return vocabulary
