"""Sentences to be written in a style that an instruction asks for, in styles that exclude each other."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from lightning_weights.data._token_data import Sequences, TokenData, TokenDataset, pad
from lightning_weights.data.styles import COUNTS, HELD_OUT, NAMES, PLACES, STYLES, THINGS, Fact
from lightning_weights.errors import check_choice, check_number

TEMPLATE = "Sentence: {sentence}\nRewritten:"


class Request(NamedTuple):
    """A sentence, a style and the words in which it is asked for.

    Attributes:
        fact: What the sentence says.
        style: Number of the style in ``STYLES``.
        instruction: The words.

    Examples:
        >>> Request(Fact("Ben", 2, "coins", "car"), 4, "Be brief.").answer
        'Ben: 2 coins.'
    """

    fact: Fact
    style: int
    instruction: str

    @property
    def answer(self) -> str:
        """The sentence in its style."""
        return list(STYLES.values())[self.style].write(self.fact)


class StyledDataset(Dataset[dict[str, object]]):
    """Serve batches of conditions, inputs and tasks.

    Args:
        tokens: Tokens of prompts and answers.
        requests: What they were made from.
    """

    def __init__(self, tokens: TokenDataset, requests: Sequence[Request]) -> None:
        self.tokens, self.requests = tokens, requests

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, object]:
        """Return the batch of these indices; loaders call it instead of fetching one by one."""
        chosen = [self.requests[index] for index in indices]
        return {
            "condition": [request.instruction for request in chosen],
            "inputs": self.tokens.__getitems__(indices),
            "task": torch.tensor([request.style for request in chosen]),
        }


class StyledSentences(TokenData):
    """Serve sentences such as ``Anna has 3 apples in the box.``, every one to be written in six styles.

    The styles come in opposite pairs: loud and quiet, sure and unsure, short and long. A short instruction asks for
    one, in one of several ways; validation and test ask for new sentences in words that training never used.

    Batches are mappings as `FunctionalMemory` takes them: ``condition``, a list of N instructions; ``inputs``, a dict
    of ``input_ids``, ``attention_mask`` and ``labels``, int64 of shape (N, T), labels being -100 in the prompt and in
    the padding on the right; ``task``, the number of the style (N,).

    Args:
        train_size: Sentences to train on; each gives six samples.
        validation_size: Sentences for validation.
        test_size: Sentences for the test.
        template: Prompt; ``{sentence}`` stands for the sentence and, if the backbone is to see it, ``{instruction}``
            for the instruction.
        new_words: Whether validation and test ask in words that training doesn't use; otherwise in those of training.
        tokenizer: ``bytes`` (ByT5's, 384 tokens), or where a tokenizer comes from, as for ``modules.CausalLM``.
        batch_size: Samples per batch.
        seed: Seed of sentences, instructions and order.
        shuffle: Whether training samples come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range, or there are fewer different sentences than asked
            for.

    Examples:
        >>> data = StyledSentences(train_size=10, validation_size=2, test_size=2, batch_size=4)
        >>> batch = next(iter(data.val_dataloader()))
        >>> batch["condition"][0], batch["task"]
        ('Use a very loud voice.', tensor([0, 1, 2, 3]))
    """

    def __init__(
        self,
        train_size: int = 256,
        validation_size: int = 16,
        test_size: int = 32,
        template: str = TEMPLATE,
        new_words: bool = True,
        tokenizer: str = "bytes",
        batch_size: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        for name, size in (("train_size", train_size), ("validation_size", validation_size), ("test_size", test_size)):
            check_number(name, size, low=1, whole=True)
        check_choice("new_words", new_words, [True, False])
        if not isinstance(template, str) or "{sentence}" not in template:
            raise ValueError(f"template is {template!r}; allowed is a text with {{sentence}} in it")
        most = len(NAMES) * len(COUNTS) * len(THINGS) * len(PLACES)
        if (total := train_size + validation_size + test_size) > most:
            raise ValueError(f"{total} sentences are asked for; allowed are {most} at most")
        super().__init__(tokenizer, batch_size, seed, shuffle, num_workers, drop_last)
        self.sizes = (train_size, validation_size, test_size)
        self.template = template
        self.new_words = new_words
        self.save_hyperparameters(logger=False)  # a logger refuses a name that the module has with another value

    def requests(self) -> tuple[list[Request], list[Request], list[Request]]:
        """Return what training, validation and test ask for."""
        generator = torch.Generator().manual_seed(self.seed)
        facts = [Fact(*parts) for parts in product(NAMES, COUNTS, THINGS, PLACES)]
        order = torch.randperm(len(facts), generator=generator, device="cpu").tolist()
        train, validation, _ = self.sizes
        bounds = ((0, train), (train, train + validation), (train + validation, sum(self.sizes)))
        known, new = slice(-HELD_OUT), slice(-HELD_OUT, None) if self.new_words else slice(-HELD_OUT)
        parts = [
            self._ask([facts[place] for place in order[start:stop]], words, generator)
            for (start, stop), words in zip(bounds, (known, new, new), strict=True)
        ]
        return parts[0], parts[1], parts[2]

    def prompt(self, request: Request) -> str:
        """Return what comes before the answer.

        Args:
            request: What is asked for.
        """
        return self.template.format(sentence=request.fact.sentence, instruction=request.instruction)

    def load(self) -> tuple[Sequences, Sequences, Sequences]:
        """Return training, validation and test samples as tokens.

        Raises:
            MissingDependencyError: If transformers or gguf isn't installed.
        """
        train, validation, test = map(self._tokens, self.requests())
        return train, validation, test

    def setup(self, stage: str | None = None) -> None:
        """Make the samples, once for all stages.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        fresh = self._parts is None
        super().setup(stage)
        if fresh:
            self._parts = tuple(map(StyledDataset, self._parts, self.requests()))

    def _ask(self, facts: Sequence[Fact], words: slice, generator: torch.Generator) -> list[Request]:
        """Ask for every style of every fact, in words drawn at random."""
        found = []
        for fact in facts:
            for style, (_, instructions) in enumerate(STYLES.values()):
                allowed = instructions[words]
                drawn = int(torch.randint(len(allowed), (), generator=generator, device="cpu"))
                found.append(Request(fact, style, allowed[drawn]))
        return found

    def _tokens(self, requests: Sequence[Request]) -> Sequences:
        rows, ignored = [], []
        for request in requests:
            asked = self.encode(self.prompt(request))  # apart, so that no token spans both
            rows.append([*asked, *self.encode(" " + request.answer), self.end])
            ignored.append(len(asked))
        return pad(rows, self.padding, ignored)
