"""How far a network's outputs are from turning with its inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_weights.errors import check_number
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.functional.ponita import random_rotations
from lightning_weights.functional.rotated import rotated
from lightning_weights.modules.ponita import PonitaOutput, graph_inputs


class EquivarianceError(Metric):
    r"""Report the relative error of a network under rotations of its input, for scalars and for vectors.

    $$\epsilon_s = \sqrt{\frac{\sum \lVert s(Rx) - s(x) \rVert^2}{\sum \lVert s(x) \rVert^2}}, \qquad
    \epsilon_v = \sqrt{\frac{\sum \lVert v(Rx) - R\, v(x) \rVert^2}{\sum \lVert v(x) \rVert^2}}$$

    Sums are over points, or graphs, and rotations. The network is in evaluation mode meanwhile. A part that the network
    does not have counts as 0.

    Args:
        rotations: Random rotations per update.
        seed: Seed of the rotations, which come from a generator of their own.
        **kwargs: Options of every torchmetrics ``Metric``, such as ``sync_on_compute``.

    Raises:
        ValueError: If an argument is out of range.

    Source: the measure used for steerable networks; the error of a grid of orientations is the one to expect in
    Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> from lightning_weights.modules import Ponita
        >>> metric = EquivarianceError(rotations=1)
        >>> network = Ponita(1, hidden_dim=8, num_layers=1, mode="position")
        >>> metric.update(network, {"x": torch.ones(3, 1), "pos": torch.eye(3)})
        >>> bool(metric.compute()["scalars"] < 1e-5)
        True
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    scalars: Tensor
    vectors: Tensor

    def __init__(self, rotations: int = 4, seed: int = 0, **kwargs: Any) -> None:
        check_number("rotations", rotations, low=1, whole=True)
        check_number("seed", seed, low=0, whole=True)
        super().__init__(**kwargs)
        self.rotations, self.seed = rotations, seed
        for name in ("scalars", "vectors"):  # squares of errors and of outputs
            self.add_state(name, torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("updates", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, network: Callable[..., PonitaOutput], batch: Any) -> None:
        """Measure a network on a batch.

        Args:
            network: Called as `Ponita` is; any module or function that returns scalars and vectors.
            batch: Graphs, as [`graph_inputs`][lightning_weights.modules.graph_inputs] reads them.
        """
        if isinstance(network, nn.Module):
            with evaluation_mode(network):
                self._measure(network, batch)
        else:
            self._measure(network, batch)

    def _measure(self, network: Callable[..., PonitaOutput], batch: Any) -> None:
        inputs = graph_inputs(batch)
        generator = torch.Generator().manual_seed(self.seed + int(self.updates))
        plain = [part.double() for part in network(*inputs)]
        for rotation in random_rotations(self.rotations, inputs.pos.shape[-1], generator=generator):
            turned = inputs._replace(
                pos=rotated(inputs.pos, rotation),
                vectors=None if inputs.vectors is None else rotated(inputs.vectors, rotation),
            )
            found = network(*turned)
            wanted = (plain[0], rotated(plain[1], rotation))
            for name, got, want in zip(("scalars", "vectors"), found, wanted, strict=True):
                squares = torch.stack([(got.double() - want).square().sum(), want.square().sum()])
                setattr(self, name, getattr(self, name) + squares.to(self.scalars.device))
        self.updates = self.updates + 1

    def compute(self) -> dict[str, Tensor]:
        """Return the relative errors, float32; 0 for what the network does not predict."""
        return {
            name: (squares[0] / squares[1].clamp(min=torch.finfo(torch.float64).tiny)).sqrt().float()
            for name, squares in (("scalars", self.scalars), ("vectors", self.vectors))
        }
