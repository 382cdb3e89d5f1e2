"""Generated additions for language models."""

import math

import torch
from torch import Tensor

from lightning_weights.data._token_data import Sequences, TokenData, pad
from lightning_weights.errors import check_number


class Arithmetic(TokenData):
    """Serve additions such as ``12+34=46``, of which a language model has to predict what comes after ``=``.

    Every pair of summands occurs in one of the three parts only, in whatever order. Batches are dicts of ``input_ids``,
    ``attention_mask`` and ``labels``, int64 of shape (N, T), T being the longest of the batch; labels are -100 in the
    problem and in the padding on the right, and the token for the end of a text belongs to the answer.

    Args:
        digits: Digits of the summands, which are drawn from 0 to ``10 ** digits - 1``.
        train_size: Problems to train on.
        validation_size: Problems for validation.
        test_size: Problems for the test. 0: the test serves the validation problems.
        tokenizer: ``bytes`` (ByT5's, 384 tokens), or where a tokenizer comes from, as for ``modules.CausalLM``.
        batch_size: Problems per batch.
        seed: Seed of the problems and of their order.
        shuffle: Whether training problems come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range, or there are fewer different problems than asked
            for.

    Examples:
        >>> data = Arithmetic(digits=2, train_size=100, validation_size=20)
        >>> data.problems()[0][:2]
        ['13+78=91', '39+75=114']
        >>> batch = next(iter(data.val_dataloader()))
        >>> data.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])
        '131</s>'
    """

    def __init__(
        self,
        digits: int = 2,
        train_size: int = 2000,
        validation_size: int = 200,
        test_size: int = 0,
        tokenizer: str = "bytes",
        batch_size: int = 16,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_number("digits", digits, low=1, high=10, whole=True)
        check_number("train_size", train_size, low=1, whole=True)
        check_number("validation_size", validation_size, low=1, whole=True)
        check_number("test_size", test_size, low=0, whole=True)
        highest = 10**digits
        asked, pairs = train_size + validation_size + test_size, highest * (highest + 1) // 2
        if asked > pairs:
            raise ValueError(
                f"train_size, validation_size and test_size are {asked} together; with digits={digits} there are"
                f" {pairs} different additions: ask for fewer or take more digits"
            )
        super().__init__(tokenizer, batch_size, seed, shuffle, num_workers, drop_last)
        self.digits = digits
        self.sizes = (train_size, validation_size, test_size)
        self.save_hyperparameters(logger=False)  # a logger refuses a name that the module has with another value

    def problems(self) -> tuple[list[str], list[str], list[str]]:
        """Return the training, validation and test problems with their answers, as texts."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = _pairs(10**self.digits, sum(self.sizes), generator)
        swapped = torch.rand(len(drawn), generator=generator) < 0.5
        pairs = torch.where(swapped[:, None], drawn.flip(1), drawn).tolist()
        texts = [f"{a}+{b}={a + b}" for a, b in pairs]
        train, validation, _ = self.sizes
        parts = texts[:train], texts[train : train + validation], texts[train + validation :]
        return parts if parts[2] else (*parts[:2], parts[1])

    def load(self) -> tuple[Sequences, Sequences, Sequences]:
        """Return the training, validation and test problems as tokens.

        Raises:
            MissingDependencyError: If transformers or gguf isn't installed.
        """
        train, validation, test = map(self._tokens, self.problems())
        return train, validation, test

    def _tokens(self, texts: list[str]) -> Sequences:
        rows, ignored = [], []
        for text in texts:
            problem, _, answer = text.partition("=")
            # apart, so that no token spans both
            asked = self.encode(f"{problem}=")
            rows.append([*asked, *self.encode(answer), self.end])
            ignored.append(len(asked))
        return pad(rows, self.padding, ignored)


def _pairs(highest: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` different pairs a <= b of numbers below `highest`, all equally likely."""
    total = highest * (highest + 1) // 2
    if total <= 4 * count:
        chosen = torch.randperm(total, generator=generator)[:count].tolist()
    else:
        seen: dict[int, None] = {}
        while len(seen) < count:
            seen.update(dict.fromkeys(torch.randint(total, (count,), generator=generator).tolist()))
        chosen = list(seen)[:count]
    # number n counts the pairs (0, 0), (0, 1), (1, 1), (0, 2), ...: b is the triangle that it lies in
    rows = [((math.isqrt(8 * n + 1) - 1) // 2, n) for n in chosen]
    return torch.tensor([(n - b * (b + 1) // 2, b) for b, n in rows])
