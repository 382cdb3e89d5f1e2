"""Networks with signatures added for a while."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import nn

from lightning_weights.modules._signature_sums import scale_list
from lightning_weights.modules.robust_weight_signature import RobustWeightSignature
from lightning_weights.modules.rws_controller import RWSController


@contextlib.contextmanager
def patched(
    module: nn.Module,
    signatures: RobustWeightSignature | Sequence[RobustWeightSignature],
    scales: float | Sequence[float] = 1.0,
    weighting: Literal["sum", "published"] = "sum",
    allow_train: bool = False,
) -> Iterator[RWSController]:
    """Patch a network inside a ``with`` block, and give it back every bit after it, also after an exception.

    Args:
        module: Network, or a module with it inside, as a LightningModule.
        signatures: One signature or several.
        scales: One scale α for all, or one for each.
        weighting: As of `RWSController`.
        allow_train: As of `RWSController`.

    Yields:
        The controller, whose scales can be changed.

    Raises:
        ValueError: If a signature doesn't fit or is there twice, or there are not as many scales as signatures.
        ShardedParameterError: If the network is sharded.

    Examples:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> signature = RobustWeightSignature.from_tensors({"0.bias": torch.ones(1)}, corruption="fog")
        >>> before = network[0].bias.item()
        >>> with patched(network, signature, 2.0):
        ...     round(network[0].bias.item() - before, 4)
        2.0
    """
    several = [signatures] if isinstance(signatures, RobustWeightSignature) else list(signatures)
    controller = RWSController(module, weighting, allow_train)
    for signature, scale in zip(several, scale_list(scales, len(several)), strict=True):
        controller.add(signature, scale)
    with controller:
        yield controller
