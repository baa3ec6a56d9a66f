"""The training loop, one for all objectives and model families, on one process or many (Accelerate)."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popalign_core.config import RuntimeConfig, TrainingConfig
from popalign_core.errors import DivergedError, InputError, PreemptedError, TrainingError
from popalign_core.models.denoisers import family_of
from popalign_core.training.batch import Batch, draw_batch
from popalign_core.training.checkpoint import Checkpoint, LogRow, list_checkpoints, load_checkpoint, save_checkpoint
from popalign_core.training.data import PreferenceData
from popalign_core.training.gradients import GlobalGradient
from popalign_core.training.input_checks import check_inputs, fingerprint
from popalign_core.training.noising import forward_process
from popalign_core.training.objective import Running, needs_reference
from popalign_core.training.optimizers import learning_rate, make_optimizer
from popalign_core.training.preemption import watch_preemption
from popalign_core.training.processes import full_tensor, make_accelerator, mean_over_processes, shard_like
from popalign_core.training.reference import frozen_copy
from popalign_core.training.settings import count_micro_batches
from popalign_core.training.trained import choose_weights, trained_weights

MAX_ROLLBACKS = 3
MAX_SKIPPED = 20
"""Steps in a row that float16's gradient scaler may skip."""
ERROR_DECAY = 0.9
N_CALIBRATION = 10
CALIBRATION_BETA = 1e-3
CALIBRATED_SPREAD = 0.4
"""What `beta = \"auto\"` starts `beta * g_spread` at. At 1 the loss is content before the population has moved: on the
embedded model that took beta 50 and pooled gender from .53 to .48 only, where .4 is the beta of 20 that halves it."""

OnStep = Callable[[int, dict[str, float]], None]
Probe = Callable[[], dict[str, float]]
"""Looks at the population that the model draws now: `discrepancy/AXIS` for each axis, and `clip_score`."""


def train_preferences(
    model: Any,
    noise_scheduler: Any,
    data: PreferenceData,
    config: TrainingConfig,
    folder: Path,
    *,
    time_ids: Tensor,
    runtime: RuntimeConfig,
    on_step: OnStep | None = None,
    probe: Probe | None = None,
    is_orphaned: Callable[[], bool] | None = None,
    log_folder: Path | None = None,
) -> list[LogRow]:
    """Train a denoiser in place. The same call on the same base model and folder resumes, on one machine bit for bit.

    What trains is the model's own weights, all or those that read the caption (reference: a frozen copy), or, when
    `lora_rank > 0`, a LoRA adapter (reference: the adapter off). Trained weights are float32; a bfloat16 or float16
    model computes under autocast and is cast back at the end.

    Under `accelerate launch` each process calls this with the same arguments. The loss is that of the global batch,
    so that the number of processes, like `runtime.micro_pairs`, changes no result beyond rounding.

    Args:
        model: The base denoiser: SDXL's or SD 1/2's `UNet2DConditionModel`, an `SD3Transformer2DModel` or a
            `FluxTransformer2DModel`.
        noise_scheduler: Any diffusers scheduler of the model; its noise schedule and prediction type are read.
        data: Latents in the model's scaled space, and who is preferred.
        config: Objective and optimiser.
        folder: Where checkpoints lie.
        time_ids: [1, 6] micro-conditioning the latents were sampled with; only SDXL reads it.
        runtime: Device, micro-batches, memory and speed options, trackers.
        on_step: Called after each step with its number (from 1), its logged terms, `samples_per_s` and `eta_s`.
        probe: Called every `config.probe.every` steps, and once before the first.
        is_orphaned: Asked after each step; True ends the training as SIGTERM does.
        log_folder: Where the trackers write; `folder` when not given.

    Returns:
        training_log rows (step, name, value): loss; squared errors of policy and reference, and their difference g,
        on both sides; g_spread, its standard deviation; implicit_accuracy, the share of pairs whose preferred sample
        has the larger g (a tie is half); normaliser, grad_norm, learning_rate; beta when it is automatic; with
        retention its mean before the weight; what the probe saw; rollbacks.

    Raises:
        DivergedError: When loss or gradient is not finite, or the preferred error runs away; the last checkpoint stays.
        TrainingError: When every checkpoint is damaged.
        PreemptedError: On SIGTERM, after a checkpoint was written.
        InputError: When the folder's checkpoint belongs to other data, configuration or base weights, or the data
            does not fit model or objective.
        ConfigError: When model, configuration and machine do not fit together.
    """
    run = _Run(model, noise_scheduler, data, config, folder, time_ids, runtime, on_step, probe, log_folder)
    with watch_preemption() as preemption:
        run.train(lambda: preemption.requested or (is_orphaned is not None and is_orphaned()))
    return run.log


