"""The training loop, one for all objectives and model families, on one process or many (Accelerate)."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from popalign_core.config import RuntimeConfig, TrainingConfig
from popalign_core.errors import DivergedError, InputError, PreemptedError
from popalign_core.models.denoisers import family_of
from popalign_core.training.batch import Batch, draw_batch
from popalign_core.training.checkpoint import Checkpoint, LogRow, list_checkpoints, load_checkpoint, save_checkpoint
from popalign_core.training.final_weights import finish_model
from popalign_core.training.gradients import GlobalGradient
from popalign_core.training.input_checks import check_inputs, fingerprint
from popalign_core.training.job import NO_OBSERVERS, Observers, TrainingSubject
from popalign_core.training.noising import forward_process
from popalign_core.training.objective import Running, needs_reference
from popalign_core.training.optimizers import learning_rate, make_optimizer
from popalign_core.training.preemption import watch_preemption
from popalign_core.training.processes import full_tensor, make_accelerator, mean_over_processes, shard_like
from popalign_core.training.reference import frozen_copy, opponent_of
from popalign_core.training.settings_check import count_micro_batches
from popalign_core.training.stopping import is_worth_keeping, next_error_ratio, reason_to_stop
from popalign_core.training.trackers import Trackers
from popalign_core.training.trainable_weights import MovingWeights, choose_weights, trained_weights

MAX_ROLLBACKS = 3
MAX_SKIPPED = 20
"""Steps in a row that float16's gradient scaler may skip."""
N_CALIBRATION = 10
CALIBRATION_BETA = 1e-3
CALIBRATED_SPREAD = 0.4
"""What `beta = \"auto\"` starts `beta * g_spread` at. At 1 the loss is content before the population has moved: on the
embedded model that took beta 50 and pooled gender from .53 to .48 only, where .4 is the beta of 20 that halves it."""


def train_preferences(
    subject: TrainingSubject,
    config: TrainingConfig,
    folder: Path,
    runtime: RuntimeConfig,
    observers: Observers = NO_OBSERVERS,
) -> list[LogRow]:
    """Train a denoiser in place. The same call on the same base model and folder resumes, on one machine bit for bit.

    In rounds each has a folder and data of its own, and begins with all that the one before left (`subject.before`):
    weights, optimiser, moving mean, the count of steps. So warm-up, schedule and the draws of (seed, step) go on over
    all rounds, as in one training whose data change. Objectives that compare preferred with dispreferred samples take
    the policy at the beginning of the round as reference, from the second round on: with dispreferred samples of that
    same policy the fixed point is the preferred population (SPIN, Chen et al. 2024, arXiv:2401.01335; for diffusion,
    arXiv:2402.10210). Retention, and the reference of `dgpo`, stay the base model.

    What trains is the model's own weights, all or those that read the caption (reference: a frozen copy), or, when
    `lora_rank > 0`, a LoRA adapter (reference: the adapter off). Trained weights are float32; a bfloat16 or float16
    model computes under autocast and is cast back at the end.

    Under `accelerate launch` each process calls this with the same arguments. The loss is that of the global batch,
    so that the number of processes, like `runtime.micro_pairs`, changes no result beyond rounding.

    Args:
        subject: Model, noise schedule and data.
        config: Objective and optimiser.
        folder: Where checkpoints lie.
        runtime: Device, micro-batches, memory and speed options, trackers.
        observers: Progress, probe, end.

    Returns:
        training_log rows (step, name, value): loss; squared errors of policy and reference, and their difference g,
        on both sides; g_spread, its standard deviation; implicit_accuracy, the share of pairs whose preferred sample
        has the larger g (a tie is half); normaliser, grad_norm, learning_rate; beta when it is automatic; with
        retention its mean before the weight; what the probe saw; rollbacks. Those of earlier rounds come first. With
        advantages there are no sides: loss, policy_mse and, of dgpo, reference_mse.

    Raises:
        DivergedError: When loss or gradient is not finite, or the preferred error runs away; the last checkpoint stays.
        TrainingError: When every checkpoint is damaged.
        PreemptedError: On SIGTERM, after a checkpoint was written.
        InputError: When the folder's checkpoint belongs to other data, configuration or base weights, or the data
            does not fit model or objective.
        ConfigError: When model, configuration and machine do not fit together.
    """
    run = TrainingRun(subject, config, folder, runtime, observers)
    with watch_preemption() as preemption:
        run.train(lambda: preemption.requested or (observers.is_orphaned is not None and observers.is_orphaned()))
    return run.log


