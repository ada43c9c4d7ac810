"""What happens to gradients between a batch and an optimizer."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import DropChunk, SpeedPerturb
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfigRandomSampler
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.brains import CTCBrain
from w2v_plugin.collapse import check_collapse
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.data import collate
from w2v_plugin.decoding import greedy
from w2v_plugin.errors import BadAudio, TrainingCollapsed
from w2v_plugin.model import PADDING_MODES, Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.text import CharVocabulary
from w2v_plugin.training import StepBrain, sample_chunk, tri_stage

STREAMS: dict[str, Any] = {"extractor_norm": "layer", "normalize": False}


class Slope(StepBrain):
    """Loss: the sum of weight * x over the elements of a batch."""

    def compute_forward(self, batch: Any, stage: sb.Stage) -> Tensor:
        return self.modules.model(batch.x)

    def compute_objectives(self, predictions: Tensor, batch: Any, stage: sb.Stage) -> Tensor:
        return self.mean_loss(predictions.sum(), torch.tensor(float(batch.x.numel())))

    def on_fit_batch_end(self, *_: object) -> None:
        pass


def slope(tmp_path: Path, accumulate: int) -> Slope:
    hparams = {
        "seed": 1,
        "output_folder": str(tmp_path),
        "log_every": 100,
        "schedule": partial(tri_stage, total=10),
        "grad_accumulation_factor": accumulate,
        "max_grad_norm": 1e9,
        "lr": 1.0,
    }
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    options = {"device": "cpu"}
    brain = Slope({"model": model}, torch.optim.SGD, hparams=hparams, run_opts=options)
    brain.init_optimizers()
    return brain


@pytest.mark.parametrize("cuts", [(1, 5), (3, 3), (2, 1, 3), (5, 1)])
def test_micro_batches_of_any_size_are_one_batch(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """The update is that of the mean over all elements, however they were cut."""
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])[:, None]
    weights = []
    for parts in (x.split(list(cuts)), [x]):
        brain = slope(tmp_path, len(parts))
        for part in parts:
            brain.step += 1
            brain.fit_batch(SimpleNamespace(x=part))
        assert brain.optimizer_step == 1
        weights.append(brain.model.weight.detach().clone())
    # float32, a handful of additions of numbers below 64
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-6)


def tuner(tmp_path: Path, freeze: int, body: dict[str, Any] = STREAMS, **more: Any) -> CTCBrain:
    torch.manual_seed(0)
    wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7, **body)
    hparams = {
        "seed": 1,
        "output_folder": str(tmp_path),
        "log_every": 100,
        "schedule": partial(tri_stage, total=10),
        "vocabulary": CharVocabulary(),
        "encoder_lr": 0.01,
        "head_lr": 0.01,
        "freeze_encoder_updates": freeze,
        "keep_latents": False,
        "best_by": "WER",
        **more,
    }
    model = Wav2Vec2CTC(wav2vec2, 32)
    brain = CTCBrain({"model": model}, torch.optim.SGD, hparams=hparams, run_opts={"device": "cpu"})
    brain.init_optimizers()
    return brain


def speech_row(name: str) -> dict[str, Any]:
    wav = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    return {"id": name, "sig": wav, "tokens": torch.tensor([7, 5, 9]), "wrd": "AEN"}


def speech() -> PaddedBatch:
    return PaddedBatch([speech_row("a")])


def test_a_frozen_encoder_collects_no_gradients(tmp_path: Path) -> None:
    """Only the head moves at first, and the first step of the encoder is that of one batch."""
    brain = tuner(tmp_path, freeze=2)
    body = brain.model.wav2vec2.projection.linear.weight
    before, head = body.detach().clone(), brain.model.head.weight.detach().clone()
    for _ in range(2):
        brain.step += 1
        brain.fit_batch(speech())
        assert all(p.grad is None for p in brain.model.parameters())
    assert torch.equal(body, before) and not torch.equal(brain.model.head.weight, head)
    brain.step += 1
    brain.fit_batch(speech())
    assert not torch.equal(body, before)


def draws(size: tuple[int, int], left: tuple[int, int], **chances: float) -> Any:
    """SpeechBrain's sampler: sizes in frames, left contexts in chunks."""
    chances = {"chunkwise_prob": 1.0, "limited_left_context_prob": 1.0, **chances}
    return DynChunkTrainConfigRandomSampler(
        chunk_size_min=size[0],
        chunk_size_max=size[1],
        left_context_chunks_min=left[0],
        left_context_chunks_max=left[1],
        **chances,
    )


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (None, None),
        (draws((24, 24), (3, 3), chunkwise_prob=0.0), None),
        (draws((24, 24), (3, 3)), ChunkConfig(24, 72)),
        (draws((24, 24), (3, 3), limited_left_context_prob=0.0), ChunkConfig(24)),
    ],
)
def test_chunks_of_a_batch_are_in_frames(sampler: Any, expected: ChunkConfig | None) -> None:
    hparams = SimpleNamespace(**({} if sampler is None else {"chunk_sampler": sampler}))
    assert sample_chunk(hparams, sb.Stage.TRAIN) == expected
    assert sample_chunk(hparams, sb.Stage.VALID) is None


