"""Trained models and the linear model that combines them, as one module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_weights.functional.regularized_stacking.meta_features import meta_features
from lightning_weights.modules._batch_inputs import inputs_of
from lightning_weights.modules._stack_members import checkpoints_of, listed, load_member
from lightning_weights.modules.stack_state import StackState


class StackingEnsemble(LightningModule):
    r"""Predict with the models that a fitted `RegularizedStacking` has kept, and with nothing of the others.

    $$f(x) = b + w^\top\,[\,p_S,\; \mu,\; \sigma,\; m,\; r,\; \mu\sigma,\; r\sigma\,], \qquad p_k = f_k(x)$$

    w and b are scalers, learners and blend in one. Of several outputs each has its own S, w and b, and a model is
    loaded if one of them keeps it. Models are read one at a time, stay in evaluation mode and get no gradients; their
    predictions are combined in double precision under any autocast. Once built, the module needs none of the files:
    its ``state_dict`` has all weights.

    Logs ``val/mse`` and ``test/mse``; ``validation_step`` and ``test_step`` return ``loss``, ``preds`` and ``target``.

    Args:
        members: Where the models of all columns are, in the order in which the stack was fitted, or by the names of its
            columns: checkpoints, or folders of `runners.KFoldRunner`, whose model of all rows is taken, or the mean of
            those of the folds. Of columns that were dropped nothing is read.
        stack: The fitted stack: its file, a `StackState`, or the `RegularizedStacking`.
        template: Module of the kind that was saved, which is copied, or a list with one per column. ``None``:
            checkpoints of the command line say how their module is made, if it keeps all its arguments in them.

    Raises:
        ValueError: If there are more or fewer members than columns, or one that is kept can't be loaded.

    Source: Mohammad and Meherab 2026, arXiv:2602.12469.

    Examples:
        >>> import tempfile, torch
        >>> from lightning_weights.modules import MLP, RegularizedStacking
        >>> networks = [MLP(3, (), num_classes=1) for _ in range(4)]
        >>> paths = [f"{tempfile.mkdtemp()}/{place}.pt" for place in range(4)]
        >>> for network, path in zip(networks, paths):
        ...     torch.save(network.state_dict(), path)
        >>> x = torch.randn(60, 3)
        >>> columns = torch.cat([network(x).detach() for network in networks], dim=1)
        >>> target = columns.mean(1) + 0.1 * torch.randn(60)
        >>> stack = RegularizedStacking(learners=["ridge"], n_folds=3).fit(columns, target)
        >>> StackingEnsemble(paths, stack, template=networks[0])(x).shape
        torch.Size([60])
    """

    def __init__(
        self,
        members: list[str] | dict[str, str],
        stack: Any,
        template: nn.Module | list[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        written = isinstance(stack, (str, Path))
        self.save_hyperparameters(ignore=["template"] if written else ["template", "stack"])
        state = StackState.load(stack) if written else getattr(stack, "state_", stack)
        if not isinstance(state, StackState):
            raise ValueError(
                f"stack is a {type(stack).__name__}; allowed is a fitted RegularizedStacking, its state or its file"
            )
        places = listed(members, state.names)
        templates = template if isinstance(template, Sequence) else [template] * len(places)
        if len(templates) != len(places):
            raise ValueError(f"template has {len(templates)} modules for {len(places)} members; give one, or one each")
        self.names = [state.names[column] for column in state.retained]
        self.statistics, self.interactions = state.statistics, state.interactions
        self.flat = state.flat
        self.num_outputs = len(state.outputs)
        self.members = nn.ModuleList(
            nn.ModuleList(load_member(path, templates[column]) for path in checkpoints_of(places[column]))
            for column in state.retained
        )
        place = {column: number for number, column in enumerate(state.retained)}
        for number, output in enumerate(state.outputs):
            weight, bias = output.folded()
            columns = torch.tensor([place[column] for column in output.selected.tolist()])
            for name, tensor in (("columns", columns), ("weight", weight), ("bias", bias)):
                self.register_buffer(f"{name}_{number}", tensor.clone())

    def train(self, mode: bool = True) -> "StackingEnsemble":
        """Change the mode of the module, not of its models."""
        super().train(mode)
        self.members.eval()
        return self

    def member_predictions(self, x: Any) -> Tensor:
        """Return what the models that are kept predict, shape (N, models, outputs).

        Args:
            x: Inputs.
        """
        found = []
        for models in self.members:
            parts = [model(x) for model in models]
            mean = parts[0] if len(parts) == 1 else torch.stack([part.double() for part in parts]).mean(0)
            found.append(mean.reshape(mean.shape[0], -1).expand(-1, self.num_outputs))
        return torch.stack(found, dim=1)

    def forward(self, x: Any) -> Tensor:
        """Return predictions of shape (N,), or (N, outputs) if the stack was fitted on several.

        Args:
            x: Inputs of the models.
        """
        predictions = self.member_predictions(x)
        # a linear model of nearly equal columns has large weights that cancel
        exact = predictions.double()
        outputs = []
        for number in range(self.num_outputs):
            columns, weight, bias = (getattr(self, f"{name}_{number}") for name in ("columns", "weight", "bias"))
            features = meta_features(exact[:, columns, number], self.statistics, self.interactions)
            outputs.append(features @ weight.double() + bias.double())
        found = outputs[0] if self.flat else torch.stack(outputs, dim=1)
        return found.to(torch.promote_types(predictions.dtype, torch.float32))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the predictions of a batch, which may be inputs alone."""
        return self(inputs_of(batch))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log ``val/mse`` and return it with predictions and targets."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Log ``test/mse`` and return it with predictions and targets."""
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Any) -> dict[str, Tensor]:
        x, y = batch
        found = self(x)
        loss = nn.functional.mse_loss(found, y.reshape(found.shape).to(found.dtype))
        self.log(f"{stage}/mse", loss, batch_size=len(y), sync_dist=True)
        return {"loss": loss, "preds": found, "target": y}
