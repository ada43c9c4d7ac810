"""From one language to another: which weights stay, which are new, which can be taken over.

shared      the body; frozen while adapters of a language learn
its own     adapters or LoRA updates, and the head (`of_language`)
taken over  rows of another language's head whose characters both languages have (`take_rows`)
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from w2v_plugin.adapters import LanguageAdapter
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.lora import LowRank
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary
from w2v_plugin.weights import load_strict, without_values

ADAPTERLESS: dict[str, Any] = {"adapter_dim": None, "lora_rank": None}


def of_language(name: str) -> bool:
    """Whether a parameter of a `Wav2Vec2CTC` belongs to one language.

    Example
    -------
    >>> of_language("wav2vec2.encoder.layers.0.adapter.norm.bias"), of_language("head.bias")
    (True, True)
    >>> of_language("wav2vec2.encoder.layers.0.ffn_in.bias")
    False
    """
    return ".adapter." in name or ".lora." in name or name.startswith("head.")


def freeze_shared(model: Wav2Vec2CTC) -> tuple[int, int]:
    """Let nothing learn but adapters, LoRA updates and the head.

    Dropout and layer drop act in the frozen body, too, as they do in training all of it.

    Returns
    -------
    tuple of int
        Parameters of the language, and those that it shares.

    Example
    -------
    >>> shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    >>> model = Wav2Vec2CTC(Wav2Vec2(**shape, lora_rank=2), vocab_size=4)
    >>> freeze_shared(model)[0]  # 4 projections * 2 * 16 * 2, and a head of 4 * 17
    324
    """
    model.wav2vec2.freeze_extractor()
    own = shared = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mine := of_language(name))
        own, shared = own + mine * parameter.numel(), shared + (not mine) * parameter.numel()
    return own, shared


def rebuilt(body: Wav2Vec2, source: str, **settings: Any) -> Wav2Vec2:
    """The same model with other settings of its constructor, sharing its weights.

    Parameters
    ----------
    body : Wav2Vec2
        What there is. Adapters that it has and the new model has not are left behind.
    source : str
        Where it comes from, for messages.
    **settings
        What changes. Adapters that are new start as nothing.

    Example
    -------
    >>> body = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7).eval()
    >>> with_updates, wavs = rebuilt(body, "an example", lora_rank=2).eval(), torch.randn(1, 4000)
    >>> torch.equal(with_updates(wavs).context, body(wavs).context)
    True
    """
    with without_values():
        new = Wav2Vec2(**body.config | settings).to(body.mask_embedding)
    for module in new.modules():
        if isinstance(module, (LanguageAdapter, LowRank)):
            module.reset()
    old, names = body.state_dict(), set(new.state_dict())
    left = {name: "not wanted" for name in old if name not in names and of_language(name)}

    def kept(name: str) -> str | None:
        return None if of_language(name) and name not in old else name

    load_strict(new, old, source, translate=kept, ignored=left, take_over=True)
    return new.train(body.training)


def merged(body: Wav2Vec2) -> Wav2Vec2:
    """The same answers without LoRA: its updates become part of the weights.

    Example
    -------
    >>> shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    >>> merged(Wav2Vec2(**shape, lora_rank=2)).config["lora_rank"] is None
    True
    """
    if body.config["lora_rank"] is None:
        return body
    new = rebuilt(body, "a model with LoRA", lora_rank=None)
    for name, update in body.named_modules():
        if isinstance(update, LowRank):  # called attention.lora.q, for attention.q
            linear = cast(nn.Linear, new.get_submodule(name.replace(".lora.", ".")))
            total = linear.weight.detach().double() + update.update().detach()
            linear.weight = nn.Parameter(total.to(linear.weight.dtype))
    return new


@torch.no_grad()
def take_rows(
    head: nn.Linear, vocabulary: CharVocabulary, old: nn.Linear, known: CharVocabulary
) -> list[str]:
    """Fill the rows of a new head whose symbols another head speaks already.

    A symbol is the same if it is written alike, or else alike but for its case, which is a
    convention of vocabularies and cannot be heard; the blank is the blank, whatever it is called.

    Parameters
    ----------
    head, old : torch.nn.Linear
        The head to be filled, and the one to take from, of the same width.
    vocabulary, known : CharVocabulary
        What their outputs mean.

    Returns
    -------
    list of str
        The symbols of `vocabulary` whose rows were taken, in its order.

    Raises
    ------
    ValueError
        The heads are for bodies of different widths.

    Example
    -------
    >>> german, english = CharVocabulary("aäz"), CharVocabulary("AZ")
    >>> take_rows(nn.Linear(4, 8), german, nn.Linear(4, 7), english)
    ['<pad>', '<s>', '</s>', '<unk>', '|', 'a', 'z']
    """
    if head.in_features != old.in_features:
        raise ValueError(
            f"A head of width {old.in_features} has no rows for one of width {head.in_features}. "
            "Give heads of the same body."
        )
    taken = []
    for row, label in sorted(vocabulary.ind2lab.items()):
        label_there: str | None
        if label == vocabulary.blank_label:
            label_there = known.blank_label
        else:
            spellings = (label, label.upper(), label.lower())
            label_there = next((x for x in spellings if x in known.lab2ind), None)
            if label_there == known.blank_label:
                continue
        if label_there is not None:
            head.weight[row] = old.weight[known.lab2ind[label_there]]
            head.bias[row] = old.bias[known.lab2ind[label_there]]
            taken.append(label)
    return taken