def test_a_batch_is_trained_in_the_chunk_that_was_drawn(tmp_path: Path) -> None:
    """And not in another one: the logits are those of a model that is asked for it."""
    brain = tuner(tmp_path, 0, chunk_sampler=draws((5, 5), (1, 1)))
    logits = [
        brain.compute_forward(speech(), sb.Stage.TRAIN).logits,
        *(brain.model(*speech().sig, chunk=chunk).logits for chunk in (ChunkConfig(5, 5), None)),
    ]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_chunks_follow_from_seed_step_and_rank(tmp_path: Path) -> None:
    """So an interrupted run goes on with those that it would have had; ranks have their own."""
    brain = tuner(tmp_path, 0, chunk_sampler=draws((1, 10**6), (1, 10**6)))

    def drawn(step: int, rank: int) -> ChunkConfig | None:
        torch.rand(step + 1)  # whatever was drawn before
        brain.step, brain.optimizer_step, brain.ranks, brain.rank = step + 1, step, 2, rank
        brain.on_fit_batch_start(speech(), should_step=True)
        return brain.chunk(sb.Stage.TRAIN)

    places = [(step, rank) for step in range(3) for rank in range(2)]
    once, again = [drawn(*place) for place in places], [drawn(*place) for place in places]
    assert once == again and len({*once}) == len(places)


def test_validation_sees_each_chunk_in_turn(tmp_path: Path) -> None:
    """The first one has plain names and gives the loss; each has the score it has alone.

    The text is what the model says of the whole, so that there are no errors but in chunks.
    """
    sampler = draws((1, 1), (1, 1))  # for training only
    brain = tuner(tmp_path, 0, valid_chunks=[[3, 0], None, 8], chunk_sampler=sampler)
    brain.modules.eval()
    torch.nn.init.normal_(brain.model.head.weight, std=5.0)
    batch = speech()
    out = brain.model(*batch.sig)
    (said,) = greedy(out.logits, out.frame_lengths)
    batch.wrd = [brain.hparams.vocabulary.decode_tokens(said)]
    scores, losses = {}, {}
    for chunk in brain.valid_chunks:
        brain.eval_chunk = chunk
        brain.on_stage_start(sb.Stage.TEST)
        losses[chunk] = brain.evaluate_batch(batch, sb.Stage.TEST)
        scores[chunk] = brain.score(0.0)["CER"]
    brain.on_stage_start(sb.Stage.VALID)
    loss = brain.evaluate_batch(batch, sb.Stage.VALID)
    found = brain.score(0.0)
    assert torch.equal(loss, losses[ChunkConfig(3, 0)]) and brain.eval_chunk is None
    assert found["CER_full"] == 0.0 < found["CER"] == scores[ChunkConfig(3, 0)]
    assert found["CER_160ms"] == scores[ChunkConfig(8)] != found["CER"]
    names = [f"{name}{suffix}" for suffix in ("", "_full", "_160ms") for name in ("WER", "CER")]
    assert set(found) == {"loss", "spread", *names}


