"""Resuming a run so that it continues in every bit as if it had never stopped."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_weights.callbacks._epoch_averages import read_averages, write_averages
from lightning_weights.callbacks._generators import read_generators, write_generators


class ExactResume(Callback):
    """Store every random generator in the checkpoint and resume as if the run had never stopped, bit for bit.

    Promised, for any module, at the end of an epoch and inside one: weights, optimizer state, schedulers, later
    batches and metrics are those of the run that never stopped, if the checkpoint was saved in
    ``on_train_batch_end``, at the end of a validation or of an epoch, after ``fit``, or by an exception
    (``ModelCheckpoint(save_on_exception=True)``). Covered are the generators of python, numpy, torch and CUDA and
    those that loaders, samplers and datasets keep as attributes, on every rank; worker processes; several loaders;
    ``reload_dataloaders_every_n_epochs``; and three things Lightning leaves out when it resumes: the validation that
    was due, the averages of the epoch so far and ``ReduceLROnPlateau``. Adding the callback changes no number of a
    run that isn't resumed. Its place in the list of callbacks doesn't matter.

    Inside an epoch the batches already seen are loaded again and dropped, unless a loader is stateful (has
    ``state_dict`` and ``load_state_dict``): then all loaders are left to Lightning, which restores the stateful ones.

    Not exact: kernels that are not deterministic (see ``Trainer(deterministic=True)``); checkpoints inside an
    accumulation window, whose pending gradients are not stored (warned about when saving); loaders and datasets with
    other hidden state, such as random transforms in ``persistent_workers`` or a sampler before workers that draws
    from a global generator throughout the epoch; an epoch's averages after an exception or after ``max_steps`` ended
    it, and running statistics that the failing batch has changed already. Another number of processes, or the crash
    checkpoint of several processes, is resumed as without the callback, with a warning.

    In yaml: ``trainer: {callbacks: [{class_path: lightning_weights.callbacks.ExactResume}]}``.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_weights.callbacks import ExactResume
        >>> trainer = Trainer(max_epochs=1, callbacks=[ExactResume()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._clear()

    def _clear(self) -> None:
        self._record: dict[
            str, Any
        ] = {}  # generators when loaders were requested, iterated, fetched from first and last
        self._safe: dict[str, Any] = {}  # position to go back to when a batch or a validation fails
        self._final: dict[str, Any] = {}  # position at the end of `fit`
        self._resume: dict[str, Any] = {}  # what the checkpoint said, until it is restored
        self._failing = False
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Intercept the loops.

        Hooks can't do it: none runs right before an iterator is made, or between the last hook and the first fetch.

        Raises:
            ValueError: If the Trainer has more than one ``ExactResume``.
        """
        if stage != "fit":
            return
        if sum(isinstance(callback, ExactResume) for callback in trainer.callbacks) > 1:
            raise ValueError("`callbacks` holds more than one `ExactResume`: one is allowed, remove the others.")
        self._clear()
        for loop, name, around in self._interceptions(trainer):
            vars(loop).pop(name, None)
            setattr(loop, name, partial(around, trainer, getattr(loop, name)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the loops and keep the position: generators may be used before ``save_checkpoint`` is called."""
        if stage == "fit":
            self._final = self._position(trainer)
            for loop, name, _ in self._interceptions(trainer):
                vars(loop).pop(name, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remember that a checkpoint saved from now on is a crash checkpoint."""
        self._failing = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the generators of all ranks, the position in the epoch and the metrics that schedulers may look at."""
        # before the first epoch there is nothing to go back to; in a crash, waiting for other ranks would lose the file
        if "first" not in self._record or (self._failing and trainer.world_size > 1):
            return
        checkpoint["callbacks"][self.state_key] = {"ranks": self._gather(trainer, self._resume or self._state(trainer))}

    def _state(self, trainer: Trainer) -> dict[str, Any]:
        state = {**self._record, **(self._final or self._position(trainer))}
        state["metrics"] = {name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()}
        state["reload_epoch"] = trainer.fit_loop._last_train_dl_reload_epoch
        # a batch that failed is run again, but may be averaged in already
        if not state["epoch_done"] and state["now"] is not self._safe.get("now"):
            state["averages"] = read_averages(trainer, trainer.lightning_module)
        self._warn_about_accumulation(trainer, state)
        return state

    @staticmethod
    def _gather(trainer: Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
        ranks = [state]
        if trainer.world_size > 1 and torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks *= trainer.world_size
            torch.distributed.all_gather_object(ranks, state)
        return ranks

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take this rank's state, or warn that the resume can't be exact."""
        if trainer.state.fn != "fit":
            return
        ranks = checkpoint["callbacks"].get(self.state_key, {}).get("ranks", [])
        if len(ranks) == trainer.world_size:
            self._resume = ranks[trainer.global_rank]
            return
        saved = f"by {len(ranks)} processes and there are {trainer.world_size}" if ranks else "without `ExactResume`"
        rank_zero_warn(
            f"This resume is not exact: the checkpoint was saved {saved}. To be exact, train with `ExactResume` from"
            " the start and on the same number of processes."
        )

    def _interceptions(self, trainer: Trainer) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        fit_loop = trainer.fit_loop
        yield fit_loop, "setup_data", self._setup_data
        yield fit_loop, "_load_combined_loader_states", self._before_first_iterator
        yield fit_loop.epoch_loop, "reset", self._reset_epoch
        yield fit_loop.epoch_loop, "on_run_start", self._start_epoch
        yield fit_loop.epoch_loop, "advance", self._before_batch
        yield fit_loop.epoch_loop.val_loop, "run", self._before_validation

    def _position(self, trainer: Trainer) -> dict[str, Any]:
        """Return the generators and the place in the epoch from which an uninterrupted run goes on."""
        epoch, batch = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress
        if batch.current.ready > batch.current.processed or (self._failing and trainer.validating):
            return self._safe
        unfinished = "validation" if batch.current.completed < batch.current.processed else "nothing"
        return {
            "now": read_generators(trainer),
            "batches": batch.current.processed,
            "unfinished": "end of validation" if trainer.validating else unfinished,
            # `max_steps` and `should_stop` end an epoch before its last batch: the epoch is to be continued then
            "epoch_done": epoch.started < epoch.ready or (epoch.processed >= epoch.ready and batch.is_last_batch),
            "plateau_due": epoch.completed < epoch.processed,
        }

    def _warn_about_accumulation(self, trainer: Trainer, state: dict[str, Any]) -> None:
        last = state["epoch_done"] or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if state["batches"] % trainer.accumulate_grad_batches and not last and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"This checkpoint was saved after batch {state['batches']}, inside a window of"
                f" `accumulate_grad_batches={trainer.accumulate_grad_batches}`: resuming is not exact, as"
                " pending gradients are not stored. Save after an optimizer step: when `trainer.global_step` changes."
            )

    def _before_batch(self, trainer: Trainer, advance: Callable[..., None], fetcher: Any) -> None:
        self._set_safe(trainer, unfinished="nothing")
        self._record["fetch"] = self._safe["now"]
        advance(fetcher)

    def _before_validation(self, trainer: Trainer, run: Callable[[], Any]) -> Any:
        self._set_safe(trainer, unfinished="validation")
        return run()

    def _set_safe(self, trainer: Trainer, unfinished: str) -> None:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self._safe = {
            "now": read_generators(trainer),
            "batches": batches,
            "unfinished": unfinished,
            "epoch_done": False,
        }
        self._safe["fetch"] = self._record.get("fetch")

    def _before_first_iterator(self, trainer: Trainer, load_states: Callable[[], None]) -> None:
        load_states()
        self._record.update(iterator=read_generators(trainer), fresh=True)

    def _setup_data(self, trainer: Trainer, setup_data: Callable[[], None]) -> None:
        """Request the loaders under the generators of the original request: it may split or draw data at random."""
        fit_loop, resume = trainer.fit_loop, self._resume
        # again if a callback has dropped the loaders that a schedule asked for before the loops were restored
        if resume and (not self._record or fit_loop._combined_loader is None):
            self._rewind_loops(trainer, resume)
            write_generators(trainer, resume["request"])
            setup_data()
            # not part of Lightning's own state: without it the reload schedule starts anew
            fit_loop._last_train_dl_reload_epoch = resume["reload_epoch"]
            self._record = {key: resume[key] for key in ("request", "iterator", "fresh", "first", "fetch")}
            return
        if resume and resume["epoch_done"]:
            self._resume = {}
            fit_loop._resuming_from_checkpoint = False  # or the new epoch would keep the iterator made by `run`
            write_generators(trainer, resume["now"])
        states, fetcher = read_generators(trainer), fit_loop._data_fetcher
        setup_data()
        if fit_loop._data_fetcher is not fetcher:
            self._record["request"] = states

    def _rewind_loops(self, trainer: Trainer, resume: dict[str, Any]) -> None:
        """Put the loops where the checkpoint was saved; what was unfinished there is done in `_start_epoch`."""
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        trainer.callback_metrics.update({k: v.to(trainer.strategy.root_device) for k, v in resume["metrics"].items()})
        # the public setter reports every run with `max_steps` as restarting inside an epoch
        fit_loop._restarting = epoch_loop.restarting = not resume["epoch_done"]
        for epoch in (fit_loop.epoch_progress.total, fit_loop.epoch_progress.current):
            if resume["epoch_done"]:
                epoch.ready = epoch.started = epoch.processed
            else:
                epoch.processed = epoch.completed = epoch.ready - 1
        if not resume["epoch_done"]:
            batch = epoch_loop.batch_progress
            for count in (batch.total, batch.current):
                count.completed += resume["batches"] - batch.current.completed
                count.ready = count.started = count.processed = count.completed
            batch.is_last_batch = batch.is_last_batch and resume["unfinished"] != "nothing"
        elif resume["plateau_due"]:
            epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)

    def _reset_epoch(self, trainer: Trainer, reset: Callable[[], None]) -> None:
        with warnings.catch_warnings():
            if self._resume and not self._stateful(trainer):
                # no longer true: the loaders are about to be put where they were
                warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")
            reset()

    def _start_epoch(self, trainer: Trainer, on_run_start: Callable[..., None], fetcher: Any) -> None:
        """Keep the generators at both ends of making the iterator; after a resume inside the epoch restore them."""
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        if not self._resume:
            if trainer.current_epoch > 0:  # the iterator of epoch 0 exists already
                self._record.update(iterator=read_generators(trainer), fresh=False)
            on_run_start(fetcher)
            self._record["first"] = self._record["fetch"] = read_generators(trainer)
            return
        on_run_start(fetcher)
        resume, self._resume = self._resume, {}
        fit_loop._restarting = epoch_loop.restarting = False
        if not self._stateful(trainer) and not epoch_loop.batch_progress.is_last_batch:
            self._replay(trainer, resume, fetcher)
        write_generators(trainer, resume["now"])
        if "averages" in resume:
            write_averages(trainer, trainer.lightning_module, resume["averages"])
        if resume["unfinished"] != "nothing":
            # as the uninterrupted run goes on: validate if it is due and wasn't done, then update the schedulers
            epoch_loop._skip_next_val = resume["unfinished"] == "end of validation"
            epoch_loop.on_advance_end(fetcher)

    def _replay(self, trainer: Trainer, resume: dict[str, Any], fetcher: Any) -> None:
        """Make the epoch's iterator again and drop the batches that were seen."""
        if resume["fresh"]:
            fetcher.combined_loader.reset()  # workers that persist would be seeded differently if used again
        write_generators(trainer, resume["iterator"])
        iter(fetcher)
        write_generators(trainer, resume["first"])
        batches = getattr(fetcher, "iterator_wrapper", fetcher)  # `training_step(dataloader_iter)` has a wrapper
        for index in range(resume["batches"]):
            if index == resume["batches"] - 1:
                # loaders without a length are one batch ahead: this fetch draws one that will be used
                write_generators(trainer, resume["fetch"])
            if next(batches, None) is None:
                raise RuntimeError(
                    f"The train loader ended after {index} batches, but the checkpoint was saved after"
                    f" {resume['batches']}: resume with the same data and batch size, or remove `ExactResume`."
                )

    @staticmethod
    def _stateful(trainer: Trainer) -> bool:
        """Tell whether Lightning restores a loader itself, by the methods it looks for."""
        loaders = trainer.fit_loop._combined_loader.flattened
        return any(hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders)