class TrainingRun:
    """One training: what its steps share. `train_preferences` makes one and takes it to its end."""

    def __init__(
        self,
        subject: TrainingSubject,
        config: TrainingConfig,
        folder: Path,
        runtime: RuntimeConfig,
        observers: Observers = NO_OBSERVERS,
    ) -> None:
        """Prepare model, optimiser and processes; arguments and errors as of `train_preferences`."""
        model, data = subject.model, subject.data
        self.process = forward_process(subject.noise_scheduler, config)
        check_inputs(model, data, config)
        self.data, self.config, self.folder, self.time_ids = data, config, folder, subject.time_ids
        self.before, self.seen = subject.before, subject.seen
        self.last_step = (subject.before.step if subject.before else 0) + config.n_steps
        self.runtime, self.on_step, self.probe = runtime, observers.on_step, observers.probe
        self.fingerprint = fingerprint(model, data, config)
        self.dtype = model.dtype
        self.accelerator = make_accelerator(runtime, self.dtype, observers.log_folder or folder)
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
        self.weights = MovingWeights(trained_weights(self.model), config.ema_decay)
        self.gradient = GlobalGradient(
            self.accelerator,
            policy,
            self.model,
            frozen,
            family_of(model),
            self.dtype,
            n_micro,
            target,
            opponent_of(self.weights, self.before, config),
        )
        self.step, self.log, self.running = 0, list[LogRow](), Running()
        self.saved = 0
        self.n_skipped = 0

    def train(self, is_preempted: Callable[[], bool]) -> None:
        """To the last step, or until the probe or SIGTERM ends it."""
        if not self._restore():
            self._begin()
        trackers = Trackers(self.accelerator, self.step)
        started, first = time.perf_counter(), self.step
        while self.step < self.last_step and not self.running.stopped:
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
            last = self.step == self.last_step or bool(self.running.stopped)
            if last or (
                (self.step % self.config.checkpoint_every == 0 or preempted)
                and is_worth_keeping(self.running.error_ratio, self.config)
            ):
                self._save()
            seconds = (time.perf_counter() - started) / (self.step - first) if self.step > first else 0.0
            speed = {
                "samples_per_s": 2 * self.config.n_pairs / max(seconds, 1e-9),
                "eta_s": seconds * (self.last_step - self.step),
            }
            trackers.log(terms | speed, self.step)
            if self.on_step is not None:
                self.on_step(self.step, terms | speed)
            if preempted:  # at the last step too: what comes after the training would not hear of it
                trackers.finish()
                raise PreemptedError(
                    f"SIGTERM at step {self.step} of {self.last_step}: {self.folder} keeps the checkpoint of step "
                    f"{self.saved}; the same command resumes from there"
                )
        trackers.finish()
        final = self.weights.final()
        if not any(hasattr(weight, "full_tensor") for weight in final.values()):
            finish_model(self.model, final, self.config, self.dtype)

    def _begin(self) -> None:
        """Before the first step: what the round before left, or what the base samples, and beta."""
        if self.before is not None:
            self._take_over(copy.deepcopy(self.before))  # the optimiser changes its state in place
            self._note(dict(self.seen))
            self._save()
            return
        self._note(dict(self.seen))
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
        norm = self.accelerator.clip_grad_norm_(list(self.weights.current.values()), self.config.max_grad_norm)
        grad_norm = float(full_tensor(norm))
        is_scaled = self.accelerator.scaler is not None
        self.n_skipped = 0 if math.isfinite(grad_norm) else self.n_skipped + 1
        if self.n_skipped > (MAX_SKIPPED if is_scaled else 0):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"gradient norm is {grad_norm} at step {step}: {advice}")
        rate = learning_rate(self.config, step) * self.running.learning_rate_scale
        self._watch_error(terms, step, advice)
        self._move_weights(rate)
        self.weights.average(step)
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
        start = self.weights.copy()
        limit = self.config.model_copy(update={"beta": CALIBRATION_BETA, "retention": 0.0})
        spreads = []
        for step in range(1, N_CALIBRATION + 1):
            batch = draw_batch(self.data, self.process, limit, self.time_ids, step)
            terms, _ = self.gradient.take(batch, limit, Running())
            spreads.append(terms["g_spread"])
            self._move_weights(self.config.learning_rate)
        self.weights.put(start)
        self.optimizer.optimizer.state.clear()
        if not spreads[-1] > 0:
            raise DivergedError("beta 'auto': the trained weights do not move g at all; give beta a number")
        return CALIBRATED_SPREAD / spreads[-1]

    def _watch_error(self, terms: dict[str, float], step: int, advice: str) -> None:
        self.running.error_ratio = next_error_ratio(self.running.error_ratio, terms)
        if self.running.error_ratio > self.config.max_error_ratio:
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(
                f"the preferred error is {self.running.error_ratio:.2f} times the reference's at step {step}, beyond "
                f"max_error_ratio {self.config.max_error_ratio:g}: the policy unlearns the preferred images; {advice}"
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

    def _look(self) -> dict[str, float]:
        """Every so often, what the population looks like, and whether that ends the training."""
        settings = self.config.probe
        if self.probe is None or settings is None or self.step % settings.every:
            return {}
        seen = self._probe()
        self.running.stopped = reason_to_stop(seen, settings, self.running.clip_score) or self.running.stopped
        return seen

    def _probe(self) -> dict[str, float]:
        assert self.probe is not None
        with self.weights.replaced(self.weights.mean), self.gradient.autocast():
            return {f"probe/{name}": value for name, value in self.probe().items()}

    def _note(self, terms: dict[str, float]) -> None:
        self.log += [{"step": self.step, "name": name, "value": value} for name, value in terms.items()]

    def _save(self) -> None:
        optimizer = self.optimizer.state_dict()
        state = Checkpoint(
            step=self.step,
            weights={name: full_tensor(weight.detach()) for name, weight in self.weights.current.items()},
            optimizer={
                **optimizer,
                "state": {
                    key: {name: full_tensor(value) for name, value in moments.items()}
                    for key, moments in optimizer["state"].items()
                },
            },
            scaler={} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            ema={name: full_tensor(mean) for name, mean in self.weights.mean.items()},
            running=asdict(self.running),
            log=self.log,
            fingerprint=self.fingerprint,
        )
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, state, self.runtime.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self.saved = self.step

    def _restore(self) -> bool:
        """Go on from the newest checkpoint; False when there is none."""
        checkpoint = load_checkpoint(self.folder, self.fingerprint)
        if checkpoint is None:
            return False
        self._take_over(checkpoint)
        self.saved = self.step
        return True

    def _take_over(self, checkpoint: Checkpoint) -> None:
        self.weights.put(checkpoint.weights)
        weights = list(self.weights.current.values())
        state = {
            number: {name: shard_like(value, weights[number]) for name, value in moments.items()}
            for number, moments in checkpoint.optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**checkpoint.optimizer, "state": state})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.weights.restore_mean(checkpoint.ema)
        self.step, self.log, self.running = checkpoint.step, list(checkpoint.log), Running(**checkpoint.running)
