"""Exam scores of made-up students: a table with a noise floor that is known."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.errors import check_number

NAMES = (
    *("study_hours", "class_attendance", "sleep_hours", "sleep_quality", "facility_rating", "exam_difficulty"),
    *("age", "internet_access", "study_method", "course"),
)
MEAN, SCALE = 62.0, 19.0  # about the scores' mean and standard deviation


def student_scores(num_rows: int, noise: float = 8.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw students and their scores: mostly a sum of what they do, with steps, a product and a saturation in it.

    Args:
        num_rows: Number of students.
        noise: Standard deviation of what nothing explains, in points.
        seed: Seed of everything.

    Returns:
        Features (N, 10), of mean 0 and variance 1 or whole numbers, and scores (N,), float32.

    Examples:
        >>> x, y = student_scores(1000)
        >>> x.shape, y.shape, bool(40 < y.mean() < 80)
        (torch.Size([1000, 10]), torch.Size([1000]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(num_rows, 4, generator=generator, device="cpu")
    levels = torch.randint(0, 3, (num_rows, 3), generator=generator, device="cpu").float()
    others = torch.randint(0, 4, (num_rows, 3), generator=generator, device="cpu").float()
    hours, attendance, sleep, age = drawn.unbind(1)
    quality, facility, difficulty = levels.unbind(1)
    internet, method, course = (others[:, 0] > 0).float(), others[:, 1], others[:, 2]
    score = MEAN + 13.0 * hours + 5.0 * attendance + 2.5 * torch.tanh(2.0 * sleep)
    score += 4.0 * (quality - 1) + 3.0 * (facility - 1) - 1.5 * (difficulty - 1)
    score += 3.0 * (method == 2).float() - 2.0 * (method == 0).float()
    score += 2.0 * hours * (quality - 1) - 2.0 * (attendance < -1).float() * hours.clamp(min=0)
    score += noise * torch.randn(num_rows, generator=generator, device="cpu")
    x = torch.stack([hours, attendance, sleep, quality, facility, difficulty, age, internet, method, course], dim=1)
    return x, score.clamp(0.0, 100.0)


class StudentScores(LightningDataModule):
    """Serve exam scores of made-up students, a table for regression that is drawn anew from its seed.

    Batches are (features of shape (N, 10), float32; scores of shape (N,), float32, from 0 to 100). Validation and test
    serve the same rows, in order, which no training row is among.

    Args:
        batch_size: Rows per batch.
        num_rows: Rows to train on.
        test_rows: Rows held out.
        noise: Standard deviation of what nothing explains, in points: about the smallest error that is possible.
        seed: Seed of the rows and of their order in training.
        num_workers: Processes per loader; 0 loads in the main process.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> x, y = next(iter(StudentScores(batch_size=16, num_rows=64).train_dataloader()))
        >>> x.shape, y.shape
        (torch.Size([16, 10]), torch.Size([16]))
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_rows: int = 2000,
        test_rows: int = 1000,
        noise: float = 8.0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("num_rows", num_rows), ("test_rows", test_rows)):
            check_number(name, value, low=1, whole=True)
        check_number("noise", noise, low=0.0)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        check_number("num_workers", num_workers, low=0, whole=True)
        super().__init__()
        self.batch_size = batch_size
        self.num_rows = num_rows
        self.test_rows = test_rows
        self.noise = noise
        self.seed = seed
        self.num_workers = num_workers
        self.save_hyperparameters()
        self._parts: tuple[TensorDataset, TensorDataset] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Draw the rows, once for all stages; loaders requested before do it themselves.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        if self._parts is None:
            x, y = student_scores(self.num_rows + self.test_rows, self.noise, self.seed)
            rows = self.num_rows
            self._parts = TensorDataset(x[:rows], y[:rows]), TensorDataset(x[rows:], y[rows:])
            self._order = torch.Generator().manual_seed(self.seed)
            self._evaluation = torch.Generator().manual_seed(self.seed)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader of the training rows, in random order."""
        return self._loader(0, True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader of the rows held out."""
        return self._loader(1, False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader of the rows held out."""
        return self._loader(1, False)

    def _loader(self, part: int, training: bool) -> DataLoader[tuple[Tensor, ...]]:
        self.setup()
        # every iterator draws a seed for its workers: without a generator of its own it would be a global draw
        generator = self._order if training else self._evaluation
        options = {"batch_size": self.batch_size, "num_workers": self.num_workers, "generator": generator}
        return DataLoader(self._parts[part], shuffle=training, **options)
