"""FOEM with a β for every layer, chosen on data that it was not fitted to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lightning_weights.errors import check_choice
from lightning_weights.functional import column_solver
from lightning_weights.functional.column_solver import (
    CompensationConfig,
    FOEMConfig,
    InputStatistics,
    QuantizedWeight,
)
from lightning_weights.modules.quantization.calls import Group
from lightning_weights.modules.quantization.driver import drive
from lightning_weights.modules.quantization.report import QuantizationReport
from lightning_weights.modules.quantization.solving import GroupSolver
from lightning_weights.modules.quantization.streams import Blocks, OriginalWeights, WholeNetwork
from lightning_weights.modules.quantization.targets import Target


@dataclass
class BetaChoice:
    """What became of a sweep over β.

    Args:
        report: What was done to every layer, with the β that was chosen.
        errors: Relative error on held-out data for every β, by layer; layers that share inputs have one.
        betas: The β that was chosen, by layer.

    Examples:
        >>> BetaChoice(QuantizationReport(), {"0": {0.0: 0.2, 0.1: 0.1}}, {"0": 0.1}).betas
        {'0': 0.1}
    """

    report: QuantizationReport
    errors: dict[str, dict[float, float]]
    betas: dict[str, float]


def sweep_beta(
    module: nn.Module,
    batches: Iterable[Any],
    betas: Sequence[float],
    holdout: Iterable[Any],
    config: FOEMConfig | Mapping[str, Any] | None = None,
    *,
    blocks: str | None = None,
    targets: str = ".*",
    ignore: Sequence[str] = ("lm_head",),
    export: Literal["fake", "packed"] = "fake",
    mask: str | None = "attention_mask",
    cache_device: str = "cpu",
    progress: bool = True,
) -> BetaChoice:
    """Quantize a network by FOEM, each layer with the β that has the smallest error on held-out data.

    The best β depends on how many tokens a layer sees for each of its inputs. The factors of a layer are computed once
    for all β; what the held-out data make of the layers before is that of the quantized network.

    Args:
        module: As of ``quantize``.
        batches: Calibration data.
        betas: Values of β to choose from; 0 is GPTQ.
        holdout: Held-out data, in batches of the same form.
        config: All other settings of FOEM. ``None``: the defaults.
        blocks: As of ``quantize``.
        targets: As of ``quantize``.
        ignore: As of ``quantize``.
        export: As of ``quantize``.
        mask: As of ``quantize``.
        cache_device: As of ``quantize``.
        progress: As of ``quantize``.

    Returns:
        The report, the errors of every β, and the β of every layer.

    Raises:
        ValueError: If there are no betas or no held-out data, or as ``quantize`` does.

    Examples:
        >>> import torch
        >>> network, data = nn.Linear(32, 16), torch.randn(3, 64, 32)
        >>> config = FOEMConfig(bits=3, group_size=16)
        >>> sweep = sweep_beta(network, data[:2], [0.0, 0.1, 0.2], data[2:], config, progress=False)
        >>> sorted(sweep.errors[""])
        [0.0, 0.1, 0.2]
    """
    check_choice("export", export, ("fake", "packed"))
    config = config if isinstance(config, FOEMConfig) else FOEMConfig(**(config or {}))
    if not len(betas):
        raise ValueError("betas is empty; give the values to choose from")
    data, held_out = list(batches), list(holdout)
    if not held_out:
        raise ValueError("holdout is empty; give batches that are not among the calibration data")
    solver = _BetaSolver(config, betas, len(held_out), export == "packed")
    drive(
        module,
        data + held_out,
        solver,
        blocks=blocks,
        targets=targets,
        ignore=ignore,
        on_missing="raise",
        step=None,
        mask=mask,
        force_tied=False,
        measure_blocks=False,
        cache_device=cache_device,
        folder=None,
        progress=progress,
    )
    return BetaChoice(solver.report, solver.errors, solver.betas)


class _BetaSolver(GroupSolver):
    """Tries several β on every group; the last batches are held out."""

    def __init__(self, config: FOEMConfig, betas: Sequence[float], held_out: int, packed: bool) -> None:
        super().__init__(config, packed)
        self._betas, self._held_out = list(betas), held_out
        self._holdout: Tensor | None = None
        self._sweep: column_solver.BetaSweep | None = None
        self.errors: dict[str, dict[float, float]] = {}
        self.betas: dict[str, float] = {}

    def check(self, targets: Sequence[Target]) -> None:
        super().check(targets)
        if grouped := [target.name for target in targets if target.parts > 1]:
            raise ValueError(
                f"{', '.join(grouped)} are convolutions with groups, which have no inputs in common to choose a beta "
                f"by; add them to ignore"
            )

    def _statistics(
        self, group: Group, scope: Blocks | WholeNetwork, originals: OriginalWeights
    ) -> list[InputStatistics]:
        number, all_batches = len(self.masks) - self._held_out, len(self.masks)
        (fitted,) = self._collect(group, scope, originals, range(number))
        (held_out,) = self._collect(group, scope, originals, range(number, all_batches))
        return [fitted, held_out]

    def _solution(self, targets: Sequence[Target], statistics: Sequence[InputStatistics]) -> dict[str, Any]:
        fitted, held_out = statistics
        self._holdout = held_out.hessian
        solution = super()._solution(targets, [fitted])
        return {**solution, "errors": self._sweep.errors, "beta": self._sweep.beta}

    def _solve(
        self, weight: Tensor, statistics: InputStatistics, config: CompensationConfig, name: str
    ) -> QuantizedWeight:
        self._sweep = column_solver.sweep_beta(
            weight, statistics.hessian, self._holdout, statistics.asymmetry, betas=self._betas, config=config
        )
        return self._sweep.quantized

    def _finish(self, targets: Sequence[Target], solution: dict[str, Any], seconds: float) -> None:
        super()._finish(targets, solution, seconds)
        for target in targets:
            self.errors[target.name], self.betas[target.name] = solution["errors"], solution["beta"]
