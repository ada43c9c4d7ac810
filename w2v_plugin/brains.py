"""SpeechBrain Brains: how the models are trained.

Stock SpeechBrain, by its hooks: `compute_forward`, `compute_objectives`, `freeze_optimizers`,
`on_stage_end` ... `fit_batch` stays as it is, and with it mixed precision, accumulation and DDP.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.augment.augmenter import Augmenter
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.checkpoints import Checkpoint
from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.collapse import check_collapse, means, tally
from w2v_plugin.decoding import greedy
from w2v_plugin.errors import BadAudio
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.pretraining import PretrainingOutput
from w2v_plugin.ranks import all_sum
from w2v_plugin.text import normalize_text
from w2v_plugin.training import ChunkBrain, StepBrain
from w2v_plugin.validations import DEAF, advice, exhausted, rank, spread

logger = get_logger(__name__)


class WarmStartBrain(StepBrain):
    """Trains `MelRegression` on cropped batches. Further hyperparameters: `lr`, `crop_s`."""

    def compute_forward(self, batch: PaddedBatch, stage: sb.Stage) -> Tensor:
        wavs, wav_lens = batch.to(self.device).sig
        return self.modules.model(wavs, None if stage == sb.Stage.TRAIN else wav_lens)

    def compute_objectives(
        self, predictions: Tensor, batch: PaddedBatch, stage: sb.Stage
    ) -> Tensor:
        return self.mean_loss(predictions, torch.ones((), device=predictions.device))


class PretrainBrain(ChunkBrain):
    """Contrastive pretraining of `modules.model`, a `Wav2Vec2Pretraining`.

    Further hyperparameters: `lr`, `slow_lr` (extractor and quantizer projection), `crop_s`,
    and optionally `stop_on_collapse` (False: only warn) and those of `ChunkBrain`.

    What it logs are means over the masked frames of all micro-batches and ranks of an update.
    """

    def learning_rates(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        slow = [*self.model.wav2vec2.extractor.parameters()]
        slow += [*self.model.wav2vec2.projection.norm.parameters()]
        slow += [p for n, p in self.model.quantizer.named_parameters() if n != "codebook"]
        known = {id(p) for p in slow}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        return {"slow": (slow, self.hparams.slow_lr), "main": (rest, self.hparams.lr)}

    def compute_forward(self, batch: PaddedBatch, stage: sb.Stage) -> PretrainingOutput:
        (wavs, wav_lens), chunk = batch.to(self.device).sig, self.chunk(stage)
        if stage == sb.Stage.TRAIN:  # cropped: nothing is padding
            return self.modules.model(wavs, None, chunk=chunk, chance=self.logged)
        options = {"chance": True, "generator": torch.Generator(wavs.device).manual_seed(self.step)}
        return self.modules.model(wavs, wav_lens, chunk=chunk, **options)

    def compute_objectives(
        self, predictions: PretrainingOutput, batch: PaddedBatch, stage: sb.Stage
    ) -> Tensor:
        if stage == sb.Stage.TRAIN:
            self.model.quantizer.observe(predictions.quantized)
            if (self.step - 1) % self.grad_accumulation_factor == 0:
                self.update_sums: dict[str, Any] = defaultdict(float)
        sums = self.update_sums if stage == sb.Stage.TRAIN else self.sums[self.eval_chunk]
        if stage != sb.Stage.TRAIN or self.logged:
            for name, value in tally(predictions).items():
                sums[name] = sums[name] + value
        return self.mean_loss(predictions.loss, predictions.contrastive.count)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        super().on_stage_start(stage, epoch)
        self.sums: dict[Any, dict[str, Any]] = defaultdict(lambda: defaultdict(float))

    def on_fit_batch_end(
        self, batch: PaddedBatch, outputs: PretrainingOutput, loss: Tensor, should_step: bool
    ) -> None:
        if should_step:
            self.model.quantizer.after_update()
        super().on_fit_batch_end(batch, outputs, loss, should_step)

    def describe(self, outputs: PretrainingOutput, loss: Tensor) -> dict[str, float]:
        sums = {name: all_sum(value) for name, value in self.update_sums.items()}
        record = {"loss": self.mean_of_update(), **means(sums)}
        record["masked_share"] = float(sums["masked"] / sums["frames"])
        record["temperature"] = self.model.quantizer.temperature
        self.check_collapse(record, float(sums["count"]))
        return record

    def score(self, stage_loss: float) -> dict[str, float]:
        return self.named({chunk: self.kept(means(sums)) for chunk, sums in self.sums.items()})

    def kept(self, scores: dict[str, float]) -> dict[str, float]:
        """What is worth knowing about a validation."""
        names = ("accuracy", "chance", "code_perplexity", "least_perplexity", "codes_used")
        kept = {name: scores[name] for name in (*names, "shared_negatives")}
        return {"loss": scores["contrastive"], **kept}

    def save(self, scores: dict[str, float]) -> None:
        record = {**scores, "contrastive": scores["loss"]}
        self.check_collapse(record, float(next(iter(self.sums.values()))["count"]))
        self.checkpointer.save_and_keep_only(meta=scores, max_keys=["accuracy"])

    def check_collapse(self, record: dict[str, float], frames: float) -> None:
        """Stop a collapsed run, unless `stop_on_collapse` says to go on with a warning."""
        stop = getattr(self.hparams, "stop_on_collapse", True)
        check_collapse(record, frames, self.model.quantizer.codes, stop=stop)


class CTCBrain(ChunkBrain):
    """CTC fine-tuning of `modules.model`, a `Wav2Vec2CTC`.

    Further hyperparameters: `vocabulary`, `encoder_lr`, `head_lr`, `freeze_encoder_updates`
    (updates in which only the head learns), `keep_latents` (keep a frozen extractor's output in
    memory), `best_by` (WER or CER, at a further chunk as in WER_full: which score keeps a
    checkpoint, see `rank`), those of `ChunkBrain`, and optionally `augment` (SpeechBrain's
    `Augmenter`, for the waveforms of training), `patience` (validations without a better score
    after which training ends) and `average` (how many of the best checkpoints are kept).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[tuple[str, str], Tensor] = {}
        self.augment: Augmenter | None = getattr(self.hparams, "augment", None)
        self.patience: int | None = getattr(self.hparams, "patience", None)
        self.spreads: dict[str, float] = {}  # of latents and logits, in this validation

    def on_fit_start(self) -> None:
        self.check_settings()
        super().on_fit_start()
        self.stop_if_exhausted()  # and was started again

    def check_settings(self) -> None:
        """ValueError where settings exclude each other, before anything is computed."""
        augment, patience = self.augment, self.patience
        if augment is not None and not isinstance(augment, Augmenter):
            raise ValueError(
                f"augment: got {augment!r}, expected null or SpeechBrain's Augmenter, as in "
                "--augment '!include:augment/speed.yaml'."
            )
        if augment is not None and self.keeps_latents:
            raise ValueError(
                "augment changes the audio at every step, but keep_latents keeps what the frozen "
                "extractor made of it at first. Add --keep_latents False, or --augment null."
            )
        body = self.model.wav2vec2
        if self.keeps_latents and body.extractor.norm == "group" and body.padding != "exact":
            raise ValueError(
                f"padding={body.padding!r} lets a group-norm extractor hear the padding, but "
                "keep_latents keeps what it made of an utterance in its first batch. Add "
                f"--keep_latents False, or --wav2vec2 '{{padding: exact}}'."
            )
        if self.hparams.best_by not in self.rates:
            raise ValueError(
                f"best_by: got {self.hparams.best_by!r}, expected one of {', '.join(self.rates)}."
            )
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ValueError(f"patience: got {patience!r}, expected null or validations, 1 or more")
        limit, frozen = self.optimizer_step_limit, self.hparams.freeze_encoder_updates
        if limit is not None and 0 < limit <= frozen:
            logger.warning(
                "Only the head will learn: freeze_encoder_updates=%d of %d updates.", frozen, limit
            )

    @property
    def rates(self) -> dict[str, tuple[str, ChunkConfig | None]]:
        """What `best_by` may name: WER or CER, at which chunk."""
        chunks = self.valid_chunks
        return self.named({chunk: {x: (x, chunk) for x in ("WER", "CER")} for chunk in chunks})

    @property
    def keeps_latents(self) -> bool:
        """Whether the output of the extractor, which is frozen, is computed only once."""
        return self.hparams.keep_latents and self.model.wav2vec2.feature_grad_scale == 0

    @property
    def head_only(self) -> bool:
        """Whether only the head learns in this update."""
        return self.optimizer_step < self.hparams.freeze_encoder_updates

    def learning_rates(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {
            "head": (list(self.model.head.parameters()), self.hparams.head_lr),
            "encoder": (list(self.model.wav2vec2.parameters()), self.hparams.encoder_lr),
        }

    def freeze_optimizers(self, optimizers: dict[str, Any]) -> dict[str, Any]:
        return {"head": optimizers["head"]} if self.head_only else optimizers

    def optimizers_step(self) -> None:
        if self.head_only and self.ranks > 1:  # not by DDP, which waits for all gradients
            for parameter in self.model.head.parameters():
                parameter.grad = all_sum(parameter.grad) / self.ranks
        super().optimizers_step()

    def latents(self, batch: PaddedBatch, stage: sb.Stage) -> tuple[Tensor, Tensor]:
        """Output of a frozen extractor; computed once per utterance."""
        wavs, wav_lens = batch.sig
        keys = [(stage.name, name) for name in batch.id]  # an ID is unique within its manifest
        new = [i for i, key in enumerate(keys) if key not in self.kept]
        if new:
            latents, lengths = self.model.wav2vec2.extract(wavs[new], wav_lens[new])
            for i, row, length in zip(new, latents, lengths.tolist(), strict=True):
                self.kept[keys[i]] = row[:length].clone()
        rows = [self.kept[key] for key in keys]
        lengths = torch.tensor([len(row) for row in rows], device=wavs.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths

    def compute_forward(self, batch: PaddedBatch, stage: sb.Stage) -> Wav2Vec2Output:
        batch, chunk = batch.to(self.device), self.chunk(stage)
        head_only = stage == sb.Stage.TRAIN and self.head_only
        model = self.model if head_only else self.modules.model  # DDP wants all gradients
        options = {"chunk": chunk, "head_only": head_only}
        if self.keeps_latents and stage != sb.Stage.TEST:
            return model(None, latents=self.latents(batch, stage), **options)
        if stage == sb.Stage.TRAIN:
            return model(*self.augmented(batch), **options)
        latents = self.model.wav2vec2.extract(*batch.sig)
        trained = self.model.wav2vec2.feature_grad_scale > 0
        if stage == sb.Stage.VALID and trained:
            self.notice("spread", *latents)
        return model(None, latents=latents, **options)

    def notice(self, name: str, frames: Tensor, lengths: Tensor | None) -> None:
        """How much frames differ, in the batch in which they do most: one may be silence."""
        self.spreads[name] = max(self.spreads.get(name, 0.0), spread(frames, lengths))

    def augmented(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Waveforms and relative lengths, changed by what follows from seed, step and rank."""
        if self.augment is None:
            return batch.sig
        random.seed(torch.initial_seed())  # an Augmenter draws from Python's numbers, too
        return self.augment(*batch.sig)

    def compute_objectives(
        self, predictions: Wav2Vec2Output, batch: PaddedBatch, stage: sb.Stage
    ) -> Tensor:
        """Negative log-likelihood per character, in nats."""
        assert predictions.logits is not None
        vocabulary, (tokens, token_lens) = self.hparams.vocabulary, batch.tokens
        if stage == sb.Stage.TRAIN and self.augment is not None:  # rows may have become more
            tokens, token_lens = map(self.augment.replicate_labels, (tokens, token_lens))
        lengths = torch.round(token_lens * tokens.shape[1]).long()
        loss = F.ctc_loss(
            predictions.logits.float().log_softmax(-1).transpose(0, 1),
            tokens,
            predictions.frame_lengths,
            lengths,
            blank=vocabulary.get_blank_index(),
            reduction="sum",
            zero_infinity=True,
        )
        if stage != sb.Stage.TRAIN:
            self.read(predictions, batch)
        if stage == sb.Stage.VALID:
            self.notice("logit_spread", predictions.logits, predictions.frame_lengths)
        return self.mean_loss(loss, lengths.sum())

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        super().on_stage_start(stage, epoch)
        self.errors: dict[ChunkConfig | None, tuple[ErrorRateStats, ErrorRateStats]] = {}
        self.spreads = {}

    def read(self, predictions: Wav2Vec2Output, batch: PaddedBatch) -> None:
        """Decode greedily and count the errors."""
        assert predictions.logits is not None
        vocabulary = self.hparams.vocabulary
        blank = vocabulary.get_blank_index()
        said = greedy(predictions.logits, predictions.frame_lengths, blank)
        rows = zip(batch.id, said, batch.wrd, strict=True)
        silent = set(getattr(batch, "left_out", ()))  # stands for a batch without any audio
        scored = [
            (
                name,
                vocabulary.decode_tokens(tokens).split(),
                normalize_text(text, vocabulary.letters).split(),
            )
            for name, tokens, text in rows
            if name not in silent
        ]
        words_and_letters = (ErrorRateStats(), ErrorRateStats(split_tokens=True))
        for errors in self.errors.setdefault(self.eval_chunk, words_and_letters):
            if scored:
                errors.append(*map(list, zip(*scored, strict=True)))

    def score(self, stage_loss: float) -> dict[str, float]:
        if not self.wer.scores:
            raise BadAudio("No utterance to score: none of the audio could be read. See the log.")
        rates = {
            chunk: {
                "WER": float(words.summarize("error_rate")),
                "CER": float(letters.summarize("error_rate")),
            }
            for chunk, (words, letters) in self.errors.items()
        }
        scores = {"loss": float(stage_loss)} | self.named(rates)
        if self.spreads.get("logit_spread", 0.0) >= DEAF:
            del self.spreads["logit_spread"]  # nothing to be told
        return scores | self.spreads

    @property
    def wer(self) -> ErrorRateStats:
        """Word errors of the last evaluation, at its first chunk."""
        return next(iter(self.errors.values()))[0]

    @property
    def cer(self) -> ErrorRateStats:
        """Character errors, likewise."""
        return next(iter(self.errors.values()))[1]

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            self.test_scores = self.score(stage_loss)
        if stage == sb.Stage.VALID:
            frozen = self.hparams.freeze_encoder_updates
            for text in advice(
                self.validations, best_by=self.hparams.best_by, frozen_updates=frozen
            ):
                logger.warning(text)
            self.stop_if_exhausted()

    @property
    def validations(self) -> list[dict[str, Any]]:
        """What was logged about them, up to now.

        One that was logged but not saved, by a kill in between, is done again: the last one counts.
        """
        return list({r["step"]: r for r in self.monitor.records if "valid_CER" in r}.values())

    def stop_if_exhausted(self) -> None:
        """Make this the last epoch if `patience` is at its end."""
        best_by, since = self.hparams.best_by, self.hparams.freeze_encoder_updates
        if self.patience and exhausted(self.validations, best_by, self.patience, since):
            logger.info("Stopped: no better %s in %d validations", best_by, self.patience)
            self.hparams.epoch_counter.limit = self.hparams.epoch_counter.current

    def save(self, scores: dict[str, float]) -> None:
        self.checkpointer.save_and_keep_only(
            meta=scores,
            importance_keys=[self.importance],
            num_to_keep=getattr(self.hparams, "average", 1),
        )

    def importance(self, checkpoint: Checkpoint) -> float:
        """Of the best is most; those in the middle of an epoch have no score, and least."""
        return -rank(checkpoint.meta, self.hparams.best_by)
