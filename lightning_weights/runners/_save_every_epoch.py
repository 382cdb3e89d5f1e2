"""Where a fit that was ended goes on."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class SaveEveryEpoch(Checkpoint):
    """Save where to resume after every epoch, when all other callbacks are done with it.

    It is one of the callbacks that a Trainer calls after those that stop early or keep the best weights, whose state
    would be that of the epoch before otherwise. Append it to ``trainer.callbacks``: a Trainer that is told not to save
    takes none as an argument.

    Args:
        path: File, replaced after every epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.path, weights_only=False)
