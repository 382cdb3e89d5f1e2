"""Training on ever smaller parts of the data, with snapshots of what is left."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_weights.callbacks._fresh_start import FreshStart
from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._nested_loaders import check_loaders, on_subset
from lightning_weights.callbacks._shards import whole_state
from lightning_weights.data.nested_subset import nested_size
from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules.snapshots import Snapshot, read_snapshots, write_snapshot


class ProgressiveForgetting(LeanCallback):
    """Train on all data, then on ever smaller parts of it, and keep the weights after each of these sessions.

    Session s sees the first ⌊N rˢ⌋ samples of one fixed shuffle; session 0 is the training as it is without the
    callback. Snapshots are taken in fp32, on the CPU, at the end of a session's last epoch, after its validation.
    [`predict_overflowed`][lightning_weights.modules.predict_overflowed] reads them backwards.

    It works with the Trainer, data and module that a user has. Loaders may come from a data module, from the module or
    from ``fit``; they are put on the subset with their batches, workers, collation, generators and DistributedSampler,
    and are made anew when a session begins, whatever ``reload_dataloaders_every_n_epochs`` says. The hook that makes
    them is called once, so a split in it may be random; in a run that shall be resumed it needs a seed. What a
    schedule gets from ``trainer.estimated_stepping_batches`` are the steps as if every session were as long as the
    first.

    A run that stops anywhere resumes exactly, with [`ExactResume`][lightning_weights.callbacks.ExactResume] inside an
    epoch, too. It logs ``weights/know/`` ``session`` and ``samples``.

    Args:
        rate: Share r ∈ (0, 1) that each session keeps of the data of the one before.
        sessions: Number S ≥ 2 of sessions and of snapshots.
        epochs_per_session: Epochs of every session; a list gives one number per session, of which the first may be 0
            for a network that comes trained. ``Trainer(max_epochs=...)`` is their sum.
        subset_seed: Seed of the shuffle.
        carry_optimizer: Whether the optimizer and its schedules go on from session to session. False: each session
            begins with them as they were made.
        snapshot_dir: Folder for the snapshots, ``session_00.safetensors`` and so on. ``None``: they stay in memory, as
            ``snapshots``, and in checkpoints.

    Raises:
        ValueError: If an argument is out of range, ``max_epochs`` is not the sum of epochs, the folder holds snapshots
            of another run, parameters are half precision, or the data can't be taken apart or has too few samples for
            a session, which is named.

    Warns:
        LightningWeightsWarning: If training ends before the last session. A trial run (``fast_dev_run``) neither warns
            nor writes files.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059. The published sample script for meta-training starts every session
    from the same first weights; here each goes on from the one before, as in the paper.

    Examples:
        >>> forgetting = ProgressiveForgetting(rate=0.5, sessions=3, epochs_per_session=[4, 2, 1])
        >>> [forgetting.session_of_epoch(epoch) for epoch in range(7)]
        [0, 0, 0, 0, 1, 1, 2]

        ```yaml
        trainer:
          max_epochs: 50
          callbacks:
            - class_path: lightning_weights.callbacks.ProgressiveForgetting
              init_args: {rate: 0.5, sessions: 5, epochs_per_session: 10, snapshot_dir: snapshots}
        ```
    """

    def __init__(
        self,
        rate: float = 0.5,
        sessions: int = 5,
        epochs_per_session: int | list[int] = 1,
        subset_seed: int = 0,
        carry_optimizer: bool = True,
        snapshot_dir: str | None = None,
    ) -> None:
        check_number("rate", rate, low=0.0, high=1.0, low_allowed=False)
        check_number("sessions", sessions, low=2, whole=True)
        check_number("subset_seed", subset_seed, low=0, high=2**63, whole=True)
        check_choice("carry_optimizer", carry_optimizer, [True, False])
        several = isinstance(epochs_per_session, Sequence) and not isinstance(epochs_per_session, str)
        epochs = list(epochs_per_session) if several else [epochs_per_session] * sessions
        if len(epochs) != sessions:
            raise ValueError(f"epochs_per_session is {epochs}, but sessions is {sessions}; give one number per session")
        for session, count in enumerate(epochs):
            check_number("epochs_per_session", count, low=1 if session or not several else 0, whole=True)
        self.rate = rate
        self.sessions = sessions
        self.epochs_per_session = epochs if several else epochs_per_session
        self.subset_seed = subset_seed
        self.carry_optimizer = carry_optimizer
        self.snapshot_dir = None if snapshot_dir is None else str(snapshot_dir)
        self.session = 0
        self._reset()

    def _reset(self) -> None:
        self._taken: dict[int, dict[str, Tensor] | str] = {}  # tensors or the path of a file
        self._samples: list[int] = []
        self._whole: Any = None  # the user's loaders
        self._reload: int | None = None  # the user's reload_dataloaders_every_n_epochs, during a fit
        self._start: FreshStart | None = None

    @property
    def _epochs(self) -> list[int]:
        epochs = self.epochs_per_session
        return epochs if isinstance(epochs, list) else [epochs] * self.sessions

    @property
    def _ends(self) -> list[int]:
        return list(accumulate(self._epochs))

    @property
    def snapshots(self) -> list[Snapshot]:
        """Snapshots so far, the one that has forgotten most first."""
        taken = {session: self._taken[session] for session in sorted(self._taken, reverse=True)}
        paths = [snapshot for snapshot in taken.values() if isinstance(snapshot, str)]
        if paths:
            return read_snapshots(paths)
        return [Snapshot(tensors, **self._facts(session)) for session, tensors in taken.items()]

    def session_of_epoch(self, epoch: int) -> int:
        """Return the number of the session that an epoch, from 0, belongs to."""
        return sum(end <= epoch for end in self._ends)

    def state_dict(self) -> dict[str, Any]:
        """Return the plan, the session, and the snapshots or where they are."""
        plan = {"rate": self.rate, "sessions": self.sessions, "epochs": self._epochs, "subset_seed": self.subset_seed}
        taken = {str(session): snapshot for session, snapshot in self._taken.items()}
        return {"plan": plan, "session": self.session, "samples": list(self._samples), "taken": taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: If the checkpoint's run has another plan, or files where this one has memory.
        """
        plan = self.state_dict()["plan"]
        if state_dict["plan"] != plan:
            raise ValueError(f"the plan is {plan}, but the checkpoint's run has {state_dict['plan']}; go on with that")
        files, taken = self.snapshot_dir is not None, state_dict["taken"]
        if any(isinstance(snapshot, str) != files for snapshot in taken.values()):
            raise ValueError(
                f"snapshot_dir is {self.snapshot_dir!r}, but the checkpoint's run keeps its snapshots "
                f"{'in memory' if files else 'in files'}; go on with that"
            )
        self.session, self._samples = state_dict["session"], list(state_dict["samples"])
        self._taken = {int(session): snapshot for session, snapshot in taken.items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the number of epochs, and come between the Trainer and its training data."""
        if stage != "fit":
            return
        if trainer.max_epochs != self._ends[-1] and not trainer.fast_dev_run:
            raise ValueError(
                f"max_epochs is {trainer.max_epochs}, but {self.sessions} sessions with epochs_per_session="
                f"{self.epochs_per_session} are {self._ends[-1]} epochs; set Trainer(max_epochs={self._ends[-1]})"
            )
        self._reset()
        self._reload = trainer.reload_dataloaders_every_n_epochs
        source = trainer.fit_loop._data_source
        vars(source).pop("dataloader", None)
        # loaders that were given to `fit` pass no hook: what asks for them all is the source
        source.dataloader = partial(self._serve, trainer, pl_module, source.dataloader)

    def _serve(self, trainer: Trainer, pl_module: LightningModule, request: Callable[[], Any]) -> Any:
        if self._whole is None or self._reload:
            loaders = request()
            owners = [owner for owner in (trainer.datamodule, pl_module) if owner is not None]
            classes = next((owner.num_classes for owner in owners if hasattr(owner, "num_classes")), 0)
            numbers = trainer.world_size, classes if isinstance(classes, int) else 0
            samples = check_loaders(loaders, self.rate, self.sessions, self.subset_seed, *numbers)
            if self._samples not in ([], samples):
                raise ValueError(
                    f"the training data has {samples} samples and had {self._samples} before: sessions are parts of "
                    f"the same data, so go on with that"
                )
            self._whole, self._samples = loaders, samples
        return on_subset(self._whole, self.rate, self._session_now(trainer), self.subset_seed)

    def _session_now(self, trainer: Trainer) -> int:
        return min(self.session_of_epoch(trainer.current_epoch), self.sessions - 1)  # or a fit that is over

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check weights and folder, and note how optimizers start."""
        self._start = FreshStart(trainer)
        for name, param in pl_module.named_parameters():
            if param.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"{plain_name(name)} is {param.dtype}, too coarse for the differences between sessions; use "
                    f"precision 32-true, or bf16-mixed, which keeps weights in fp32"
                )
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            # a schedule that asks for the number of steps has loaded the data of the first session
            trainer.fit_loop._combined_loader = None
            return
        self.session, self._taken = 0, {}
        folder = self.snapshot_dir
        if trainer.strategy.broadcast(folder is not None and any(Path(folder).glob("session_*.safetensors"))):
            raise ValueError(f"snapshot_dir is {folder!r}, which holds snapshots of another run; give another folder")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the snapshot that is due: of a network that comes trained, or of a run that stopped at a session's end.

        Raises:
            ValueError: If the checkpoint has no snapshots of the sessions that are over.
        """
        epoch = trainer.current_epoch
        missing = [session for session, end in enumerate(self._ends) if end < epoch and session not in self._taken]
        if missing:
            raise ValueError(
                f"the fit goes on in epoch {epoch}, and there are no snapshots of sessions {missing}: the checkpoint "
                f"was saved without ProgressiveForgetting. Begin anew, or at the end of session 0"
            )
        self._keep(trainer, pl_module, epoch)
        self._plan_reload(trainer, epoch)

    def _plan_reload(self, trainer: Trainer, epoch: int) -> None:
        begins = epoch in self._ends[:-1]
        trainer.reload_dataloaders_every_n_epochs = 1 if begins else self._reload or 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a session; not called when a run resumes inside an epoch."""
        trainer.reload_dataloaders_every_n_epochs = self._reload or 0
        session = self._session_now(trainer)
        if session != self.session and not self.carry_optimizer and self._start is not None:
            self._start.again(trainer)
        self.session = session

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, and at a session's end take the snapshot and have the loaders made anew."""
        values = {"session": float(self.session), "samples": float(self._size(self.session))}
        pl_module.log_dict({f"weights/know/{name}": value for name, value in values.items()})
        self._keep(trainer, pl_module, trainer.current_epoch + 1)
        self._plan_reload(trainer, trainer.current_epoch + 1)

    def _keep(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Take the snapshot of the session that ends after so many epochs, unless it was taken."""
        session = self._ends.index(epochs) if epochs in self._ends else None
        if session is None or session in self._taken:
            return
        tensors = whole_state(pl_module)
        if self.snapshot_dir is None or trainer.fast_dev_run:
            self._taken[session] = tensors
            return
        path = ""
        if trainer.is_global_zero:
            about = {"epochs": self._epochs[session], "module": type(pl_module).__name__}
            path = write_snapshot(self.snapshot_dir, tensors, **self._facts(session), about=about)
        self._taken[session] = trainer.strategy.broadcast(path)

    def _facts(self, session: int) -> dict[str, Any]:
        return {
            "session": session,
            "sessions": self.sessions,
            "samples": self._size(session),
            "rate": self.rate,
            "subset_seed": self.subset_seed,
        }

    def _size(self, session: int) -> int:
        return sum(nested_size(count, self.rate, session) for count in self._samples)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell if sessions are missing."""
        self._keep(trainer, pl_module, trainer.current_epoch)  # a fit that was over when it resumed
        if len(self._taken) < self.sessions and trainer.is_global_zero and not trainer.fast_dev_run:
            warnings.warn(
                f"training ended with {len(self._taken)} of {self.sessions} snapshots, in session {self.session}",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the Trainer its training data back."""
        if stage == "fit" and self._reload is not None:
            vars(trainer.fit_loop._data_source).pop("dataloader", None)
            trainer.reload_dataloaders_every_n_epochs = self._reload
            self._whole = self._start = self._reload = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the Trainer its training data back."""
        self.teardown(trainer, pl_module, "fit")
