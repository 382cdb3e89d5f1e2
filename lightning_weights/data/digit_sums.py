"""A task for training by reinforcement that takes seconds."""

import torch

from lightning_weights.data._prompt_data import PromptData, Row
from lightning_weights.data.symbol_tokenizer import SymbolTokenizer

DIGITS, STEP, FILLER = "0123456789", "S", "."
LONGEST = 7  # symbols before the answer of a demonstration


class DigitSums(PromptData):
    r"""Serve pairs of digits, of whose sum the last digit is the answer; three rewards pull in different directions.

    A response may think: it consists of digits, ``S`` for a step and ``.`` for nothing, and its last digit counts.
    Rewards that fit are ``AccuracyReward(r"\d")``, ``BrevityReward()`` and ``ClarityReward("", "S", "", 2)``. Batches
    are dicts of lists: ``prompt``, ``answer``, and ``demonstration``, a long and noisy response to begin with: from
    random weights brevity alone would be learned.

    Pairs occur in any part: there are no more than 100 of them.

    Args:
        train_size: Prompts to train on, drawn with their demonstrations.
        validation_size: Prompts for validation.
        test_size: Prompts for the test.
        batch_size: Prompts per training batch.
        val_batch_size: Prompts per batch of validation and test.
        wrong: Share of demonstrations with a wrong answer.
        steps: Probability of a step at each of the places before the answer, a filler or a digit being the others.
        seed: Seed of the prompts and of their order.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> batch = next(iter(DigitSums(train_size=64, batch_size=2).train_dataloader()))
        >>> sorted(batch), all((int(p[0]) + int(p[1])) % 10 == int(a) for p, a in zip(batch["prompt"], batch["answer"]))
        (['answer', 'demonstration', 'prompt'], True)
    """

    def __init__(
        self,
        train_size: int = 4096,
        validation_size: int = 100,
        test_size: int = 100,
        batch_size: int = 16,
        val_batch_size: int = 100,
        wrong: float = 0.3,
        steps: float = 0.25,
        seed: int = 0,
    ) -> None:
        for name, share in (("wrong", wrong), ("steps", steps)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} is {share}; allowed is a number in [0, 1]")
        super().__init__((train_size, validation_size, test_size), batch_size, val_batch_size, seed)
        self.wrong = wrong
        self.steps = steps
        self.save_hyperparameters(logger=False)  # a logger refuses a name that the module has with another value

    @staticmethod
    def tokenizer() -> SymbolTokenizer:
        """Return the tokenizer of prompts and responses."""
        return SymbolTokenizer(DIGITS + STEP + FILLER)

    def rows(self, count: int, generator: torch.Generator) -> list[Row]:
        """Return pairs with their answers and demonstrations."""
        numbers = torch.randint(2520, (count, 4), generator=generator, device="cpu").tolist()
        chances = torch.rand(count, LONGEST + 1, generator=generator, device="cpu").tolist()
        return [self._row(*drawn) for drawn in zip(numbers, chances, strict=True)]

    def _row(self, numbers: list[int], chances: list[float]) -> Row:
        a, b, error, length = numbers[0] % 10, numbers[1] % 10, numbers[2], 3 + numbers[3] % (LONGEST - 2)
        body = "".join(STEP if chance < self.steps else FILLER for chance in chances[:length])
        answer = (a + b) % 10
        shown = (answer + 1 + error % 9) % 10 if chances[-1] < self.wrong else answer
        return {"prompt": f"{a}{b}", "answer": str(answer), "demonstration": f"{body}{shown}"}
