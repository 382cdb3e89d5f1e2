"""From the inputs of a group of layers to their quantized weights."""

import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.column_solver import (
    CompensationConfig,
    InputStatistics,
    QuantizedWeight,
    dequantize,
    quantize_weight,
)
from lightning_weights.functional.full_precision import full_precision
from lightning_weights.modules.quantization import processes
from lightning_weights.modules.quantization.calls import Group
from lightning_weights.modules.quantization.inputs import as_columns, check_finite, check_streams, fitting_mask, listen
from lightning_weights.modules.quantization.marks import mark, mark_of
from lightning_weights.modules.quantization.packing import replace_modules
from lightning_weights.modules.quantization.report import LayerReport, QuantizationReport
from lightning_weights.modules.quantization.store import Store
from lightning_weights.modules.quantization.streams import Blocks, OriginalWeights, WholeNetwork
from lightning_weights.modules.quantization.targets import Target, write_weight
from lightning_weights.modules.quantized_linear import QuantizedLinear

OF_THE_GRID = ("bits", "group_size", "sym", "mse_clip", "grid", "static_groups", "block_size")
BY_ROW = ("codes", "scale", "zero")  # what a solution has for every row of the weight


class GroupSolver:
    """Quantizes groups of layers, and notes what came of it.

    Args:
        config: Method and settings.
        packed: Whether layers with packed codes are made.

    Attributes:
        masks: Which tokens count, per calibration batch.
        store: Where finished groups are kept, if anywhere.
        report: Gets an entry per layer.
    """

    def __init__(self, config: CompensationConfig, packed: bool = False) -> None:
        self.config = config
        self.packed = packed
        self.masks: list[Tensor | None] = []
        self.store: Store | None = None
        self.report = QuantizationReport()
        self._layers: dict[nn.Module, QuantizedLinear] = {}
        self._short: dict[str, float] = {}  # tokens per input of layers that saw fewer than they have inputs

    def check(self, targets: Sequence[Target]) -> None:
        """Check that targets can become what is asked for.

        Args:
            targets: All that will be quantized.

        Raises:
            ValueError: If one can't be packed.
        """
        if self.packed and any("" in target.names for target in targets):
            raise ValueError(
                "export is 'packed', and the module is itself the layer that would be replaced; put it into a "
                "Sequential, or use 'fake'"
            )
        other = [target.name for target in targets if not all(map(_is_plain, target.layers))]
        if self.packed and other:
            raise ValueError(
                f"export is 'packed', and only linear layers can be packed, not {', '.join(other)}, which are of "
                f"another kind or have a forward of their own; use 'fake', or add them to ignore"
            )

    def solve(self, group: Group, scope: Blocks | WholeNetwork, originals: OriginalWeights) -> None:
        """Quantize a group, or take what an interrupted run has left.

        Args:
            group: Layers that share their inputs.
            scope: Runs the network.
            originals: The weights as they were.
        """
        start, targets = time.perf_counter(), group.targets
        solution = self._load(targets)
        if solution is None:
            statistics = processes.together(lambda: self._statistics(group, scope, originals))
            if processes.number_of_processes() > 1:
                for part in statistics:
                    part.all_reduce(targets[0].weight.device)
            solution = processes.by_first(lambda: self._solution(targets, statistics))
            if self.store is not None and processes.is_first():
                self.store.save(targets, solution)
        self._finish(targets, solution, time.perf_counter() - start)

    def round_to_nearest(self, target: Target) -> None:
        """Quantize a layer that no batch has reached.

        Args:
            target: The layer.
        """
        start = time.perf_counter()
        nearest = CompensationConfig(method="rtn", **{name: getattr(self.config, name) for name in OF_THE_GRID})
        solution = {
            "method": "rtn",
            "samples": 1,
            "tokens": 0,
            "layers": self._quantize([target], [None] * target.parts, nearest),
        }
        self._finish([target], solution, time.perf_counter() - start)

    def _load(self, targets: Sequence[Target]) -> Any:
        if self.store is None:
            return None
        return processes.by_first(lambda: self.store.load(targets))

    def _statistics(
        self, group: Group, scope: Blocks | WholeNetwork, originals: OriginalWeights
    ) -> list[InputStatistics]:
        """Return the statistics of what goes into a group, for each part of a grouped convolution."""
        return self._collect(group, scope, originals, range(len(self.masks)))

    def _collect(
        self, group: Group, scope: Blocks | WholeNetwork, originals: OriginalWeights, batches: range
    ) -> list[InputStatistics]:
        """Return the statistics over some batches."""
        target = group.targets[0]
        statistics = [InputStatistics(target.columns, self.config.asymmetric) for _ in range(target.parts)]
        for index in batches:
            quantized = listen(target.layers, partial(scope.run, index, full=False), group.enough)
            full: list[Any] = [None] * len(quantized)
            if self.config.asymmetric:
                with originals():
                    full = listen(target.layers, partial(scope.run, index, full=True), group.enough)
                check_streams(target.name, quantized, full)
            for x, x_full in zip(quantized, full, strict=True):
                self._add(statistics, target, index, x, x_full)
        return statistics

    def _add(
        self, statistics: Sequence[InputStatistics], target: Target, index: int, x: Tensor, x_full: Tensor | None
    ) -> None:
        """Add a layer's inputs of one call."""
        with torch.autocast(x.device.type, enabled=False), full_precision():
            streams = [as_columns(target.layers[0], stream) for stream in (x, x_full) if stream is not None]
        mask = fitting_mask(streams[0][0], self.masks[index])
        for part, inputs in zip(statistics, zip(*streams, strict=True), strict=True):
            for stream in inputs:
                check_finite(target.name, stream, mask, index)
            part.update(*inputs, mask=mask)

    def _solution(self, targets: Sequence[Target], statistics: Sequence[InputStatistics]) -> dict[str, Any]:
        """Solve a group, as what can be saved."""
        if statistics[0].tokens == 0:
            raise ValueError(
                f"every calibration input of {' and '.join(target.name for target in targets)} is padding, by the "
                f"batches' mask; give batches with tokens, or mask=None"
            )
        return {
            "method": self.config.method,
            "samples": statistics[0].samples,
            "tokens": statistics[0].tokens,
            "layers": self._quantize(targets, statistics, self.config),
        }

    def _quantize(
        self, targets: Sequence[Target], statistics: Sequence[InputStatistics | None], config: CompensationConfig
    ) -> dict[str, list[dict[str, Any]]]:
        """Return what became of the parts of every target's weight; those of all targets are solved as one matrix."""
        found: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
        for index, part in enumerate(statistics):
            matrices = [target.weight.detach().flatten(1).float().chunk(target.parts)[index] for target in targets]
            weight = torch.cat(matrices)
            with torch.autocast(weight.device.type, enabled=False):
                solved = self._solve(weight, part, config, " and ".join(target.name for target in targets))
            hessian = torch.eye(weight.shape[1], device=weight.device) if part is None else part.hessian
            by_row = {
                "error": squared_outputs(weight - solved.dequantized, hessian),
                "norm": squared_outputs(weight, hessian),
                **{name: getattr(solved, name) for name in BY_ROW},
            }
            split = {name: value.cpu().split([len(m) for m in matrices]) for name, value in by_row.items()}
            shared = {"g_idx": solved.g_idx.cpu(), "damp": solved.damp, "loss": solved.loss}
            for position, target in enumerate(targets):
                found[target.name].append({**shared, **{name: pieces[position] for name, pieces in split.items()}})
        return found

    def _solve(
        self, weight: Tensor, statistics: InputStatistics | None, config: CompensationConfig, name: str
    ) -> QuantizedWeight:
        """Quantize a matrix."""
        if config.method == "rtn" or statistics is None:
            return quantize_weight(weight, config=config, name=name)
        return quantize_weight(weight, statistics.hessian, statistics.asymmetry, config=config, name=name)

    def _finish(self, targets: Sequence[Target], solution: dict[str, Any], seconds: float) -> None:
        """Put a solution into the network, and note what it is worth."""
        for target in targets:
            parts, device = solution["layers"][target.name], target.weight.device
            weights = [dequantize(*(part[name] for name in (*BY_ROW, "g_idx"))) for part in parts]
            write_weight(target, torch.cat(weights).to(device))
            for layer in target.layers:
                mark(layer, solution["method"])
            if self.packed:
                for layer in target.layers:
                    self._layers[layer] = self._pack(layer, parts[0]).to(device)
            error, norm = (float(sum(part[name].double().sum() for part in parts)) for name in ("error", "norm"))
            row = LayerReport(
                name=target.name,
                method=solution["method"],
                # H is a mean over samples, and how many tokens one has may depend on how they are batched
                loss=_known(sum(part["loss"] for part in parts) * solution["samples"] / max(solution["tokens"], 1)),
                relative_error=error / max(norm, 1e-30),
                damp=_known(max(part["damp"] for part in parts)),
                tokens=solution["tokens"],
                seconds=seconds / len(targets),
            )
            self.report.layers.append(row)
            if 0 < solution["tokens"] < target.columns:
                self._short[target.name] = solution["tokens"] / target.columns
        torch.clear_autocast_cache()  # it would go on with the old weights

    def _pack(self, layer: nn.Linear, part: dict[str, Any]) -> QuantizedLinear:
        packed = QuantizedLinear.from_quantized(SimpleNamespace(**part), self.config.bits, layer.bias)
        mark(packed, mark_of(layer).method)
        return packed.train(layer.training)

    def finish(self, module: nn.Module) -> None:
        """Put the packed layers in, and say what the data were too few for.

        Args:
            module: The network.
        """
        replace_modules(module, self._layers)
        if self._short:
            worst = min(self._short, key=lambda name: self._short[name])
            warnings.warn(
                f"{len(self._short)} layers saw fewer calibration tokens than they have inputs, {worst} "
                f"{self._short[worst]:.2g} per input: they are fitted to these tokens more than to others. Give more "
                f"data, or a larger damp (and beta, for FOEM)",
                LightningWeightsWarning,
                stacklevel=3,
            )


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer does what nn.Linear does, and nothing else."""
    return isinstance(layer, nn.Linear) and getattr(layer.forward, "__func__", None) is nn.Linear.forward


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def squared_outputs(matrix: Tensor, hessian: Tensor) -> Tensor:
    """Return what every row of a matrix makes of the inputs, as the sum of its squares.

    Args:
        matrix: Rows of a weight, or of a difference of weights.
        hessian: Sum of the inputs' products.
    """
    with torch.autocast(matrix.device.type, enabled=False), full_precision():
        return ((matrix @ hessian) * matrix).sum(dim=1)