def load_trained(model: Any, folder: Path, config: TrainingConfig) -> list[LogRow]:
    """Give a base model the weights that other processes trained in `folder`; returns the log.

    Raises:
        TrainingError: When there is no checkpoint of a finished training.
    """
    dtype = model.dtype
    choose_weights(model, config)
    paths = list_checkpoints(folder)
    checkpoint = Checkpoint(**torch.load(paths[0], map_location="cpu", weights_only=True)) if paths else None
    if checkpoint is None or (checkpoint.step < config.n_steps and not checkpoint.running["stopped"]):
        raise TrainingError(f"{folder} holds no finished training; run the same command again, it goes on")
    _finish(model, checkpoint.final_weights(), config, dtype)
    return checkpoint.log


class _Run:
    """One training: what its steps share."""

    def __init__(
        self,
        model: Any,
        noise_scheduler: Any,
        data: PreferenceData,
        config: TrainingConfig,
        folder: Path,
        time_ids: Tensor,
        runtime: RuntimeConfig,
        on_step: OnStep | None,
        probe: Probe | None,
        log_folder: Path | None = None,
    ) -> None:
        self.process = forward_process(noise_scheduler, config)
        check_inputs(model, data, config)
        self.data, self.config, self.folder, self.time_ids = data, config, folder, time_ids
        self.runtime, self.on_step, self.probe = runtime, on_step, probe
        self.fingerprint = fingerprint(model, data, config)
        self.dtype = model.dtype
        self.accelerator = make_accelerator(runtime, self.dtype, log_folder or folder)
        n_micro = count_micro_batches(config, runtime, self.accelerator.num_processes)
        model.to(self.accelerator.device)
        frozen = frozen_copy(model) if config.lora_rank == 0 and needs_reference(config) else None
        choose_weights(model, config)
        if runtime.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if runtime.compile:
            for each in filter(None, (model, frozen)):
                each.compile_repeated_blocks()
        optimizer = make_optimizer(trained_weights(model).values(), config)
        policy, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model = self.accelerator.unwrap_model(policy, keep_torch_compile=True)
        target = None if data.target is None else data.target.to(self.accelerator.device)
        self.gradient = GlobalGradient(
            self.accelerator, policy, self.model, frozen, family_of(model), self.dtype, n_micro, target
        )
        self.trained = trained_weights(self.model)
        self.step, self.log, self.running = 0, list[LogRow](), Running()
        self.ema: dict[str, Tensor] = {}
        if config.ema_decay > 0:
            self.ema = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self.saved = 0
        self.n_skipped = 0

    def train(self, is_preempted: Callable[[], bool]) -> None:
        """To the last step, or until the probe or SIGTERM ends it."""
        self._restore()
        if self.step == 0:
            self._begin()
        trackers = _Trackers(self.accelerator, self.step)
        started, first = time.perf_counter(), self.step
        while self.step < self.config.n_steps and not self.running.stopped:
            try:
                terms = self._take_step(self.step + 1)
            except DivergedError as error:
                self._roll_back(error)
                continue
            self.step += 1
            terms |= self._look()
            self._note(terms)
            preempted = is_preempted()
            if self.accelerator.num_processes > 1:
                # all must save at the same step
                preempted = mean_over_processes(self.accelerator, preempted) > 0
            last = self.step == self.config.n_steps or bool(self.running.stopped)
            if last or ((self.step % self.config.checkpoint_every == 0 or preempted) and self._is_worth_keeping()):
                self._save()
            seconds = (time.perf_counter() - started) / (self.step - first) if self.step > first else 0.0
            speed = {
                "samples_per_s": 2 * self.config.n_pairs / max(seconds, 1e-9),
                "eta_s": seconds * (self.config.n_steps - self.step),
            }
            trackers.log(terms | speed, self.step)
            if self.on_step is not None:
                self.on_step(self.step, terms | speed)
            if preempted:  # at the last step too: what comes after the training would not hear of it
                trackers.finish()
                raise PreemptedError(
                    f"SIGTERM at step {self.step} of {self.config.n_steps}: {self.folder} keeps the checkpoint of step "
                    f"{self.saved}; the same command goes on from there"
                )
        trackers.finish()
        final = self.ema or {name: weight.detach() for name, weight in self.trained.items()}
        if not any(hasattr(weight, "full_tensor") for weight in final.values()):
            _finish(self.model, final, self.config, self.dtype)

    def _begin(self) -> None:
        """Before the first step: what the base draws, and beta."""
        if self.config.beta == "auto":
            self.running.beta = self._calibrate()
        if self.probe is not None and self.config.probe is not None:
            seen = self._probe()
            if self.config.probe.stop_clip_drop is not None and "probe/clip_score" not in seen:
                raise InputError(
                    "training.probe.stop_clip_drop needs the prompts' texts for a CLIP score, and there are none here; "
                    "leave it out"
                )
            self.running.clip_score = seen.get("probe/clip_score", 0.0)
            self._note(seen)
        if self.config.on_divergence == "rollback":
            self._save()

    def _take_step(self, step: int) -> dict[str, float]:
        """Forward, backward, clip, step; no weight is changed when loss or gradient is not finite."""
        terms, self.running = self.gradient.take(self._draw(step), self.config, self.running)
        peak = self.config.learning_rate * self.running.learning_rate_scale
        advice = f"check the latents, or lower learning_rate ({peak:g}) or beta ({self._beta:g})"
        if not math.isfinite(terms["loss"]):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"loss is {terms['loss']} at step {step}: {advice}")
        norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), self.config.max_grad_norm)
        grad_norm = float(full_tensor(norm))
        is_scaled = self.accelerator.scaler is not None
        self.n_skipped = 0 if math.isfinite(grad_norm) else self.n_skipped + 1
        if self.n_skipped > (MAX_SKIPPED if is_scaled else 0):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"gradient norm is {grad_norm} at step {step}: {advice}")
        rate = learning_rate(self.config, step) * self.running.learning_rate_scale
        self._watch_error(terms, step, advice)
        self._move_weights(rate)
        self._average(step)
        terms |= {"grad_norm": grad_norm, "learning_rate": rate}
        return terms | ({"beta": self._beta} if self.config.beta == "auto" else {})

    def _move_weights(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _draw(self, step: int) -> Batch:
        return draw_batch(self.data, self.process, self.config, self.time_ids, step)

    @property
    def _beta(self) -> float:
        return self.running.beta if self.config.beta == "auto" else float(self.config.beta)

    def _calibrate(self) -> float:
        """The beta at which `beta * (g - Z)` starts at order one: by the spread of g after a few steps along the limit
        of small beta, where the direction of the gradient no longer depends on it. The weights are put back.
        """
        start = {name: weight.detach().clone() for name, weight in self.trained.items()}
        limit = self.config.model_copy(update={"beta": CALIBRATION_BETA, "retention": 0.0})
        spreads = []
        for step in range(1, N_CALIBRATION + 1):
            batch = draw_batch(self.data, self.process, limit, self.time_ids, step)
            terms, _ = self.gradient.take(batch, limit, Running())
            spreads.append(terms["g_spread"])
            self._move_weights(self.config.learning_rate)
        self._put(start)
        self.optimizer.optimizer.state.clear()
        if not spreads[-1] > 0:
            raise DivergedError("beta 'auto': the trained weights do not move g at all; give beta a number")
        return CALIBRATED_SPREAD / spreads[-1]

    def _watch_error(self, terms: dict[str, float], step: int, advice: str) -> None:
        """The preferred error may rise a little (the loss asks for a difference only), but not run away."""
        reference = terms.get("reference_mse_preferred", 0.0)
        if reference <= 0:
            return
        ratio = terms["policy_mse_preferred"] / reference
        self.running.error_ratio = ERROR_DECAY * self.running.error_ratio + (1 - ERROR_DECAY) * ratio
        if self.running.error_ratio > self.config.max_error_ratio:
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(
                f"the preferred error is {self.running.error_ratio:.2f} times the reference's at step {step}, beyond "
                f"max_error_ratio {self.config.max_error_ratio:g}: the policy unlearns what it should prefer; {advice}"
            )

    def _roll_back(self, error: DivergedError) -> None:
        if self.config.on_divergence == "stop" or self.running.n_rollbacks >= MAX_ROLLBACKS:
            kept = f"{self.folder} keeps the checkpoint of step {self.saved}"
            raise DivergedError(
                f"{error}; {kept if list_checkpoints(self.folder) else 'no checkpoint was written yet'}"
            ) from error
        scale, n = self.running.learning_rate_scale / 2, self.running.n_rollbacks + 1
        self._restore()
        self.running.learning_rate_scale, self.running.n_rollbacks, self.running.error_ratio = scale, n, 1.0
        self._note({"rollback": scale})
        self._save()

    def _is_worth_keeping(self) -> bool:
        """Whether a rollback would want to come back here: the error ratio is less than halfway to the limit."""
        halfway = (1 + self.config.max_error_ratio) / 2
        return self.config.on_divergence == "stop" or self.running.error_ratio < halfway

    def _average(self, step: int) -> None:
        """The weights' moving mean, its decay growing from 0.1 so that the first weights are soon forgotten."""
        if self.ema:
            decay = min(self.config.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, weight in self.trained.items():
                    self.ema[name].lerp_(weight, 1 - decay)

    def _look(self) -> dict[str, float]:
        """Every so often, what the population looks like, and whether that ends the training."""
        settings = self.config.probe
        if self.probe is None or settings is None or self.step % settings.every:
            return {}
        seen = self._probe()
        fair = [value for name, value in seen.items() if name.startswith("probe/discrepancy/")]
        if settings.stop_discrepancy is not None and fair and max(fair) <= settings.stop_discrepancy:
            self.running.stopped = f"every discrepancy is at most {settings.stop_discrepancy:g}"
        lowest = self.running.clip_score * (1 - (settings.stop_clip_drop or 0))
        if settings.stop_clip_drop is not None and seen["probe/clip_score"] < lowest:
            self.running.stopped = f"CLIP score {seen['probe/clip_score']:.2f} is below {lowest:.2f}"
        return seen

    def _probe(self) -> dict[str, float]:
        assert self.probe is not None
        kept = {name: weight.detach().clone() for name, weight in self.trained.items()} if self.ema else {}
        if self.ema:
            self._put(self.ema)
        try:
            with self.gradient.autocast():
                return {f"probe/{name}": value for name, value in self.probe().items()}
        finally:
            self._put(kept)

    def _note(self, terms: dict[str, float]) -> None:
        self.log += [{"step": self.step, "name": name, "value": value} for name, value in terms.items()]

    def _put(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                self.trained[name].copy_(shard_like(weight, self.trained[name]))

    def _save(self) -> None:
        optimizer = self.optimizer.state_dict()
        state = Checkpoint(
            step=self.step,
            weights={name: full_tensor(weight.detach()) for name, weight in self.trained.items()},
            optimizer={
                **optimizer,
                "state": {
                    key: {name: full_tensor(value) for name, value in moments.items()}
                    for key, moments in optimizer["state"].items()
                },
            },
            scaler={} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            ema={name: full_tensor(mean) for name, mean in self.ema.items()},
            running=asdict(self.running),
            log=self.log,
            fingerprint=self.fingerprint,
        )
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, state, self.runtime.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self.saved = self.step

    def _restore(self) -> None:
        checkpoint = load_checkpoint(self.folder, self.fingerprint)
        if checkpoint is None:
            return
        self._put(checkpoint.weights)
        weights = list(self.trained.values())
        state = {
            number: {name: shard_like(value, weights[number]) for name, value in moments.items()}
            for number, moments in checkpoint.optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**checkpoint.optimizer, "state": state})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.ema = {name: shard_like(mean, self.trained[name]).clone() for name, mean in checkpoint.ema.items()}
        self.step, self.log, self.running = checkpoint.step, list(checkpoint.log), Running(**checkpoint.running)
        self.saved = self.step


class _Trackers:
    """TensorBoard, W&B: whatever Accelerate was told to log with."""

    def __init__(self, accelerator: Any, start: int) -> None:
        self._accelerator = accelerator
        if accelerator.log_with:
            folder = str(accelerator.project_dir)
            # after a resume the steps since the checkpoint come again: the old ones are dropped
            options = {"tensorboard": {"purge_step": start + 1}, "wandb": {"dir": folder, "name": Path(folder).name}}
            accelerator.init_trackers("popalign", init_kwargs=options)

    def log(self, values: dict[str, float], step: int) -> None:
        if self._accelerator.log_with:
            self._accelerator.log(values, step=step)

    def finish(self) -> None:
        if self._accelerator.log_with:
            self._accelerator.end_training()


def _finish(model: Any, weights: dict[str, Tensor], config: TrainingConfig, dtype: torch.dtype) -> None:
    """Put the final weights in place, in the dtype the model came with."""
    with torch.no_grad():
        for name, weight in trained_weights(model).items():
            weight.copy_(weights[name])
    if config.lora_rank == 0 and model.dtype != dtype:
        model.to(dtype)
    model.requires_grad_(False)
