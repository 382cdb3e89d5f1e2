"""A corruption of images as a module."""

from collections.abc import Iterable

from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.corruptions import corrupt, corruption_strength


class Corruption(nn.Module):
    """Corrupt images as in CIFAR-10-C, in training and in evaluation; how a sample comes out depends on its index.

    It has neither parameters nor state: the same images with the same indices come out the same, on every device and in
    every batch. `functional.corruptions.register_corruption` adds corruptions of your own.

    Args:
        name: Name of the corruption; `functional.corruptions.corruption_names` lists them.
        severity: Severity from 1 to 5.
        seed: Seed of everything that is random.
        strength: Number, or numbers, instead of those of the severity, for example more noise for small images, on
            which severity 5 is mild. Lengths are in pixels of an image of 32, and scaled with the size of the image.

    Raises:
        ValueError: If the name is unknown, a number out of range, or ``strength`` has too many or too few.

    Source: Hendrycks, Dietterich, 2019, arXiv:1903.12261.

    Examples:
        >>> import torch
        >>> blur = Corruption("gaussian_blur", severity=3)
        >>> blur(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
        >>> Corruption("gaussian_noise", strength=0.6)
        Corruption(name='gaussian_noise', strength=[0.6], seed=0)
    """

    def __init__(
        self, name: str, severity: int = 5, seed: int = 0, strength: float | list[float] | None = None
    ) -> None:
        check_number("seed", seed, low=0, high=2**63, whole=True)
        numbers = corruption_strength(name, severity, strength)
        super().__init__()
        self.name = name
        self.severity = severity
        self.seed = seed
        self.strength = numbers

    def forward(self, images: Tensor, indices: Iterable[int] | None = None) -> Tensor:
        """Return corrupted images of the same shape and type.

        Args:
            images: Images of shape (N, C, H, W) or signals of shape (N, C, L), floats in [0, 1].
            indices: Index of every sample. ``None``: its place in the batch.
        """
        return corrupt(images, self.name, self.severity, seed=self.seed, indices=indices, strength=self.strength)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, strength={self.strength}, seed={self.seed}"
