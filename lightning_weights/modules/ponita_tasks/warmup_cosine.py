"""The learning rate of the paper: warm-up times cosine."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR

from lightning_weights.errors import check_number


class WarmupCosine(ChainedScheduler):
    r"""Let the learning rate rise in a line and fall as a cosine, both at once, by epochs.

    $$\eta_e = \eta \cdot \min\left(1, \frac{e + 1}{w + 1}\right) \cdot \frac{1 + \cos(\pi e / E)}{2}$$

    Args:
        optimizer: Has the learning rate η.
        max_epochs: Number E of epochs, at which the rate would be 0.
        warmup_epochs: Number w of epochs after which the rate rises no more.

    Raises:
        ValueError: If a number is out of range.

    Source: Bekkers et al. 2024, arXiv:2310.02970. Differs from the released code, which spends the first epoch of a
    warm-up at a rate of 0.

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> WarmupCosine(optimizer, max_epochs=4, warmup_epochs=1).get_last_lr()
        [0.5]
    """

    def __init__(self, optimizer: Optimizer, max_epochs: int, warmup_epochs: int = 0) -> None:
        check_number("max_epochs", max_epochs, low=1, whole=True)
        check_number("warmup_epochs", warmup_epochs, low=0, whole=True)
        warmup = LinearLR(optimizer, start_factor=1.0 / (warmup_epochs + 1), total_iters=warmup_epochs)
        super().__init__([warmup, CosineAnnealingLR(optimizer, T_max=max_epochs)])