def test_collapse_is_called_on_enough_frames_only() -> None:
    """A batch without usable files has perplexity 1, too, and is no reason to stop."""
    record = {"code_perplexity": 1.0, "least_perplexity": 1.0, "contrastive": 0.0, "accuracy": 0.0}
    check_collapse(record, frames=0, codes=160)
    alive = {**record, "code_perplexity": 9.0, "least_perplexity": 8.5}
    check_collapse(alive, frames=1000, codes=160)
    with pytest.raises(TrainingCollapsed, match=r"means nothing.*init_codes.*stop_on_collapse"):
        check_collapse(record, frames=1000, codes=160)


def test_a_slow_collapse_warns_first(caplog: pytest.LogCaptureFixture) -> None:
    """At 5 % of the codes in the poorest group, each time, and the run goes on; below 2, too, if
    told so."""
    record = {"code_perplexity": 40.0, "least_perplexity": 7.9, "contrastive": 3.0, "accuracy": 0.1}
    check_collapse(record, frames=1000, codes=160)
    check_collapse({**record, "least_perplexity": 15.9}, frames=1000, codes=320)
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]
    assert "Few codes are left" in caplog.text and "7.90 in the poorest group" in caplog.text
    caplog.clear()
    check_collapse({**record, "least_perplexity": 7.9}, frames=1000, codes=40)
    assert not caplog.records
    gone = {**record, "code_perplexity": 1.5, "least_perplexity": 1.0}
    for _ in range(2):
        check_collapse(gone, frames=1000, codes=160, stop=False)
    assert caplog.text.count("The codebook collapsed") == 2 and "Going on" in caplog.text


# --- fine-tuning ---------------------------------------------------------------------------------


def speed(**more: Any) -> Augmenter:
    """SpeechBrain's Augmenter: speed, and a copy of what there was before if asked to."""
    parts = [SpeedPerturb(16000, speeds=[80, 125]), DropChunk(drop_length_low=100)]
    return Augmenter(augmentations=parts, **more)


def test_augmentation_follows_from_seed_and_step(tmp_path: Path) -> None:
    """Whatever was drawn before, Python's numbers included; another step has other audio."""
    brain = tuner(tmp_path, 0, augment=speed(shuffle_augmentations=True))

    def heard(step: int) -> Tensor:
        random.seed(step + 77)
        torch.rand(3)
        brain.step, brain.optimizer_step = step + 1, step
        brain.on_fit_batch_start(speech(), should_step=True)
        return brain.augmented(speech())[0]

    first = [heard(step) for step in range(4)]
    random.random()
    assert all(map(torch.equal, first, [heard(step) for step in range(4)]))
    assert len({tuple(wav[0, :50].tolist()) for wav in first}) > 1


def test_only_training_is_augmented(tmp_path: Path) -> None:
    brain = tuner(tmp_path, 0, augment=speed())
    brain.modules.eval()
    plain = brain.model(*speech().sig).logits
    brain.on_stage_start(sb.Stage.VALID)
    assert torch.equal(brain.compute_forward(speech(), sb.Stage.VALID).logits, plain)
    assert brain.compute_forward(speech(), sb.Stage.TRAIN).logits.shape != plain.shape


def test_copies_that_an_augmenter_adds_have_their_transcripts(tmp_path: Path) -> None:
    """With the original beside it: two rows, and the loss is that of both."""
    brain = tuner(tmp_path, 0, augment=speed(concat_original=True))
    out = brain.compute_forward(speech(), sb.Stage.TRAIN)
    assert len(out.logits) == 2
    brain.step = 1
    brain.compute_objectives(out, speech(), sb.Stage.TRAIN)
    assert float(brain.counted) == 2 * 3  # characters


