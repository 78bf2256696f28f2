"""The training loop, built from a config."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mask2former.checkpoint import AVERAGE, Checkpointer
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.engine import sharding
from mask2former.engine.accumulation import losses_and_gradients
from mask2former.engine.agreement import OtherProcessError, failing_together, log_failure, translated
from mask2former.engine.builders import Builders
from mask2former.engine.ema import ModelEMA
from mask2former.engine.failed_step import write_failed_step
from mask2former.engine.finite import FiniteGuard, NonFiniteError, RunningStatistics, check_state, skip_limit
from mask2former.engine.freeze import KeepFrozen, freeze
from mask2former.engine.hooks import (
    FinalReport,
    Hook,
    IterationTimer,
    PeriodicCheckpoint,
    PeriodicEvaluation,
    PeriodicWriter,
)
from mask2former.engine.interrupt import StopRequest, raise_stop
from mask2former.engine.kernels import SameKernels
from mask2former.engine.loggers import build_loggers
from mask2former.engine.metric_hooks import build_metric_hooks
from mask2former.engine.optimizer import build_gradient_clipper
from mask2former.engine.parallel import distributed, side_stream
from mask2former.engine.precision import Precision
from mask2former.engine.resume import (
    EvaluationRecord,
    apply_settings,
    changed_settings,
    check_same_start,
    load_hook_states,
    optimizer_settings,
    run_state,
)
from mask2former.engine.seed import seed_everything, with_seed
from mask2former.engine.setup import (
    make_output_dir,
    setup_logging,
    use_available_device,
    with_categories,
    write_config,
)
from mask2former.engine.storage import bounded_event_storage
from mask2former.engine.summary import log_groups, log_run
from mask2former.engine.watchdog import Watchdog
from mask2former.engine.writers import EventWriter, LogWriter

logger = logging.getLogger(__name__)

INTERRUPTED = "model_interrupted"
"""Name of the checkpoint of a run that did not come to its end."""


class Trainer(Builders):
    """Trains the model of a config: `Trainer(cfg)`, `resume_or_load(resume)`, `train()`.

    Subclasses override the `build_*` classmethods and `test` of `Builders` to bring their own model, optimiser, loader
    or evaluator, and `build_hooks` to change the hooks.

    Attributes:
        raw_model, model: the model, and what training calls: the same, or its wrapper for several processes.
        ema: the average of the weights, None unless MODEL_EMA.ENABLED.
        iter: the running iteration, from 0; in `after_step` of hooks the one that has just been completed.
        start_iter, max_iter: first iteration of this run and end (exclusive).
        ends_early: a hook sets it, in every process, to make the running step the last one.
        storage: the scalars of this run, see `mask2former.d2.events`.
        loader: the training batches.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Check the setup and build everything but the loader, whose start depends on `resume_or_load`.

        OUTPUT_DIR gets the config as `config.yaml`, and a log if nobody has set up logging yet, as in a notebook.

        Raises:
            SetupError: config, data and machine do not fit together, see `mask2former.engine.checks`.
        """
        make_output_dir(cfg)
        if not logging.getLogger().handlers:
            setup_logging(Path(cfg.OUTPUT_DIR), rank=comm.get_rank())
        self.check_setup(cfg)
        self._seed_was_drawn = cfg.SEED < 0
        seed = comm.shared_random_seed() if self._seed_was_drawn else cfg.SEED
        with failing_together():
            self.cfg = with_categories(with_seed(use_available_device(cfg), seed))
            if comm.is_main_process():
                write_config(self.cfg, Path(cfg.OUTPUT_DIR, "config.yaml"))
            self._build(self.cfg)
        self.model = distributed(self.raw_model)
        self.start_iter = self.iter = 0
        self.max_iter: int = self.cfg.SOLVER.MAX_ITER
        self.storage = bounded_event_storage(0)
        self.results: dict[str, Any] = {}
        self._is_loaded = False
        self._last_update: int | None = None  # iteration whose update the weights hold; None while they change
        self._last_saved: int | None = None
        self.ends_early = False
        self._state_lock = threading.RLock()  # held while weights change, and while they are saved
        self._stop = StopRequest(at_deadline=self._save_interrupted)
        self._agreed_stop: int | None = None
        self._hooks: list[Hook] = []
        self._hook_states: dict[str, Any] = {}
        self._evaluations = EvaluationRecord(self.cfg.OUTPUT_DIR)
        self.register_hooks(self.build_hooks())

    def _build(self, cfg: CfgNode) -> None:
        logger.info("Seed: %d", cfg.SEED)
        seed_everything(cfg.SEED)
        self.raw_model = self.build_model(cfg)
        self.raw_model.train()
        if sharding.is_asked_for(cfg):
            sharding.shard(self.raw_model)
        self._frozen = freeze(self.raw_model, cfg.MODEL.FREEZE)
        self.optimizer = sharding.with_whole_state(self.build_optimizer(cfg, self.raw_model))
        clip = partial(build_gradient_clipper(cfg), list(self.raw_model.parameters()))
        self._clip_gradients: Callable[[], Tensor] = getattr(self.optimizer, "clip_gradients", clip)
        self.ema = ModelEMA.from_config(cfg, self.raw_model, self.optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.precision = Precision.from_config(cfg, torch.device(cfg.MODEL.DEVICE))
        self.scaler = self.precision.build_scaler()
        self.guard = FiniteGuard(self.raw_model, self.scaler, skip_limit=skip_limit(cfg))
        self._statistics = RunningStatistics(self.raw_model)
        self.checkpointer = Checkpointer(
            self.raw_model,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINTS_TO_KEEP or None,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
        )

    def resume_or_load(self, resume: bool = True, *, strict: bool = False) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR if `resume` and there is one; else MODEL.WEIGHTS.

        With `strict` the latter must hold exactly the weights of the model.

        A resumed run goes on with the seed in the checkpoint unless SEED is set (not negative). Settings that differ
        from those of the checkpoint are named, and take effect.
        """
        self._is_loaded = True
        settings = optimizer_settings(self.optimizer)
        with failing_together():
            state = self.checkpointer.resume_or_load(
                self.cfg.MODEL.WEIGHTS, resume=resume, strict=strict, categories=self.cfg.MODEL.CATEGORIES
            )
            if "iteration" in state:
                self.start_iter = self.iter = state["iteration"] + 1
                self._last_update = self._last_saved = state["iteration"]
                if self._seed_was_drawn:
                    self.cfg = with_seed(self.cfg, state["seed"])
                self._hook_states = self._evaluations.read(state)
                logger.info("Resuming at iteration %d with seed %d", self.start_iter, self.cfg.SEED)
                for change in changed_settings(state.get("settings", {}), self.cfg):
                    logger.warning("Changed since the checkpoint: %s", change)
                apply_settings(settings, self.optimizer, self.scheduler)
                if self.ema is not None:
                    self.ema.resume(state)
            elif self.ema is not None:
                self.ema.restart()
        self._statistics.keep()
        check_same_start(self.start_iter, self.cfg.OUTPUT_DIR)

    def register_hooks(self, hooks: Iterable[Hook | None]) -> None:
        """Add hooks (None is skipped); they are called in the order of registration, those that act last at the end."""
        for hook in hooks:
            if hook is not None:
                hook.trainer = self
                self._hooks.append(hook)
        self._hooks.sort(key=lambda hook: getattr(hook, "acts_last", False))

    def build_hooks(self) -> list[Hook]:
        """The hooks of every run; writers (in the main process) come last, to write what the others stored."""
        hooks: list[Hook] = [
            IterationTimer(),
            Watchdog(self.cfg.SOLVER.WATCHDOG_SECONDS, self.cfg.OUTPUT_DIR),
            SameKernels(),
            PeriodicCheckpoint(self.cfg.SOLVER.CHECKPOINT_PERIOD),
            PeriodicEvaluation(self.cfg.TEST.EVAL_PERIOD),
            *([FinalReport()] if self.cfg.TEST.REPORT else []),
            *build_metric_hooks(self.cfg),
        ]
        if self._frozen:
            hooks.append(KeepFrozen(self._frozen))
        if comm.is_main_process():
            hooks.append(PeriodicWriter(self.build_writers))
        return hooks

    def build_writers(self) -> list[EventWriter]:
        """Log lines, and what LOGGERS asks for, by default `metrics.json` and TensorBoard events in OUTPUT_DIR."""
        return [
            LogWriter(self.max_iter, images_per_step=self.cfg.SOLVER.IMS_PER_BATCH),
            *build_loggers(self.cfg, start_iter=self.start_iter),
        ]

    def train(self) -> dict[str, Any]:
        """Run iterations `start_iter` to `max_iter`; returns the results of the last evaluation.

        MODEL.WEIGHTS is loaded unless `resume_or_load` was called before.

        On an error in any process, SIGINT or SIGTERM the last completed step is saved as `INTERRUPTED`, with
        which `resume_or_load(resume=True)` continues, and the error is raised again.
        """
        if not self._is_loaded:
            self.resume_or_load(resume=False)
        if self.start_iter == 0:
            self.checkpointer.start_anew()
            if comm.is_main_process():
                self._evaluations.remove()
        with self._stop, bounded_event_storage(self.start_iter) as self.storage:
            try:
                load_hook_states(self._stateful(), self._hook_states)
                self._call_hooks("before_train")
                self._run_steps()
            except BaseException as raised:
                self._stop.hold()
                error = translated(raised)
                log_failure(error, self.iter)
                self._save_interrupted(by_all=self._is_agreed(error))
                if isinstance(error, NonFiniteError):
                    write_failed_step(self.cfg, self.raw_model, self.scaler, error)
                if self._stop.signal is not None and isinstance(error, OtherProcessError):
                    raise_stop(self._stop.signal)  # the other processes were told to stop, too
                if error is not raised:
                    raise error from None
                raise
            finally:
                self._call_hooks("after_train")
        return self.results

    def _run_steps(self) -> None:
        if self.start_iter >= self.max_iter:
            logger.info("All %d iterations are done already", self.max_iter)
            return
        if self.ends_early:
            self.save("model_final")
            self.evaluate()
            return
        with failing_together():
            self.loader = self.build_train_loader(self.cfg, start_iteration=self.start_iter)
            batches = iter(self.loader)
        log_run(self.cfg, self.raw_model, self.loader, start_iter=self.start_iter)
        log_groups(self.raw_model, self.optimizer)
        for iteration in range(self.start_iter, self.max_iter):
            self.iter = iteration
            self._call_hooks("before_step")
            self.run_step(batches)
            self._call_hooks("after_step")
            self.storage.step()
            if self.ends_early:
                self.save("model_final")
                return
            stop = self._stop.signal if comm.get_world_size() == 1 else self._agreed_stop
            if stop is not None and iteration + 1 < self.max_iter:
                raise_stop(stop)

    def run_step(self, batches: Iterator[list[dict[str, Any]]]) -> None:
        """One iteration: batch, losses, gradients, update of weights and learning rate."""
        start = time.perf_counter()
        batch = next(batches)
        data_time = time.perf_counter() - start
        # Random points and drop path depend on the iteration alone, so that nothing needs storing to resume.
        seed_everything(self.cfg.SEED, self.iter, comm.get_rank())
        self.optimizer.zero_grad(set_to_none=True)
        losses = losses_and_gradients(
            self.model,
            batch,
            parts=self.cfg.SOLVER.ACCUMULATION_STEPS,
            precision=self.precision,
            scale=self.scaler.scale,
        )
        self.scaler.unscale_(self.optimizer)
        self._call_hooks("after_backward")
        stops = (signal.SIGINT, signal.SIGTERM)
        scalars, stopping = self.guard.read(
            self.iter,
            losses,
            self._clip_gradients(),
            batch,
            flags=[self._stop.signal == number for number in stops],
        )
        self._agreed_stop = next((number for number, is_set in zip(stops, stopping, strict=True) if is_set), None)
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        self._update()
        if comm.is_main_process():
            for name, value in {"data_time": data_time, **scalars}.items():
                self.storage.put_scalar(name, value)
            for name, value in {"lr": learning_rate, **self.guard.counts}.items():
                self.storage.put_scalar(name, value, smoothing_hint=False)

    def _update(self) -> None:
        """Step of optimiser (left out by guard, or scaler after an overflow), scaler and schedule: all or none."""
        with self._state_lock:
            self._last_update = None
            if self.guard.skips:
                self._statistics.restore()
            else:
                self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self._statistics.keep()
            self._last_update = self.iter

    def save(self, name: str) -> None:
        """Write a checkpoint of the last completed step, OUTPUT_DIR/<name>.pth; any process may call it.

        Metrics are written first, unless the run is `INTERRUPTED`: without the interruption they would not be.

        Raises:
            NonFiniteError: a weight or a statistic is not finite.
            OSError: the file cannot be written.
        """
        with self._state_lock:
            if self._last_update is None:
                raise RuntimeError("no step has been completed, there is nothing to save")
            if name != INTERRUPTED:
                self.flush()
            if comm.is_main_process() or sharding.is_sharded(self.raw_model):
                check_state(self.raw_model)
            average = {} if self.ema is None else {AVERAGE: self.ema.state_dict()}
            state = run_state(self.cfg, self._stateful())
            self.checkpointer.save(name, iteration=self._last_update, **state, **average)
            self._last_saved = self._last_update

    def flush(self) -> None:
        """Let hooks write what they hold back."""
        self._call_hooks("flush")

    def _is_agreed(self, error: BaseException) -> bool:
        """Tell whether an error ends all processes at the same place."""
        is_stop = self._agreed_stop is not None and not isinstance(error, Exception)
        return is_stop or isinstance(error, NonFiniteError)

    def _save_interrupted(self, *, by_all: bool = False) -> None:
        """Save the last completed step in the main process; failures are logged, for there is an error already.

        Weights that are divided among processes can only be saved `by_all` of them.
        """
        with self._state_lock, side_stream(self.raw_model):
            is_sharded = sharding.is_sharded(self.raw_model)
            if self._last_update is None or not (by_all if is_sharded else comm.is_main_process()):
                if is_sharded:
                    logger.error(
                        "Weights are divided among processes, which do not end together: the last steps are lost"
                    )
                return
            if self._last_update != self.iter:
                self._statistics.restore()
            try:
                if self._last_saved != self._last_update:
                    self.save(INTERRUPTED)
            except (OSError, NonFiniteError) as error:
                logger.error("The last steps are lost, the checkpoint before them stays: %s", error)
                return
            logger.warning("Interrupted: the run continues at iteration %d with --resume", self._last_update + 1)

    def tell_results(self, iteration: int, results: Mapping[str, float]) -> None:
        """Let hooks know the results of an evaluation after `iteration`, and write down what they remember then."""
        for hook in self._hooks:
            getattr(hook, "after_evaluation", lambda *_: None)(iteration, results)
        self.flush()
        if comm.is_main_process():
            self._evaluations.write(iteration, self._stateful())

    def _stateful(self) -> list[Any]:
        return [*self._hooks, self.guard]

    def _call_hooks(self, moment: str) -> None:
        for hook in self._hooks:
            getattr(hook, moment, lambda: None)()  # hooks of Detectron2 know fewer moments

    def evaluate(self) -> dict[str, Any]:
        """`test` on the model as it is, and `test_ema` on its average if there is one; kept in `results`."""
        is_sharded = sharding.is_sharded(self.raw_model)
        fresh = self.build_model(self.cfg) if is_sharded else None
        model = self.raw_model if fresh is None else sharding.whole_copy(self.raw_model, fresh)
        self.results = self.test(self.cfg, model)
        if self.ema is not None:
            self.results = self.results | self.test_ema(self.cfg, self.ema.averaged_model(fresh))
        return self.results
