"""Images cut into superpixels, many at once."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

ROUNDS = 10
CHUNK = 64  # images that are cut together: the distances of all their pixels to all centres lie in memory


def superpixels(images: Tensor, rows: int, compactness: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cut images into superpixels by k-means on position and grey value, from centres on a regular grid.

    The simple linear iterative clustering of Achanta et al. 2012, whose search window is the whole image here.

    Args:
        images: Grey values in [0, 1] of shape (images, height, width).
        rows: Rows and columns of centres; superpixels that lose all their pixels vanish.
        compactness: How much the distance between grid points counts against a difference in grey value of 1.

    Returns:
        For each superpixel, image after image: the number of its image, the mean position of its pixels (column and
        row, from -1 to 1), and their mean grey value.
    """
    found = [_cut(part, rows, compactness) for part in images.split(CHUNK)]
    starts = range(0, len(images), CHUNK)
    owners = [owner + start for (owner, _, _), start in zip(found, starts, strict=True)]
    return torch.cat(owners), torch.cat([part[1] for part in found]), torch.cat([part[2] for part in found])


def _cut(images: Tensor, rows: int, compactness: float) -> tuple[Tensor, Tensor, Tensor]:
    count, height, width = images.shape
    down, across = ((torch.arange(size) * 2 + 1) / size - 1 for size in (height, width))
    places = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    weight = compactness * rows / 2  # grid points are 2 / rows apart
    pixels = torch.cat([(places * weight).expand(count, -1, -1), images.reshape(count, -1, 1)], dim=-1)
    grid = (torch.arange(rows) * 2 + 1) / rows - 1
    start = (torch.cartesian_prod(grid, grid).flip(1) * weight).expand(count, -1, -1)
    centres = torch.cat([start, adaptive_avg_pool2d(images, rows).reshape(count, -1, 1)], dim=-1)
    for _ in range(ROUNDS):
        # the squared distances but for |pixel|², which is the same for all centres
        lengths = centres.square().sum(2)[:, None, :]
        owner = torch.baddbmm(lengths, pixels, centres.mT, alpha=-2).argmin(2)
        members = torch.zeros(count, rows**2).scatter_add_(1, owner, torch.ones(owner.shape))
        sums = torch.zeros_like(centres).scatter_add_(1, owner[..., None].expand(-1, -1, 3), pixels)
        centres = torch.where(members[..., None] > 0, sums / members[..., None].clamp(min=1), centres)
    present = members > 0
    kept = centres[present]
    return present.nonzero()[:, 0], kept[:, :2] / weight, kept[:, 2:]
