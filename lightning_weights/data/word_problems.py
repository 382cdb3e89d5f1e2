"""Generated arithmetic word problems for language models."""

import torch

from lightning_weights.data._prompt_data import PromptData, Row
from lightning_weights.errors import check_number

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "stamps")
STORIES = (
    ("{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?", lambda a, b: a + b),
    ("{name} has {b} boxes with {a} {things} each. How many {things} are there?", lambda a, b: a * b),
    ("{name} had {c} {things} and gave {b} away. How many {things} are left?", lambda a, b: a),
)
REQUEST = "Solve the problem step by step. Write the final answer as \\boxed{{...}}.\n{problem}"


class WordProblems(PromptData):
    """Serve word problems of one addition, subtraction or multiplication, with their answers.

    Batches are dicts of lists: ``prompt`` and ``answer``. No problem occurs twice.

    Args:
        highest: Largest of the two numbers of a problem, from 9.
        template: What a prompt is made of; ``{problem}`` stands for the problem.
        train_size: Problems to train on.
        validation_size: Problems for validation.
        test_size: Problems for the test.
        batch_size: Problems per training batch.
        val_batch_size: Problems per batch of validation and test.
        seed: Seed of the problems and of their order.

    Raises:
        ValueError: If an argument is out of range, or there are fewer different problems than asked for.

    Examples:
        >>> data = WordProblems(train_size=8, validation_size=2, test_size=2, template="{problem} Answer:")
        >>> batch = next(iter(data.val_dataloader()))
        >>> len(batch["prompt"]), batch["prompt"][0].endswith("Answer:")
        (2, True)
    """

    def __init__(
        self,
        highest: int = 12,
        template: str = REQUEST,
        train_size: int = 512,
        validation_size: int = 32,
        test_size: int = 32,
        batch_size: int = 4,
        val_batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        check_number("highest", highest, low=9, whole=True)
        if not isinstance(template, str) or "{problem}" not in template:
            raise ValueError(f"template is {template!r}; allowed is a text with {{problem}} in it")
        total, most = (
            train_size + validation_size + test_size,
            highest * highest * len(STORIES) * len(NAMES) * len(THINGS),
        )
        if total > most // 2:
            raise ValueError(f"{total} problems are asked for; with highest={highest} allowed are {most // 2} at most")
        super().__init__((train_size, validation_size, test_size), batch_size, val_batch_size, seed)
        self.highest = highest
        self.template = template
        self.save_hyperparameters(logger=False)  # a logger refuses a name that the module has with another value

    def rows(self, count: int, generator: torch.Generator) -> list[Row]:
        """Return different problems with their answers."""
        found: dict[str, str] = {}
        while len(found) < count:
            kinds = (len(STORIES), len(NAMES), len(THINGS), self.highest, self.highest)
            story, name, things, a, b = (
                int(torch.randint(kind, (), generator=generator, device="cpu")) for kind in kinds
            )
            text, answer = STORIES[story]
            words = {"name": NAMES[name], "things": THINGS[things], "a": a + 1, "b": b + 1, "c": a + b + 2}
            found[self.template.format(problem=text.format(**words))] = str(answer(a + 1, b + 1))
        return [{"prompt": prompt, "answer": answer} for prompt, answer in found.items()]
