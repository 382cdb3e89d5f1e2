"""What a callback can know of the training data."""

from lightning.pytorch import Trainer


def number_of_samples(trainer: Trainer, argument: str) -> int:
    """Return the length of the training loader's data set.

    Args:
        trainer: A trainer whose loaders are set up.
        argument: Which argument gives the number where the data cannot tell it, for the message.

    Raises:
        ValueError: If the data has no length.
    """
    loader = trainer.train_dataloader
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        raise ValueError(
            f"{argument} is None, and the training data in a {type(loader).__name__} has no length; give the number of "
            f"training samples"
        ) from None
