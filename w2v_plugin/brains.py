"""SpeechBrain Brains: how the models are trained.

Stock SpeechBrain, by its hooks: `compute_forward`, `compute_objectives`, `freeze_optimizers`,
`on_stage_end` ... `fit_batch` stays as it is, and with it mixed precision, accumulation and DDP.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.codes import perplexity
from w2v_plugin.decoding import greedy
from w2v_plugin.errors import TrainingCollapsed
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.pretraining import PretrainingOutput
from w2v_plugin.ranks import all_sum
from w2v_plugin.training import StepBrain

logger = logging.getLogger(__name__)


class WarmStartBrain(StepBrain):
    """Trains `MelRegression` on cropped batches. Further hyperparameters: `lr`, `crop_s`."""

    def compute_forward(self, batch: PaddedBatch, stage: sb.Stage) -> Tensor:
        wavs, wav_lens = batch.to(self.device).sig
        return self.modules.model(wavs, None if stage == sb.Stage.TRAIN else wav_lens)

    def compute_objectives(
        self, predictions: Tensor, batch: PaddedBatch, stage: sb.Stage
    ) -> Tensor:
        return self.mean_loss(predictions, torch.ones((), device=predictions.device))


class ChunkBrain(StepBrain):
    """Trains and validates in chunks, so that the model can stream.

    Hyperparameters, both optional: `chunk_sampler`, SpeechBrain's dynamic chunk sampler, draws what
    a batch may see; `valid_chunks` says what validation sees, as for `ChunkConfig.read`: each batch
    is looked at once for each of them. Scores of the first one have plain names and pick the
    checkpoint; the others have a suffix, as in WER_640ms_5120ms or WER_full.
    """

    eval_chunk: ChunkConfig | None = None  # what evaluation sees now

    @property
    def valid_chunks(self) -> list[ChunkConfig | None]:
        """What validation sees, in turn."""
        return [ChunkConfig.read(x) for x in getattr(self.hparams, "valid_chunks", [None])]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        sampler = getattr(self.hparams, "chunk_sampler", None)
        if any(self.valid_chunks) or (sampler is not None and sampler.chunkwise_prob > 0):
            self.model.wav2vec2.check_streamable()

    def evaluate_batch(self, batch: PaddedBatch, stage: sb.Stage) -> Tensor:
        if stage != sb.Stage.VALID:
            return super().evaluate_batch(batch, stage)
        losses = []
        for self.eval_chunk in self.valid_chunks:  # noqa: B020 (what evaluation sees now)
            losses.append(super().evaluate_batch(batch, stage))
        self.eval_chunk = None
        return losses[0]

    def chunk(self, stage: sb.Stage) -> ChunkConfig | None:
        """What this batch may see."""
        return sample_chunk(self.hparams, stage) if stage == sb.Stage.TRAIN else self.eval_chunk

    def named(self, scores: dict[ChunkConfig | None, dict[str, float]]) -> dict[str, float]:
        """Scores at several chunks -> one dictionary, the first ones with plain names."""
        (_, first), *others = scores.items()
        return first | {
            f"{name}_{'full' if chunk is None else chunk.name}": value
            for chunk, more in others
            for name, value in more.items()
        }


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


def tally(out: PretrainingOutput) -> dict[str, Tensor]:
    """What a batch adds to the sums over masked frames from which all that is logged is made."""
    contrastive, quantized, count = out.contrastive, out.quantized, out.contrastive.count
    sums = {
        "count": count,
        "contrastive": contrastive.loss,
        "accuracy": contrastive.correct,
        "shared_negatives": contrastive.shared * count,
        "diversity": quantized.diversity * count,
        "prob_perplexity": quantized.prob_perplexity.mean() * count,
        "commitment": quantized.commitment,
        "feature_penalty": out.penalty,
        "codes": quantized.counts,
        "masked": out.mask.sum(),
        "frames": out.frame_lengths.sum(),
    }
    if out.chance is not None:
        sums["chance"] = out.chance
    return {name: value.detach().float() for name, value in sums.items()}


def means(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over masked frames, and what the codes say: the best ones, without noise."""
    count = max(float(sums["count"]), 1.0)
    codes = sums["codes"]
    perplexities = perplexity(codes / codes.sum(1, keepdim=True).clamp(min=1))
    apart = ("count", "codes", "masked", "frames")
    return {
        **{name: float(value) / count for name, value in sums.items() if name not in apart},
        "code_perplexity": float(perplexities.mean()),
        "least_perplexity": float(perplexities.min()),
        "codes_used": float((codes > 0).float().mean()),
    }


COLLAPSED = 2.0  # codes in effect (perplexity)
FEW = 0.05  # of all codes


