"""Random changes of a whole batch of images."""

import torch
from torch import Tensor

from lightning_weights.errors import check_number


class FlipAndCrop:
    """Mirror each image with probability one half, and shift it at random, repeating its border.

    The shift is a crop of the original size out of the image padded by ``padding`` pixels, which repeat its edge.

    Args:
        padding: Largest shift in pixels, in each of the four directions.

    Raises:
        ValueError: If ``padding`` is not a whole number from 0.

    Examples:
        >>> import torch
        >>> images = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> FlipAndCrop(padding=0)(images, torch.Generator().manual_seed(0))
        tensor([[[[1., 0.],
                  [3., 2.]]]])
    """

    def __init__(self, padding: int) -> None:
        check_number("padding", padding, low=0, whole=True)
        self.padding = padding

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return changed images of the same shape (N, C, H, W) and type.

        Args:
            images: Images of shape (N, C, H, W) of any type.
            generator: Where the random numbers come from. ``None``: torch's global generator.
        """
        count, channels, height, width = images.shape
        shifts = torch.randint(-self.padding, self.padding + 1, (2, count, 1), generator=generator)
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        # a pixel outside the image is the nearest one inside: that is padding with the edge, without a padded copy
        rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
        columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
        columns = torch.where(mirrored, width - 1 - columns, columns)
        pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        return images.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).reshape(images.shape)
