"""MNIST out of its original files."""

import math
from pathlib import Path

from torch import Tensor

from lightning_weights.data._files import find, read_bytes
from lightning_weights.data.classification import ClassificationData

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"


class MNIST(ClassificationData):
    """Serve MNIST's handwritten digits (LeCun, Cortes and Burges, 1998) from a folder; nothing is downloaded.

    The folder holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, as they are or as ``.gz``. Batches are (images of shape (N, 1, 28, 28), float32 in
    [0, 1]; labels of shape (N,), int64).

    Args:
        folder: Folder with the four files.
        batch_size: Images per batch.
        validation_size: Training images set aside for validation. 0: validation serves the test images.
        seed: Seed of the order of the training images.
        shuffle: Whether training images come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> data = MNIST("~/data/mnist", batch_size=256)
        >>> data.num_classes
        10
    """

    num_classes = 10

    def __init__(
        self,
        folder: str,
        batch_size: int = 128,
        validation_size: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(batch_size, validation_size, seed, shuffle, num_workers, drop_last)
        self.folder = folder
        self.save_hyperparameters()

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the training images and labels, the test images and labels.

        Raises:
            FileNotFoundError: If the folder lacks a file.
            ValueError: If a file is not what its name says.
        """
        train_x, train_y, test_x, test_y = find(self.folder, FILES, type(self).__name__, SOURCE, ("", ".gz"))
        return (
            _read_idx(train_x, dimensions=3)[:, None],
            _read_idx(train_y, dimensions=1).long(),
            _read_idx(test_x, dimensions=3)[:, None],
            _read_idx(test_y, dimensions=1).long(),
        )


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an array of unsigned bytes in the idx format: two zeros, the type 8, the dimensions, their sizes, the data.

    Raises:
        ValueError: If the file is of another kind, or shorter or longer than it says.
    """
    content = read_bytes(path)
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(bytes(content[i : i + 4].tolist()), "big") for i in range(4, start, 4)]
    if content[:4].tolist() != [0, 0, 8, dimensions] or len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} is not an idx file of unsigned bytes in {dimensions} dimensions, or not complete: get it again"
            f" from {SOURCE}"
        )
    return content[start:].reshape(shape)