def test_augmentation_and_kept_latents_exclude_each_other(tmp_path: Path) -> None:
    """Only where the extractor is frozen: else nothing is kept."""
    brain = tuner(tmp_path, 0, augment=speed(), keep_latents=True)
    brain.check_settings()
    brain.model.wav2vec2.freeze_extractor()
    with pytest.raises(ValueError, match=r"augment changes .* --keep_latents False"):
        brain.on_fit_start()
    brain = tuner(tmp_path, 0, augment="augment/speed.yaml")
    with pytest.raises(ValueError, match=r"got 'augment/speed.yaml', .* '!include:augment"):
        brain.on_fit_start()


@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_latents_are_kept_only_where_the_batch_does_not_matter(
    norm: str, padding: str, tmp_path: Path
) -> None:
    """A refusal wherever the latents of an utterance change with the padding, and only there."""
    brain = tuner(tmp_path, 0, keep_latents=True, body={"extractor_norm": norm, "padding": padding})
    brain.check_settings()  # all of it is trained: nothing is kept
    body = brain.model.wav2vec2
    body.freeze_extractor()
    wav, lens = speech().sig
    alone = body.extract(wav, lens)[0]
    padded = body.extract(F.pad(wav, (0, 8000)), lens / 2)[0][:, : alone.shape[1]]
    if torch.allclose(alone, padded, atol=1e-5):  # rounding
        brain.check_settings()
    else:
        with pytest.raises(ValueError, match=r"padding='.*' .* --keep_latents False, or --wav2vec"):
            brain.check_settings()


@pytest.mark.parametrize("patience", [0, -1, 2.5, "3"])
def test_patience_counts_validations(patience: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"patience: got .* 1 or more"):
        tuner(tmp_path, 0, patience=patience).on_fit_start()


@pytest.mark.parametrize("best_by", ["wer", "loss", None])
def test_the_score_that_keeps_checkpoints_is_known_before_training(
    best_by: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"best_by: got .*, expected one of WER, CER"):
        tuner(tmp_path, 0, best_by=best_by).on_fit_start()


def test_an_encoder_that_never_learns_is_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """More frozen updates than there are: of --updates 5 with a published setting."""
    brain = tuner(tmp_path, freeze=5)
    brain.optimizer_step_limit = 6
    brain.check_settings()
    assert "Only the head" not in caplog.text
    brain.optimizer_step_limit = 5
    brain.check_settings()
    assert "Only the head will learn: freeze_encoder_updates=5 of 5 updates." in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transcript_that_does_not_fit_gives_no_nan(precision: str, tmp_path: Path) -> None:
    """24 frames cannot say 40 characters: no loss and no gradient from it, but from the other."""
    short = speech_row("a")
    long = {**short, "id": "b", "tokens": torch.arange(5, 25).repeat(2)}
    alone = {}
    for name, rows in (("both", [short, long]), ("short", [short]), ("long", [long])):
        torch.manual_seed(0)
        wav2vec2 = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7, **STREAMS)
        hparams = {**vars(tuner(tmp_path, 0).hparams)}
        options = {"device": "cpu", "precision": precision}
        model = nn.ModuleDict({"model": Wav2Vec2CTC(wav2vec2, 32)})
        brain = CTCBrain(model, torch.optim.SGD, hparams, options)
        brain.step = 1
        with brain.training_ctx:
            out = brain.compute_forward(PaddedBatch(rows), sb.Stage.TRAIN)
            loss = brain.compute_objectives(out, PaddedBatch(rows), sb.Stage.TRAIN)
        loss.backward()
        grads = [p.grad for p in brain.model.parameters() if p.grad is not None]
        assert loss.dtype == torch.float32 and bool(loss.isfinite())
        assert grads and all(bool(grad.isfinite().all()) for grad in grads)
        alone[name] = float(brain.total), sum(float(grad.abs().sum()) for grad in grads)
    assert alone["long"] == (0.0, 0.0)
    # bf16 has 8 bits, and the batch of two goes through other kernels
    assert alone["both"][0] == pytest.approx(
        alone["short"][0], rel=1e-5 if precision == "fp32" else 0.02
    )


