"""Statistics of batch normalisation for weights that were not trained into their place."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_weights.errors import check_number
from lightning_weights.functional.evaluation_mode import evaluation_mode
from lightning_weights.modules.quantization.steps import calibration_step


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module,
    batches: Iterable[Any],
    max_batches: int | None = None,
    step: Callable[[Any], Any] | None = None,
) -> int:
    """Replace the running mean and variance of every batch normalisation by their averages over batches.

    Weights that were averaged, extrapolated or added to come with statistics of other weights. Unlike
    ``torch.optim.swa_utils.update_bn``, only batch normalisations are in training mode meanwhile: dropout drops nothing
    and no random number is drawn. Batches may be mappings. Without batch normalisation nothing is run, and a layer that
    no batch reaches, such as a teacher's, keeps the statistics that it has. Weights, flags ``training`` and momenta are
    as they were afterwards.

    Args:
        module: Network or LightningModule, on any device.
        batches: Batches, on any device, each of equal weight. As everywhere in the package, a module's own
            ``calibration_step(batch)`` or ``predict_step`` runs one; otherwise its forward gets the first entry of a
            tuple or list, the entries of a mapping by name, or all of anything else.
        max_batches: Largest number of batches that are used. ``None``: all.
        step: Runs a batch, instead of what ``module`` says.

    Returns:
        Number of batches used.

    Raises:
        ValueError: If ``max_batches`` is no whole number from 1, or the network can't be called with a batch.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
        >>> with torch.no_grad():
        ...     _ = network[0].weight.copy_(torch.eye(2))
        >>> reestimate_batch_norm(network, [torch.tensor([[0.0, 2.0], [2.0, 4.0]])])
        1
        >>> network[1].running_mean
        tensor([1., 3.])
    """
    if max_batches is not None:
        check_number("max_batches", max_batches, low=1, whole=True)
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
    if not norms:
        return 0
    run = calibration_step(module) if step is None else step
    device = norms[0].running_mean.device
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    used = 0
    with evaluation_mode(module):
        try:
            for batch in islice(batches, max_batches):
                if used == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # the mean of all batches
                        norm.train()
                run(move_data_to_device(batch, device))
                used += 1
        finally:
            for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
                norm.momentum = momentum
                if not norm.num_batches_tracked:
                    for name, buffer in buffers.items():
                        getattr(norm, name).copy_(buffer)
    return used