def check_collapse(
    record: dict[str, float], frames: float, codes: int, *, stop: bool = True
) -> None:
    """Stop when one code stands for everything in at least 30 masked frames; warn before.

    Then all negatives equal the positive and are left out, and the loss is 0.000: it looks like
    success. The codes without noise tell.
    """
    perplexity, least = record["code_perplexity"], record["least_perplexity"]
    if frames < 30 or least >= max(COLLAPSED, FEW * codes):
        return
    seen = (
        f"code perplexity {perplexity:.2f} of {codes} (1 = a single code), {least:.2f} in the "
        f"poorest group; contrastive loss {record['contrastive']:.3f}, accuracy "
        f"{record['accuracy']:.3f}. "
    )
    remedy = (
        "a lower lr or slow_lr, a warm start (warm_start_updates), codes that start from data "
        "(init_codes), a lower penalty_weight, a higher diversity_weight (Gumbel) or a smaller "
        "restart_every (nearest)."
    )
    if perplexity >= COLLAPSED:
        logger.warning(
            "Few codes are left: %sTargets that are all alike teach nothing. If this does not "
            "rise, start again with %s",
            seen,
            remedy,
        )
        return
    message = (
        f"The codebook collapsed: {seen}All negatives equal the true target and are left out, so "
        f"that the loss means nothing from here on. Start again with {remedy}"
    )
    if stop:
        raise TrainingCollapsed(message + " stop_on_collapse: False goes on all the same.")
    logger.warning("%s Going on, as stop_on_collapse: False says.", message)


class CTCBrain(ChunkBrain):
    """CTC fine-tuning of `modules.model`, a `Wav2Vec2CTC`.

    Further hyperparameters: `vocabulary`, `encoder_lr`, `head_lr`, `freeze_encoder_updates`
    (updates in which only the head learns), `keep_latents` (keep a frozen extractor's output in
    memory), `best_by` (WER or CER: which score keeps a checkpoint), and those of `ChunkBrain`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[tuple[str, str], Tensor] = {}

    def learning_rates(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {
            "head": (list(self.model.head.parameters()), self.hparams.head_lr),
            "encoder": (list(self.model.wav2vec2.parameters()), self.hparams.encoder_lr),
        }

    def freeze_optimizers(self, optimizers: dict[str, Any]) -> dict[str, Any]:
        if self.optimizer_step < self.hparams.freeze_encoder_updates:
            return {"head": optimizers["head"]}
        return optimizers

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
        frozen = self.model.wav2vec2.feature_grad_scale == 0
        if self.hparams.keep_latents and frozen and stage != sb.Stage.TEST:
            return self.modules.model(None, latents=self.latents(batch, stage), chunk=chunk)
        return self.modules.model(*batch.sig, chunk=chunk)

    def compute_objectives(
        self, predictions: Wav2Vec2Output, batch: PaddedBatch, stage: sb.Stage
    ) -> Tensor:
        """Negative log-likelihood per character, in nats."""
        assert predictions.logits is not None
        vocabulary, (tokens, token_lens) = self.hparams.vocabulary, batch.tokens
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
        return self.mean_loss(loss, lengths.sum())

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        super().on_stage_start(stage, epoch)
        self.errors: dict[ChunkConfig | None, tuple[ErrorRateStats, ErrorRateStats]] = {}

    def read(self, predictions: Wav2Vec2Output, batch: PaddedBatch) -> None:
        """Decode greedily and count the errors."""
        assert predictions.logits is not None
        vocabulary = self.hparams.vocabulary
        blank = vocabulary.get_blank_index()
        found = [
            vocabulary.decode_tokens(tokens).split()
            for tokens in greedy(predictions.logits, predictions.frame_lengths, blank)
        ]
        truth = [vocabulary.decode_tokens(vocabulary.encode_text(t)).split() for t in batch.wrd]
        words_and_letters = (ErrorRateStats(), ErrorRateStats(split_tokens=True))
        for errors in self.errors.setdefault(self.eval_chunk, words_and_letters):
            errors.append(batch.id, found, truth)

    def score(self, stage_loss: float) -> dict[str, float]:
        rates = {
            chunk: {
                "WER": float(words.summarize("error_rate")),
                "CER": float(letters.summarize("error_rate")),
            }
            for chunk, (words, letters) in self.errors.items()
        }
        return {"loss": float(stage_loss)} | self.named(rates)

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

    def save(self, scores: dict[str, float]) -> None:
        self.checkpointer.save_and_keep_only(meta=scores, min_keys=[self.hparams.best_by])


def sample_chunk(hparams: Any, stage: sb.Stage) -> ChunkConfig | None:
    """Draw a chunk for this batch from SpeechBrain's dynamic chunk sampler, if there is one."""
    sampler = getattr(hparams, "chunk_sampler", None)
    config = None if sampler is None else sampler(stage)
    if config is None:
        return None
    left = config.left_context_size
    return ChunkConfig(config.chunk_size, None if left is None else left * config.chunk_size)
