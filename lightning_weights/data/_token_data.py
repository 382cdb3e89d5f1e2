"""What data modules of token sequences share: batches of ids, masks and labels, and loaders that resume."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from lightning_weights.errors import check_number
from lightning_weights.modules._pretrained import IGNORED, load_tokenizer


class Sequences(NamedTuple):
    """Token sequences of equal length, padded on the right.

    Args:
        input_ids: Tokens, (N, T).
        lengths: Tokens of each sequence that are not padding, (N,).
        ignored: Tokens at the start of each sequence that are not to be predicted, (N,).
    """

    input_ids: Tensor
    lengths: Tensor
    ignored: Tensor


def pad(rows: Sequence[Sequence[int]], padding: int, ignored: Sequence[int] | None = None) -> Sequences:
    """Return sequences of different lengths as one."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    tokens = torch.full((len(rows), int(lengths.max()) if len(rows) else 0), padding)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.long)
    return Sequences(tokens, lengths, torch.zeros_like(lengths) if ignored is None else torch.tensor(ignored))


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Serve batches of ``input_ids``, ``attention_mask`` and ``labels``, as wide as their longest sequence."""

    def __init__(self, sequences: Sequences) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the batch of these indices; loaders call it instead of fetching one by one."""
        tokens, lengths, ignored = (part[torch.as_tensor(indices)] for part in self.sequences)
        tokens = tokens[:, : int(lengths.max())]
        place = torch.arange(tokens.shape[1])
        real = place < lengths[:, None]
        labels = tokens.masked_fill(~real | (place < ignored[:, None]), IGNORED)
        return {"input_ids": tokens, "attention_mask": real.long(), "labels": labels}


class TokenData(LightningDataModule, ABC):
    """Base of the data modules of token sequences: a subclass says how to make the three parts.

    The loaders have generators of their own that go on from epoch to epoch, and nothing draws from the global ones.
    """

    def __init__(
        self, tokenizer: str, batch_size: int, seed: int, shuffle: bool, num_workers: int, drop_last: bool
    ) -> None:
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        check_number("num_workers", num_workers, low=0, whole=True)
        super().__init__()
        self.tokenizer_name = tokenizer
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._parts: tuple[TokenDataset, TokenDataset, TokenDataset] | None = None
        self._tokenizer: Any = None

    @abstractmethod
    def load(self) -> tuple[Sequences, Sequences, Sequences]:
        """Return the training, validation and test sequences; called once."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, of transformers, loaded when it is first needed."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer_name, type(self).__name__)
        return self._tokenizer

    @property
    def end(self) -> int:
        """Token that ends a text.

        Raises:
            ValueError: If the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"tokenizer {self.tokenizer_name!r} has no token for the end of a text: choose another one"
            )
        return self.tokenizer.eos_token_id

    @property
    def padding(self) -> int:
        """Token that fills sequences up; the end of a text, if the tokenizer has none."""
        return self.end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def setup(self, stage: str | None = None) -> None:
        """Make the sequences, once for all stages; loaders requested before do it themselves.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        if self._parts is not None:
            return
        train, validation, test = map(TokenDataset, self.load())
        self._parts = train, validation, test
        # the loaders of later epochs go on drawing where the earlier ones stopped
        self._order = torch.Generator().manual_seed(self.seed)
        self._evaluation = torch.Generator().manual_seed(self.seed)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the loader of the training sequences."""
        return self._loader(0, self.shuffle, self.drop_last)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the loader of the validation sequences, in their order."""
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the loader of the test sequences, in their order."""
        return self._loader(2)

    def _loader(self, part: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader[dict[str, Tensor]]:
        self.setup()
        # every iterator draws a seed for its workers: without a generator of its own it would be a global draw
        return DataLoader(
            self._parts[part],
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=default_convert,
            generator=self._order if part == 0 else self._evaluation,
        )
