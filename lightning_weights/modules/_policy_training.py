"""What training by reinforcement needs around its update: steps, validation, checkpoints, and a start by imitation."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.functional.rollout import Rollout, response_log_probs
from lightning_weights.modules._responses import Responses

VALIDATION_SEED = 0  # of responses drawn in validation, which takes nothing from the generator of training


class PolicyTraining(LightningModule):
    """Base of modules that train a policy; a subclass sets policy, responses and objectives, and trains.

    Args:
        grad_clip: Largest norm of the gradient of an update, or None.
        val_temperature: Temperature of validation and test.
        warm_start_steps: First steps, that imitate.
        optimizer: Makes the optimizer from the parameters, or None.
        lr_scheduler: Makes the scheduler from the optimizer, or None.
    """

    policy: nn.Module
    responses: Responses
    objectives: list[str]

    def __init__(
        self, grad_clip: float | None, val_temperature: float, warm_start_steps: int, optimizer: Any, lr_scheduler: Any
    ) -> None:
        if grad_clip is not None:
            check_number("grad_clip", grad_clip, low=0.0, low_allowed=False)
        check_number("val_temperature", val_temperature, low=0.0)
        check_number("warm_start_steps", warm_start_steps, low=0, whole=True)
        super().__init__()
        self.automatic_optimization = False
        self.grad_clip = grad_clip
        self.val_temperature = val_temperature
        self.warm_start_steps = warm_start_steps
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        # in a tuple: not a submodule, so that it is neither trained nor wrapped nor counted
        self._reference: tuple[nn.Module, ...] = ()
        self._generator: torch.Generator | None = None

    def respond(self, prompts: Sequence[str], temperature: float = 0.0) -> list[str]:
        """Return one response to every prompt, as text.

        Args:
            prompts: Texts of one token and more.
            temperature: Of sampling; 0 takes the most likely tokens.
        """
        return self.responses.texts(self.responses.sample(self.policy, prompts, temperature, self.device))

    def on_fit_start(self) -> None:
        """Check what the loop of an update can do."""
        if any(hasattr(parameter, "placements") for parameter in self.parameters()):
            raise ShardedParameterError("sampling calls the policy outside of FSDP's forward pass; use DDP")
        for reference in self._reference:
            reference.to(self.device)

    def _imitate(self, batch: Mapping[str, Sequence[Any]]) -> None:
        if "demonstration" not in batch:
            raise ValueError(f"warm_start_steps need the column 'demonstration'; the batch has {', '.join(batch)}")
        rollout = self.responses.demonstrations(batch["prompt"], batch["demonstration"], self.device)
        mask = rollout.response_mask
        loss = -(response_log_probs(self.policy, rollout) * mask).sum() / self._tokens(mask)
        self.manual_backward(loss)
        self.log("train/imitation", loss.detach(), batch_size=len(mask))
        self._step()

    def _frozen_copy(self) -> nn.Module:
        return copy.deepcopy(self.policy).eval().requires_grad_(False)

    def _step(self) -> None:
        optimizer = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, which is unscaled by now."""
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.grad_clip)

    def _total(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over processes."""
        if self.trainer.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def _tokens(self, mask: Tensor) -> Tensor:
        """Return what sums over this process's tokens are divided by, so that their mean over processes is right."""
        return self._total(mask.sum()) / self.trainer.world_size

    def on_validation_epoch_start(self) -> None:
        """Begin to draw from the same numbers as in every validation."""
        self._generator = torch.Generator(device=self.device).manual_seed(VALIDATION_SEED)

    def on_test_epoch_start(self) -> None:
        """Begin to draw from the same numbers as in every test."""
        self.on_validation_epoch_start()

    def validation_step(self, batch: Mapping[str, Sequence[Any]], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer the prompts and add to the means of ``val``."""
        self._evaluate("val", batch)

    def test_step(self, batch: Mapping[str, Sequence[Any]], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer the prompts and add to the means of ``test``."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Mapping[str, Sequence[Any]]) -> None:
        rollout: Rollout = self.responses.sample(
            self.policy, batch["prompt"], self.val_temperature, self.device, self._generator
        )
        means = self.responses.score(rollout, batch, validating=True).mean(dim=0)
        values = {f"{stage}/{name}": mean for name, mean in zip(self.objectives, means, strict=True)}
        values[f"{stage}/length"] = rollout.response_mask.sum(dim=1).mean()
        self.log_dict(values, batch_size=len(batch["prompt"]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return what ``optimizer`` and ``lr_scheduler`` make; the module steps both itself."""
        make = partial(torch.optim.AdamW, lr=1e-6) if self.optimizer is None else self.optimizer
        optimizer = make([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError("lr_scheduler watches a metric, and is stepped after every update here; use another one")
        return [optimizer], [scheduler]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the reference, and the state of rewards that have one, to a checkpoint."""
        states = {
            name: reward.state_dict()
            for name, reward in self.responses.rewards.items()
            if hasattr(reward, "state_dict")
        }
        reference = self._reference[0].state_dict() if self._reference else None
        checkpoint["multi_objective_rl"] = {"rewards": states, "reference": reference}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the reference and the state of rewards."""
        saved = checkpoint.get("multi_objective_rl", {"rewards": {}, "reference": None})
        rewards = {name: reward for name, reward in self.responses.rewards.items() if hasattr(reward, "state_dict")}
        for name, state in saved["rewards"].items():
            if name not in rewards:
                raise ValueError(
                    f"the checkpoint has a state of reward {name!r}, and the rewards here that have one are: "
                    f"{', '.join(rewards) or 'none'}"
                )
            rewards[name].load_state_dict(state)
        self._reference = ()
        if saved["reference"] is not None:
            self._reference = (self._frozen_copy(),)
            self._reference[0].load_state_dict(saved["reference"])