def test_a_dead_extractor_is_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All frames alike, as after too high a rate: the validation warns, and only the first one."""
    logs = SimpleNamespace(log_stats=lambda *_, **__: None)
    brain = tuner(tmp_path, 0, train_logger=logs)
    brain.save = lambda scores: None  # type: ignore[method-assign]
    brain.train_loss = 0.0
    for layer in brain.model.wav2vec2.extractor.layers:
        nn.init.zeros_(layer.conv.weight)
        layer.norm.bias.data.fill_(1.0)
    brain.modules.eval()
    for update in (500, 1000):
        brain.optimizer_step = update
        brain.on_stage_start(sb.Stage.VALID)
        with torch.no_grad():
            brain.evaluate_batch(speech(), sb.Stage.VALID)
        brain.on_stage_end(sb.Stage.VALID, 0.0)
    assert caplog.text.count("The extractor died: at update 500") == 1
    assert caplog.text.count("The extractor died") == 1
    assert brain.monitor.records[-1]["valid_spread"] < 1e-6
    brain.monitor.writer.close()


def test_a_deaf_model_is_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever died in it: its logits do not vary, and that is said at the second validation."""
    logs = SimpleNamespace(log_stats=lambda *_, **__: None)
    brain = tuner(tmp_path, 0, train_logger=logs)
    brain.save = lambda scores: None  # type: ignore[method-assign]
    brain.train_loss = 0.0
    brain.modules.eval()
    for update in (500, 1000, 1500, 2000):
        brain.optimizer_step = update
        if update == 1000:
            nn.init.zeros_(brain.model.head.weight)
            nn.init.normal_(brain.model.head.bias)
        brain.on_stage_start(sb.Stage.VALID)
        with torch.no_grad():
            brain.evaluate_batch(speech(), sb.Stage.VALID)
        brain.on_stage_end(sb.Stage.VALID, 0.0)
    assert caplog.text.count("The model hears nothing: at update 1500") == 1
    assert caplog.text.count("The model hears nothing") == 1
    spreads = [record.get("valid_logit_spread") for record in brain.validations]
    assert spreads[0] is None and all(share < 1e-12 for share in spreads[1:])
    brain.monitor.writer.close()


def test_silence_in_place_of_a_lost_batch_is_no_death(tmp_path: Path) -> None:
    """One frame alone cannot vary: the batch in which frames differ most counts."""
    brain = tuner(tmp_path, 0)
    brain.on_stage_start(sb.Stage.VALID)
    brain.notice("spread", torch.ones(1, 1, 4), None)
    brain.notice("spread", torch.eye(4)[None], None)
    brain.notice("spread", torch.ones(1, 1, 4), None)
    assert brain.spreads == {"spread": pytest.approx(0.75)}
    brain.on_stage_start(sb.Stage.VALID)
    assert brain.spreads == {}


def test_a_batch_without_audio_is_not_scored(tmp_path: Path) -> None:
    """It stands for files that could not be read, which are counted elsewhere."""
    brain = tuner(tmp_path, 0)
    silence = {**speech_row("gone"), "sig": None}
    brain.on_stage_start(sb.Stage.TEST)
    brain.evaluate_batch(collate([silence]), sb.Stage.TEST)
    with pytest.raises(BadAudio, match="none of the audio could be read"):
        brain.score(0.0)
    brain.evaluate_batch(collate([silence, speech_row("there")]), sb.Stage.TEST)
    assert [score["key"] for score in brain.wer.scores] == ["there"]


def test_unknown_characters_count_as_errors(tmp_path: Path) -> None:
    """A model that says all it can of "AÄ" has one error of two characters, not none."""
    brain = tuner(tmp_path, 0)
    vocabulary = brain.hparams.vocabulary
    batch = collate([{**speech_row("a"), "wrd": "aä"}])
    logits = F.one_hot(torch.tensor([[7, 0]]), 32).float()
    out = Wav2Vec2Output(torch.zeros(1, 2, 16), torch.tensor([2]), None)
    out.logits = logits
    brain.on_stage_start(sb.Stage.TEST)
    brain.read(out, batch)
    assert vocabulary.unknown("aä") == ["Ä"]
    assert (brain.wer.summarize("error_rate"), brain.cer.summarize("error_rate")) == (100, 50)
