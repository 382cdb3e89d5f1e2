"""A data module whose images are corrupted."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_weights.data._corrupted_samples import CorruptedSamples
from lightning_weights.data.classification import ClassificationData
from lightning_weights.errors import check_choice, name_list
from lightning_weights.modules.corruption import Corruption

PARTS = ("train", "val", "test", "predict")
# what a Trainer asks the outer data module for; where the base does not define it, it has the default
FORWARDED = (
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "on_exception",
    "prepare_data_per_node",
    "allow_zero_length_dataloader_with_multiple_devices",
)
LOADERS, SAMPLES = 2**10, 2**40  # most that a part may have, so that no two samples share their random numbers


class Corrupted(LightningDataModule):
    """Serve another data module's samples with corrupted images.

    How an image comes out depends on its index, its part, its loader and the seed: it is the same in every epoch, every
    process and every batch. With several corruptions each gets a random share of the images, as many as every other
    one and always the same. Images must be floats in ``value_range`` of shape (1, H, W) or (3, H, W), not yet
    normalised; an augmentation in the data set comes before the corruption. The rest of a sample stays as it is.

    Loaders are made anew around the corrupted data sets with samplers, ``collate_fn`` and workers of the base's. What
    the base does to batches on their way to the device, as normalising them, comes after the corruption.

    Args:
        base: Data module with map-style data sets in PyTorch's loaders: any one in Python. In yaml it has to be a
            ``ClassificationData``: completions of a shell would else list every data module inside every other.
        corruption: Name of a corruption, or several; `functional.corruptions.corruption_names` lists them.
        severity: Severity from 1 to 5.
        seed: Seed of everything that is random.
        parts: Which of ``train``, ``val``, ``test`` and ``predict`` are corrupted; the others stay clean.
        strength: Numbers instead of those of the severity, by the corruptions' names: severity 5 is mild on small
            images.
        key: Place of the images in a sample: the position in a tuple, or the name in a dict.
        value_range: Smallest and largest value of the inputs, which count as black and white.

    Raises:
        ValueError: If an argument is unknown or out of range. In the loaders: if images are bytes or out of range.

    Examples:
        >>> from lightning_weights.data import Digits
        >>> data = Corrupted(Digits(as_images=True), "gaussian_noise", parts=["test"], strength={"gaussian_noise": 0.6})
        >>> images, labels = next(iter(data.test_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        base: ClassificationData,
        corruption: str | list[str],
        severity: int = 5,
        seed: int = 0,
        parts: list[Literal["train", "val", "test", "predict"]] = ("train", "val", "test"),
        strength: dict[str, float | list[float]] | None = None,
        key: int | str = 0,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        names = [corruption] if isinstance(corruption, str) else name_list("corruption", corruption)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"corruption is {corruption!r}; allowed is a name, or a list of different names")
        strength = {} if strength is None else dict(strength)
        for name in strength:
            check_choice("a key of strength", name, names)
        parts = name_list("parts", parts)
        for part in parts:
            check_choice("an entry of parts", part, PARTS)
        low, high = value_range
        if not low < high:
            raise ValueError(f"value_range is {value_range!r}; allowed are two numbers, the smaller one first")
        super().__init__()
        self.save_hyperparameters(ignore=["base"])
        self.base = base
        self.corruptions = [Corruption(name, severity, seed, strength.get(name)) for name in names]
        self.parts = parts
        self.key = key
        self.value_range = (low, high)
        for name in FORWARDED:
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))

    def prepare_data(self) -> None:
        """Let the base prepare its data."""
        self.base.trainer = self.trainer
        self.base.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Let the base set up its data.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        self.base.trainer = self.trainer
        self.base.setup(stage)

    def teardown(self, stage: str | None = None) -> None:
        """Let the base clean up.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        self.base.teardown(stage)

    def train_dataloader(self) -> Any:
        """Return the base's training loaders, corrupted if ``parts`` has ``train``."""
        return self._part("train")

    def val_dataloader(self) -> Any:
        """Return the base's validation loaders, corrupted if ``parts`` has ``val``."""
        return self._part("val")

    def test_dataloader(self) -> Any:
        """Return the base's test loaders, corrupted if ``parts`` has ``test``."""
        return self._part("test")

    def predict_dataloader(self) -> Any:
        """Return the base's loaders for prediction, corrupted if ``parts`` has ``predict``."""
        return self._part("predict")

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the base's state.

        Args:
            state_dict: What ``state_dict`` returned.
        """
        self.base.load_state_dict(state_dict)

    def _part(self, part: str) -> Any:
        make = getattr(self.base, f"{part}_dataloader")
        if make.__qualname__.startswith("DataHooks."):
            return []  # the base has no such part
        loaders = make()
        return self._corrupted(loaders, PARTS.index(part) * LOADERS) if part in self.parts else loaders

    def _corrupted(self, loaders: Any, number: int) -> Any:
        """Return one loader, or the same collection of them."""
        if isinstance(loaders, Mapping):
            return {name: self._corrupted(loader, number + i) for i, (name, loader) in enumerate(loaders.items())}
        if isinstance(loaders, Sequence):
            return [self._corrupted(loader, number + i) for i, loader in enumerate(loaders)]
        if not isinstance(loaders, DataLoader) or isinstance(loaders.dataset, IterableDataset):
            raise ValueError(
                f"base serves a {type(loaders).__name__} in which samples have no index; allowed are PyTorch's loaders "
                f"of map-style data sets: a sample needs the same corruption in every epoch"
            )
        samples = CorruptedSamples(loaders.dataset, self.corruptions, number * SAMPLES, self.key, self.value_range)
        return _around(samples, loaders)


def _around(dataset: CorruptedSamples, loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of another data set of the same length that goes about it as a given one does."""
    same = (
        "num_workers",
        "collate_fn",
        "pin_memory",
        "timeout",
        "worker_init_fn",
        "multiprocessing_context",
        "generator",
        "prefetch_factor",
        "persistent_workers",
        "pin_memory_device",
        "in_order",
    )
    options = {name: getattr(loader, name) for name in same}
    if type(loader.batch_sampler) is BatchSampler or loader.batch_sampler is None:
        # Trainers replace these parts under distributed training, a batch sampler of another class they do not
        batches = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    else:
        batches = {"batch_sampler": loader.batch_sampler}
    return DataLoader(dataset, **batches, **options)
