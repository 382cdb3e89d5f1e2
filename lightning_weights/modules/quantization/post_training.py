"""Post-training quantization of any network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_weights.errors import check_choice
from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.modules.quantization.driver import drive
from lightning_weights.modules.quantization.report import QuantizationReport
from lightning_weights.modules.quantization.solving import GroupSolver


def quantize(
    module: nn.Module,
    batches: Iterable[Any],
    config: CompensationConfig | Mapping[str, Any] | None = None,
    *,
    blocks: str | None = None,
    targets: str = ".*",
    ignore: Sequence[str] = ("lm_head",),
    export: Literal["fake", "packed"] = "fake",
    on_missing: Literal["raise", "rtn", "skip"] = "raise",
    step: Callable[[Any], Any] | None = None,
    mask: str | None = "attention_mask",
    force_tied: bool = False,
    measure_blocks: bool = False,
    cache_device: str = "cpu",
    folder: str | Path | None = None,
    progress: bool = True,
) -> QuantizationReport:
    """Quantize the Linear and Conv layers of a network in place, from what goes into them for some batches.

    Layers are quantized in the order in which they are reached, each for inputs that the quantized layers before it
    have made; those that get the same tensor are solved as one matrix. One that a step calls several times is fitted to
    all of its inputs; the first batch that reaches it tells whether it is. Needed at a time are the network, the
    statistics of one such group, the batches, and with two streams (GPTAQ, ResComp, FOEM with α > 0) a copy of the
    weights: of one block, if ``blocks`` are given. The network is run in evaluation mode, without gradients; random
    generators are left where they were, and a batch's step draws the same from them whenever it runs. Autocast applies
    to the network, not to statistics and solutions.

    With ``torch.distributed`` every process has batches of its own: statistics are summed, and all get equal weights.

    Layers are changed as they are finished: after an error or an interruption the original weights have to be loaded
    again, and with ``folder`` the run then goes on after the last finished layer.

    Args:
        module: Network or LightningModule; a LightningModule's ``calibration_step(batch)`` or ``predict_step`` runs a
            batch.
        batches: Calibration data, all of which is kept in memory. The network is called with a dict's entries by name,
            with the first entry of a tuple or list, or with the batch itself.
        config: Method, bits, groups and what else the solver takes. ``None``: ResComp with 3 bits.
        blocks: Name of a ModuleList or Sequential whose blocks follow each other, such as ``model.layers``. Only layers
            in it are quantized, and only its blocks are run, one at a time. ``None``: all layers; the whole network is
            run once for every group of layers (twice with two streams).
        targets: Regular expression of layer names, or of the last parts of them.
        ignore: Regular expressions of modules that are left out, with all that is inside.
        export: ``fake`` puts the quantized values into the weights, ``packed`` puts a ``QuantizedLinear`` in the place
            of every linear layer.
        on_missing: What becomes of layers that no batch reaches: an error, rounding to nearest, or nothing.
        step: Runs the network on a batch, instead of what ``module`` says.
        mask: Entry of a dict batch, of shape (N, T), that is 0 at padding, which then does not count. ``None``: all
            tokens count.
        force_tied: Whether a weight is quantized that an embedding uses, too.
        measure_blocks: Whether the full-precision blocks are run where the method needs no second stream, so that the
            report can tell the error of every block.
        cache_device: Where the inputs of blocks are kept.
        folder: Folder to keep finished layers in, with which an interrupted run goes on. ``None``: none is kept.
        progress: Whether a bar shows how far it is.

    Returns:
        What was done to every layer.

    Raises:
        ValueError: If an argument is out of range, there is no layer or no batch, a layer was quantized before, has NaN
            inputs or is not reached, or the folder holds another run.
        ShardedParameterError: If weights are sharded.

    Warns:
        LightningWeightsWarning: If layers saw fewer tokens than they have inputs, several share a weight, or blocks
            would save time.

    Examples:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> config = CompensationConfig(method="gptq", bits=4, group_size=16)
        >>> report = quantize(network, [torch.randn(64, 16)], config, progress=False)
        >>> [layer.name for layer in report.layers]
        ['0', '2']
    """
    check_choice("export", export, ("fake", "packed"))
    config = config if isinstance(config, CompensationConfig) else CompensationConfig(**(config or {}))
    solver = GroupSolver(config, packed=export == "packed")
    drive(
        module,
        batches,
        solver,
        blocks=blocks,
        targets=targets,
        ignore=ignore,
        on_missing=on_missing,
        step=step,
        mask=mask,
        force_tied=force_tied,
        measure_blocks=measure_blocks,
        cache_device=cache_device,
        folder=folder,
        progress=progress,
    )
    return solver.report
