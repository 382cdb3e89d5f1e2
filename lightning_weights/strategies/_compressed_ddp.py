"""What the strategies share: when the reduction begins, what is logged, and what is said when a process is lost."""

from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_weights.errors import WorkerLostError
from lightning_weights.strategies.gradient_reduction import GradientReduction


class CompressedDDPStrategy(DDPStrategy):
    """DDP with a `GradientReduction`, which a subclass names."""

    key: str
    reduction_class: type[GradientReduction]
    reduction: GradientReduction | None = None
    _logged = (0, 0)

    def __repr__(self) -> str:
        # what a Trainer of the other root puts into its refusal
        return (
            f"{type(self).__name__} (of lightning.pytorch; with a Trainer of pytorch_lightning use"
            f" {self.reduction_class.__name__})"
        )

    def configure_ddp(self) -> None:
        """Wrap the module.

        Raises:
            ValueError: If the strategy was given a hook of its own.
        """
        if self._ddp_comm_hook is not None:
            raise ValueError(
                f"ddp_comm_hook is {self._ddp_comm_hook!r}; {type(self).__name__} brings its own: use DDPStrategy for"
                " another one"
            )
        super().configure_ddp()

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers, and begin to reduce what they need.

        Args:
            trainer: The trainer.

        Raises:
            ValueError: If none of them is of the class that this strategy is for.
        """
        super().setup_optimizers(trainer)
        self.reduction = self.reduction_class(self.optimizers)
        self.reduction.register(self.model)
        self._logged = (0, 0)

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Go backward, and reduce gradients with the last batch of an accumulation.

        Args:
            closure_loss: The loss.
            *args: As for any strategy.
            **kwargs: As for any strategy.

        Raises:
            WorkerLostError: If another process can't be reached any more.
        """
        try:
            return super().backward(closure_loss, *args, **kwargs)
        except RuntimeError as error:
            if self.reduction is None or self.reduction.failure is None:
                raise
            raise WorkerLostError(self._loss_of_worker()) from error

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step, and log what was sent for it.

        Args:
            *args: As for any strategy.
            **kwargs: As for any strategy.
        """
        output = super().optimizer_step(*args, **kwargs)
        sent, dense = self.reduction.sent_bytes, self.reduction.dense_bytes
        sent_before, dense_before = self._logged
        if dense > dense_before:
            self._logged = sent, dense
            values = {"sent_bytes": sent - sent_before, "sent_share": (sent - sent_before) / (dense - dense_before)}
            self.lightning_module.log_dict(
                {f"weights/{self.key}/{name}": float(value) for name, value in values.items()}, on_step=True
            )
        return output

    def _loss_of_worker(self) -> str:
        trainer = self.lightning_module.trainer
        saver = trainer.checkpoint_callback
        path = None if saver is None else getattr(saver, "last_model_path", "") or saver.best_model_path
        checkpoint = f"ckpt_path={path!r}" if path else "ckpt_path set to the last checkpoint"
        return (
            f"process {self.global_rank} of {self.world_size} could not reduce gradients after step"
            f" {trainer.global_step}, because another process has ended or can't be reached; its own messages say why:"
            f" {self.reduction.failure}. Start all processes again with {checkpoint}, and training goes on from there"
        )
