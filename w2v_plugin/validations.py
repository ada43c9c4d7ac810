"""What the validations of a fine-tuning tell: that it is over, or that something goes wrong.

All of it follows from what `steps.jsonl` says about the validations up to now, so that a run that
was interrupted stops, and warns, where it would have done so in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from w2v_plugin.frames import valid_frames

ALIKE = 5e-3  # share of the latents' energy that varies: 0.1 untrained, 0.3 and more trained
DEAF = 1e-9  # share of the logits' energy: rounding of float32 is 1e-14, a model that hears 1e-2
HARDLY = 75.0  # % of characters wrong: letters guessed by how common they are
NOTHING = 100.0  # % of words or characters wrong where only blanks are said


@torch.no_grad()
def spread(latents: Tensor, frame_lengths: Tensor | None = None) -> float:
    """How much of the energy of latents varies from frame to frame: 0 if all frames are alike.

    Parameters
    ----------
    latents : Tensor
        (batch, frames, channels).
    frame_lengths : Tensor, optional
        (batch,) valid frames; None for all.

    Example
    -------
    >>> frames = torch.tensor([[[1.0, 2.0], [1.0, 2.0]]])
    >>> spread(frames), spread(frames * torch.tensor([[[1.0], [-1.0]]]))
    (0.0, 1.0)
    """
    rows, frames, _ = latents.shape
    if frame_lengths is None:
        frame_lengths = torch.full((rows,), frames, device=latents.device)
    valid = valid_frames(frame_lengths, frames)[..., None]
    kind = torch.promote_types(latents.dtype, torch.float32)  # accelerators may lack float64
    x = latents.to(kind) * valid
    mean = x.sum(1, keepdim=True) / frame_lengths.clamp(min=1)[:, None, None]
    energy, varying = x.square().sum(), ((x - mean) * valid).square().sum()
    return float(varying / energy) if energy > 0 else 1.0


def rank(scores: Mapping[str, float], best_by: str) -> float:
    """What models are compared by; less is better.

    A WER of 100 and more tells nothing: silence has 100, and whoever begins to speak has more. So
    the CER decides as long as that is so, and whatever gets a word right is better.

    Parameters
    ----------
    scores : mapping
        Of a validation; without `best_by`, nothing is worse.
    best_by : str
        The score; if it is a WER, the CER beside it may count.

    Example
    -------
    >>> silent, babbling = {"WER": 100.0, "CER": 99.0}, {"WER": 103.0, "CER": 70.0}
    >>> rank(babbling, "WER") < rank(silent, "WER"), rank({"WER": 99.0, "CER": 99.0}, "WER")
    (True, 99.0)
    """
    score, beside = scores.get(best_by, math.inf), best_by.replace("WER", "CER")
    if score < NOTHING or beside == best_by:
        return score
    return NOTHING + scores.get(beside, math.inf)


def exhausted(
    records: Sequence[Mapping[str, float]], best_by: str, patience: int, since: int = 0
) -> bool:
    """Whether the last `patience` validations brought nothing better than those before.

    Parameters
    ----------
    records : sequence of mapping
        Validations: `step`, `valid_CER` and `valid_<score>`.
    best_by : str
        The score, see `rank`.
    patience : int
        Validations.
    since : int
        Validations at this update and before, and those before the first character was right, do
        not count: CTC says nothing but blanks at first.

    Example
    -------
    >>> records = [{"step": i, "valid_CER": x} for i, x in enumerate((100, 60, 50, 51, 50), 1)]
    >>> exhausted(records, "CER", 2), exhausted(records, "CER", 3)
    (True, False)
    """
    counted = [r for r in records if r["step"] > since]
    heard = [i for i, r in enumerate(counted) if r["valid_CER"] < NOTHING]
    scores = [rank(r, f"valid_{best_by}") for r in counted[heard[0] :]] if heard else []
    return len(scores) > 0 and len(scores) - 1 - scores.index(min(scores)) >= patience


def advice(
    records: Sequence[Mapping[str, float]], *, best_by: str = "WER", frozen_updates: int = 0
) -> list[str]:
    """What the last validation shows for the first time, with the remedy; mostly nothing.

    Parameters
    ----------
    records : sequence of mapping
        Validations: `step`, `valid_WER`, `valid_CER`, `valid_spread` (of latents) if the extractor
        is trained, and `valid_logit_spread` if that is below `DEAF`.
    best_by : str
        The score that picks the model.
    frozen_updates : int
        In these only the head learns, and little is to be expected.

    Example
    -------
    >>> records = [{"step": i, "valid_WER": 100.0, "valid_CER": 100.0} for i in (500, 1000)]
    >>> [text[:40] for text in advice(records)]
    ['Nothing but blanks after 1000 updates: C']
    """
    records = [r for r in records if r["step"] > frozen_updates]
    known = {name for end in range(len(records)) for name in symptoms(records[:end], best_by)}
    return [text for name, text in symptoms(records, best_by).items() if name not in known]


def symptoms(records: Sequence[Mapping[str, float]], best_by: str) -> dict[str, str]:
    """What is wrong at the last of these validations, by name."""
    if not records:
        return {}
    last, before = records[-1], records[:-1]
    step, wer, cer = int(last["step"]), last["valid_WER"], last["valid_CER"]
    if last.get("valid_spread", 1.0) < ALIKE and cer > 90:
        return {"dead extractor": DEAD.format(step=step, share=last["valid_spread"], cer=cer)}
    deaf = [r.get("valid_logit_spread", 1.0) < DEAF for r in records[-2:]]
    if len(deaf) == 2 and all(deaf) and cer > 90:
        return {"deaf": DEAF_MODEL.format(step=step, cer=cer)}
    if before and cer == before[-1]["valid_CER"] == NOTHING:
        return {"blanks": BLANKS.format(step=step)}
    lately = [r["valid_CER"] for r in records[-3:]]
    stuck = min(lately) > HARDLY and max(lately) < NOTHING and cer > 0.9 * lately[0]
    if stuck and len(lately) == 3:
        return {"plateau": PLATEAU.format(step=step, cer=cer)}
    improved = before and cer < min(80.0, 0.9 * max(r["valid_CER"] for r in before))
    if wer >= 99 and improved and best_by == "WER":
        return {"words": WORDS.format(wer=wer, cer=cer)}
    return {}


DEAD = (
    "The extractor died: at update {step} all frames sound alike to it ({share:.1e} of the energy "
    "of its output varies; {cer:.0f} % of the characters are wrong). It rarely recovers. Start "
    "again, in a new output folder, with a lower encoder_lr or a longer warm-up, or from a "
    "pretrained model with freeze_extractor: True."
)
DEAF_MODEL = (
    "The model hears nothing: at update {step}, and at the validation before, it answers the same "
    "at every frame of every utterance ({cer:.0f} % of the characters are wrong). Extractor or "
    "encoder died, which rarely recovers. Start again, in a new output folder, with a lower "
    "encoder_lr or a longer warm-up, or from a pretrained model with freeze_extractor: True."
)
BLANKS = (
    "Nothing but blanks after {step} updates: CTC learns first that most frames are blank, and "
    "only then to say something. If it stays so: more updates; a longer warm-up; an encoder_lr and "
    "head_lr of a third or of three times as much; smaller mask_prob; a pretrained model, with "
    "freeze_extractor: True; and an ear for whether the transcripts belong to the audio."
)
PLATEAU = (
    "{cer:.0f} % of the characters are still wrong after {step} updates: the model says the "
    "commonest letters, hardly what it hears. CTC can stay there for long, with one seed and not "
    "with another. What helps: an encoder_lr and head_lr of twice as much; a schedule that holds "
    "them for longer (hold: 0.6); more updates; a pretrained model, best one that learned texts."
)
WORDS = (
    "{wer:.1f} % of the words are wrong while the characters improve ({cer:.1f} %): WER can hardly "
    "tell yet which model is better. From 100 % on, CER picks; --best_by CER lets it pick always."
)
