"""What is shared and what is a language's; rows of heads by the name of their symbol."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from w2v_plugin.adaptation import freeze_shared, of_language, rebuilt, take_rows
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary

SHAPE = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
KINDS = ({"adapter_dim": 4}, {"lora_rank": 2})


@pytest.mark.parametrize("adapters", KINDS)
def test_only_what_belongs_to_the_language_learns(adapters: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2CTC(
        Wav2Vec2(**SHAPE, norm_first=True, dropout=0.1, **adapters), vocab_size=5, mask_prob=0.3
    ).train()
    own, shared = freeze_shared(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if of_language(name)}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert own == sum(sizes[name] for name in learning)
    assert own + shared == sum(sizes.values())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # LoRA's `down` has a gradient from the second update on
        optimizer.zero_grad()
        model(torch.randn(2, 8000)).logits.square().sum().backward()
        optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == learning


def test_new_adapters_change_nothing_and_old_ones_go_on() -> None:
    torch.manual_seed(0)
    body = Wav2Vec2(**SHAPE, norm_first=True).eval()
    wav = torch.randn(1, 8000)
    expected = body(wav).context
    torch.manual_seed(1)
    for adapters in KINDS:
        new = rebuilt(body, "here", **adapters)
        assert torch.equal(new(wav).context, expected) and not new.training
        for name, parameter in new.named_parameters():
            if of_language(name):
                assert parameter.isfinite().all()
                nn.init.normal_(parameter)
        again = rebuilt(new, "here", dropout=0.2)
        assert torch.equal(again(wav).context, new(wav).context)
        assert not torch.equal(new(wav).context, expected)
        back = rebuilt(again, "here", adapter_dim=None, lora_rank=None, dropout=0.0)
        assert torch.equal(back(wav).context, expected) and back.config == body.config


def heads(new: int, old: int) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(8, new), nn.Linear(8, old)


def test_rows_are_taken_by_name() -> None:
    """Other indices, the other case, another blank: each row is that of its symbol."""
    german = CharVocabulary("zßaäé")
    known = CharVocabulary.from_symbols(
        {"A": 0, "é": 1, "-": 2, "|": 3, "<unk>": 4, "Z": 5, "Q": 6}, blank="-"
    )
    head, old = heads(len(german), 7)
    before = head.weight.detach().clone()
    taken = take_rows(head, german, old, known)
    pairs = {"<pad>": "-", "<unk>": "<unk>", "|": "|", "z": "Z", "a": "A", "é": "é"}
    assert taken == list(pairs)
    for symbol, there in pairs.items():
        row, old_row = german.lab2ind[symbol], known.lab2ind[there]
        assert torch.equal(head.weight[row], old.weight[old_row])
        assert torch.equal(head.bias[row], old.bias[old_row])
    for symbol in ("<s>", "</s>", "ß", "ä"):
        row = german.lab2ind[symbol]
        assert torch.equal(head.weight[row], before[row])


def test_the_same_case_comes_first() -> None:
    both = CharVocabulary("aA")
    head, old = heads(len(both), len(both))
    assert take_rows(head, both, old, both) == list(both.lab2ind)
    assert torch.equal(head.weight, old.weight) and torch.equal(head.bias, old.bias)


def test_a_letter_is_never_filled_from_the_blank() -> None:
    """Some vocabularies call the blank by what is a letter elsewhere."""
    known = CharVocabulary.from_symbols({"-": 0, "|": 1, "A": 2}, blank="-")
    vocabulary = CharVocabulary("-a")
    head, old = heads(len(vocabulary), 3)
    assert take_rows(head, vocabulary, old, known) == ["<pad>", "|", "a"]


def test_heads_of_other_bodies_are_refused() -> None:
    vocabulary = CharVocabulary()
    with pytest.raises(ValueError, match="width 16 has no rows for one of width 8"):
        take_rows(nn.Linear(8, 32), vocabulary, nn.Linear(16, 32), vocabulary)
