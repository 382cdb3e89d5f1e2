"""Post-training quantization of any network, one group of layers after another."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import device, nn
from tqdm import tqdm

from lightning_weights.errors import LightningWeightsWarning, check_choice
from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules.quantization import processes
from lightning_weights.modules.quantization.calls import Group, Watch, find_groups, merge_groups
from lightning_weights.modules.quantization.solving import GroupSolver
from lightning_weights.modules.quantization.steps import mask_of, runner, undisturbed
from lightning_weights.modules.quantization.store import Store, fingerprint
from lightning_weights.modules.quantization.streams import Blocks, OriginalWeights, WholeNetwork
from lightning_weights.modules.quantization.targets import (
    Target,
    find_blocks,
    find_targets,
    likely_blocks,
)

MANY = 16  # layers from which on running the whole network for each group of them takes long


def drive(
    module: nn.Module,
    batches: Iterable[Any],
    solver: GroupSolver,
    *,
    blocks: str | None,
    targets: str,
    ignore: Sequence[str],
    on_missing: str,
    step: Callable[[Any], Any] | None,
    mask: str | None,
    force_tied: bool,
    measure_blocks: bool,
    cache_device: str,
    folder: str | Path | None,
    progress: bool,
) -> None:
    """Quantize a network in place; see `quantize` for the arguments.

    Args:
        module: The network.
        batches: Calibration data.
        solver: What quantizes a group of layers, and keeps the report.
        blocks: Container of the blocks.
        targets: Layers to quantize.
        ignore: Modules to leave out.
        on_missing: What becomes of layers that no batch reaches.
        step: Runs the network on a batch.
        mask: Entry of a batch that tells padding.
        force_tied: Whether tied weights are quantized.
        measure_blocks: Whether the error of every block is measured.
        cache_device: Where the inputs of blocks are kept.
        folder: Where finished layers are kept.
        progress: Whether a bar is shown.
    """
    check_choice("on_missing", on_missing, ("raise", "rtn", "skip"))
    cache = _device("cache_device", cache_device)
    start = time.perf_counter()
    inside = {"": module} if blocks is None else find_blocks(module, blocks)
    found = find_targets(module, targets, ignore, list(inside), force_tied)
    solver.check(found)
    with undisturbed(module):
        data = list(batches)
        if not any(processes.gather(len(data))):
            raise ValueError("batches is empty; give calibration data")
        solver.masks = [mask_of(batch, mask) for batch in data]
        if folder is not None:
            about = _settings(solver.config, module, found, data, blocks=blocks, mask=mask)
            solver.store = processes.by_first(lambda: Store(folder, about))
        with tqdm(total=len(found), disable=not (progress and processes.is_first()), unit="layer") as bar:
            driver = _Driver(solver, found, runner(module, data, step), on_missing, measure_blocks, bar)
            if blocks is None:
                driver.quantize_whole(module)
            else:
                driver.quantize_blocks(inside, cache)
        solver.finish(module)
    solver.report.seconds = time.perf_counter() - start


def _device(name: str, value: str) -> device:
    try:
        return device(value)
    except RuntimeError as error:
        raise ValueError(f"{name} is {value!r}; allowed is a device such as 'cpu' or 'cuda:0'") from error


def _settings(
    config: CompensationConfig, module: nn.Module, targets: Sequence[Target], batches: Sequence[Any], **others: Any
) -> dict[str, Any]:
    """Return what the results of a run depend on."""
    return {
        "config": {"class": type(config).__name__, **asdict(config)},
        "layers": [target.name for target in targets],
        "weights": fingerprint([*module.parameters(), *module.buffers()]),
        "calibration data": processes.gather(fingerprint(batches)),
        **others,
    }


class _Driver:
    """Goes from group to group."""

    def __init__(
        self,
        solver: GroupSolver,
        targets: Sequence[Target],
        run: Callable[[int], Any],
        on_missing: str,
        measure_blocks: bool,
        bar: Any,
    ) -> None:
        self.solver, self.targets, self.run, self.bar = solver, list(targets), run, bar
        self.on_missing, self.measure_blocks = on_missing, measure_blocks
        self.batches = len(solver.masks)
        self.two_streams = solver.config.asymmetric

    def quantize_whole(self, module: nn.Module) -> None:
        """Quantize the targets, running the whole network for every group."""
        likely = likely_blocks(module, self.targets)
        if likely is not None and len(self.targets) >= MANY:
            warnings.warn(
                f"the whole network is run for every group of its {len(self.targets)} layers; blocks={likely!r} runs "
                f"one block at a time, if its blocks follow each other",
                LightningWeightsWarning,
                stacklevel=3,
            )
        with Watch(self.targets) as watch:
            processes.together(lambda: self.run(0) if self.batches else None)
        targets = self._reached(watch)
        self._quantize(targets, WholeNetwork(self.run), OriginalWeights(targets if self.two_streams else []))

    def quantize_blocks(self, blocks: Mapping[str, nn.Module], cache_device: device) -> None:
        """Quantize the targets block by block."""
        both = self.two_streams or self.measure_blocks
        parts = {name: [target for target in self.targets if target.is_in(plain_name(name))] for name in blocks}
        several = [target.name for target in self.targets if not any(target in part for part in parts.values())]
        if several:
            raise ValueError(f"the weights of {', '.join(several)} are used in several blocks; leave blocks out")
        with Watch(self.targets) as watch:
            scope = processes.together(lambda: Blocks(blocks, self.run, self.batches, both, cache_device))
        reached = self._reached(watch)
        for name, part in parts.items():
            scope.enter(name)
            targets = [target for target in part if target in reached]
            originals = OriginalWeights(targets if both else [])
            self._quantize(targets, scope, originals)
            sums = processes.gather(processes.together(lambda originals=originals: scope.leave(originals)))
            if both:
                error, norm = map(sum, zip(*sums, strict=True))
                self.solver.report.blocks[plain_name(name)] = error / max(norm, 1e-30)

    def _reached(self, watch: Watch) -> list[Target]:
        """Return the targets that some batch of some process reaches, and deal with the others."""

        def look_on() -> None:
            with watch:
                for index in range(1, self.batches):
                    if len(watch.reached) == len(self.targets):
                        break
                    self.run(index)

        processes.together(look_on)
        reached = set().union(*processes.gather(watch.reached))
        self._deal_with([target for target in self.targets if target.name not in reached])
        return [target for target in self.targets if target.name in reached]

    def _deal_with(self, missing: Sequence[Target]) -> None:
        if missing and self.on_missing == "raise":
            raise ValueError(
                f"no calibration batch reaches {', '.join(target.name for target in missing)}: an unused head, an "
                f"expert without a token, or a layer whose weight is read instead of being called, as in "
                f"MultiheadAttention. Give more data, add them to ignore, or set on_missing to 'rtn' or 'skip'"
            )
        for target in missing:
            if self.on_missing == "rtn":
                self.solver.round_to_nearest(target)
            else:
                self.solver.report.skipped.append(target.name)
            self.bar.update()

    def _quantize(self, targets: Sequence[Target], scope: Blocks | WholeNetwork, originals: OriginalWeights) -> None:
        """Quantize targets in the order in which they are reached, by later batches if need be."""
        pending, index = list(targets), 0
        while pending:
            groups, index = self._next_groups(pending, scope, index)
            if not groups:
                break
            for group in groups:
                self.bar.set_description(group.targets[0].name)
                self.solver.solve(group, scope, originals)
                self.bar.update(len(group.targets))
                pending = [target for target in pending if target not in group.targets]
        self._deal_with(pending)

    def _next_groups(
        self, pending: Sequence[Target], scope: Blocks | WholeNetwork, index: int
    ) -> tuple[list[Group], int]:
        """Return the groups that the next batch reaches which reaches any, and the number of the one after it."""

        def look() -> tuple[list[Group], int]:
            for number in range(index, self.batches):
                groups = find_groups(pending, partial(scope.run, number, full=False))
                if groups:
                    return groups, number + 1
            return [], self.batches

        groups, index = processes.together(look)
        return merge_groups(processes.gather([(group.names, group.uses) for group in groups]), pending), index
