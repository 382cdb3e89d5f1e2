"""scikit-learn's handwritten digits as graphs of superpixels."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_weights.data._graphs import GraphData, Graphs
from lightning_weights.data._superpixels import superpixels
from lightning_weights.data.digits import Digits
from lightning_weights.errors import check_number

SIDE = 24  # pixels of the enlarged images, whose superpixels have smoother edges than those of 8 x 8 pixels


class DigitSuperpixels(GraphData):
    """Serve scikit-learn's 1797 handwritten digits, cut into superpixels, as graphs in the plane.

    Images of 8 x 8 pixels are enlarged and cut by k-means on position and grey value. Each superpixel has edges from
    its nearest neighbours. All digits take a few seconds.

    Batches are dictionaries with ``x`` (mean grey value in [0, 1], of shape (N, 1)), ``pos`` (column and row, from -1
    to 1, of shape (N, 2)), ``edge_index`` (senders and receivers, of shape (2, E)), ``y`` (the digit, of shape (G,),
    int64) and ``batch`` (number of its image for each superpixel).

    Args:
        batch_size: Images per batch.
        grid: Rows and columns of superpixels at the start; those that lose all their pixels vanish.
        compactness: How round superpixels are: the distance between two of them counts so much against a difference in
            grey value of 1.
        neighbours: Edges that each superpixel receives.
        val_size: Training images set aside for validation.
        test_size: Images held out for the test, of 1797 in all, split so that the classes keep their shares.
        seed: Seed of the splits and the order of the training images.
        shuffle: Whether training images come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Source: superpixels of Achanta et al. 2012; graphs of them as data for networks, Monti et al. 2017,
    arXiv:1611.08402.

    Examples:
        >>> DigitSuperpixels(grid=5, neighbours=6).num_classes
        10
    """

    num_classes = 10

    def __init__(
        self,
        batch_size: int = 32,
        grid: int = 5,
        compactness: float = 0.3,
        neighbours: int = 8,
        val_size: int = 150,
        test_size: int = 500,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_number("grid", grid, low=2, high=SIDE // 2 + 1, whole=True)
        check_number("compactness", compactness, low=0.0, low_allowed=False)
        check_number("neighbours", neighbours, low=1, whole=True)
        super().__init__(batch_size, seed, shuffle, num_workers, drop_last)
        self._digits = Digits(test_size=test_size, seed=seed, as_images=True)
        check_number("val_size", val_size, low=1, high=1797 - test_size, whole=True)
        self.grid = grid
        self.compactness = compactness
        self.neighbours = neighbours
        self.val_size = val_size
        self.test_size = test_size
        self.save_hyperparameters()

    def load(self) -> tuple[Graphs, Graphs, Graphs]:
        """Return the graphs for training, validation and test.

        Raises:
            MissingDependencyError: If scikit-learn isn't installed.
        """
        train_x, train_y, test_x, test_y = self._digits.tensors()
        train, test = self._graphs(train_x, train_y), self._graphs(test_x, test_y)
        shuffled = torch.randperm(len(train_y), generator=torch.Generator().manual_seed(self.seed))
        held, rest = shuffled[: self.val_size].sort().values, shuffled[self.val_size :].sort().values
        return train.take(rest), train.take(held), test

    def _graphs(self, images: Tensor, labels: Tensor) -> Graphs:
        large = interpolate(images, size=(SIDE, SIDE), mode="bilinear").squeeze(1)
        owner, pos, grey = superpixels(large, self.grid, self.compactness)
        sizes = torch.bincount(owner, minlength=len(labels))
        edges, edge_sizes = nearest_neighbours(pos, sizes, self.neighbours)
        return Graphs(sizes, {"x": grey, "pos": pos}, {"y": labels}, edges, edge_sizes)


def nearest_neighbours(pos: Tensor, sizes: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Connect each point with the nearest of its graph, from them to it, sorted by receiver.

    Args:
        pos: Positions of the points of all graphs, one graph after another.
        sizes: Number of points of each graph.
        neighbours: Number of neighbours; a graph with fewer other points has them all.

    Returns:
        Senders and receivers of shape (2, E), points of each graph numbered from 0, and each graph's number of edges.
    """
    edges = []
    for points in pos.split(sizes.tolist()):
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        senders = distances.topk(min(neighbours, len(points) - 1), largest=False).indices.sort(1).values
        receivers = torch.arange(len(points))[:, None].expand_as(senders)
        edges.append(torch.stack([senders.flatten(), receivers.flatten()]))
    return torch.cat(edges, dim=1), torch.tensor([own.shape[1] for own in edges])
