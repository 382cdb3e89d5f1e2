"""Generated chains of thought for language models, some of which go wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightning_weights.data._token_data import Sequences, TokenData, pad
from lightning_weights.data.indexed_dataset import IndexedDataset
from lightning_weights.errors import check_number

ROUNDS = 200  # of drawing problems, after which there are no more different ones


class Trajectory(NamedTuple):
    """A problem and steps towards its answer.

    Attributes:
        operands: Numbers from 0 to 9 that are to be added.
        steps: The sums after the second, the third ... operand, modulo something; right or wrong.

    Examples:
        >>> Trajectory((3, 8, 6), (1, 7)).problem
        '3+8+6='
    """

    operands: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def problem(self) -> str:
        """The problem as a text."""
        return "+".join(map(str, self.operands)) + "="

    @property
    def solution(self) -> str:
        """The steps as a text; the last is the answer."""
        return ",".join(map(str, self.steps))


class ChainOfThought(TokenData):
    """Serve chains of additions such as ``3+8+6+9=1,7,6``: every number behind ``=`` is the last digit of a sum so far.

    Operands of training and validation problems are skewed towards small digits, digit d having probability
    ∝ (1 + d)^-skew; those of the test are uniform, so that the test is out of domain. A share of the training
    trajectories goes wrong: at one step a neighbouring operand is added instead, and the rest follows from that.
    Nothing tells which ones. Trajectories of other origin are served by a subclass that overrides `trajectories`.

    Batches are dicts of ``input_ids``, ``attention_mask`` and ``labels``, int64 of shape (N, T), T being the longest of
    the batch; labels are -100 in the problem and in the padding on the right. Training batches also have
    ``sample_id``, (N,), the number of each trajectory.

    Args:
        operands: Numbers in a problem, from 2 to 11.
        modulus: Sums are taken modulo this; 100 gives plain sums.
        skew: How rare large digits are in training and validation; 0: as frequent as small ones.
        train_size: Training trajectories.
        wrong_share: Share of them that goes wrong, from 0 to 1.
        validation_size: Problems for validation.
        test_size: Problems for the test.
        tokenizer: ``bytes`` (ByT5's, 384 tokens), or where a tokenizer comes from, as for ``modules.CausalLM``.
        batch_size: Trajectories per batch.
        seed: Seed of problems, mistakes and order.
        shuffle: Whether training trajectories come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range, or there are fewer different problems than asked
            for.

    Examples:
        >>> data = ChainOfThought(operands=3, train_size=100, wrong_share=0.0, validation_size=20, test_size=20)
        >>> first = data.trajectories()[0]
        >>> first.problem, first.solution
        ('0+5+0=', '5,5')
        >>> sorted(next(iter(data.train_dataloader())))
        ['attention_mask', 'input_ids', 'labels', 'sample_id']
    """

    def __init__(
        self,
        operands: int = 5,
        modulus: int = 10,
        skew: float = 1.0,
        train_size: int = 1000,
        wrong_share: float = 0.5,
        validation_size: int = 200,
        test_size: int = 200,
        tokenizer: str = "bytes",
        batch_size: int = 32,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_number("operands", operands, low=2, high=12, whole=True)
        check_number("modulus", modulus, low=2, whole=True)
        check_number("skew", skew, low=0.0)
        check_number("train_size", train_size, low=1, whole=True)
        check_number("validation_size", validation_size, low=1, whole=True)
        check_number("test_size", test_size, low=1, whole=True)
        if not 0.0 <= wrong_share <= 1.0:
            raise ValueError(f"wrong_share is {wrong_share}; allowed is a number in [0, 1]")
        super().__init__(tokenizer, batch_size, seed, shuffle, num_workers, drop_last)
        self.operands = operands
        self.modulus = modulus
        self.skew = skew
        self.train_size = train_size
        self.wrong_share = wrong_share
        self.validation_size = validation_size
        self.test_size = test_size
        self.save_hyperparameters(logger=False)  # a logger refuses a name that the module has with another value

    def running_sums(self, operands: Sequence[int]) -> tuple[int, ...]:
        """Return the right steps of a problem."""
        return tuple(sum(operands[:count]) % self.modulus for count in range(2, len(operands) + 1))

    def trajectories(self) -> list[Trajectory]:
        """Return the training trajectories; their places are the ids."""
        problems = self._problems()[0]
        generator = torch.Generator().manual_seed(self.seed + 1)
        chosen = torch.randperm(len(problems), generator=generator, device="cpu")[
            : round(self.wrong_share * len(problems))
        ]
        places = torch.randint(self.operands, (len(problems),), generator=generator, device="cpu").tolist()
        wrong = set(chosen.tolist())
        return [
            Trajectory(problem, self._mistaken(problem, places[i]) if i in wrong else self.running_sums(problem))
            for i, problem in enumerate(problems)
        ]

    def evaluation(self) -> tuple[list[Trajectory], list[Trajectory]]:
        """Return the validation and test problems with their right steps."""
        validation, test = ([Trajectory(p, self.running_sums(p)) for p in part] for part in self._problems()[1:])
        return validation, test

    def load(self) -> tuple[Sequences, Sequences, Sequences]:
        """Return training, validation and test trajectories as tokens.

        Raises:
            MissingDependencyError: If transformers or gguf isn't installed.
        """
        train, validation, test = map(self._tokens, (self.trajectories(), *self.evaluation()))
        return train, validation, test

    def setup(self, stage: str | None = None) -> None:
        """Make the sequences, once for all stages, and number those of the training.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        fresh = self._parts is None
        super().setup(stage)
        if fresh:
            train, validation, test = self._parts
            self._parts = IndexedDataset(train), validation, test

    def _problems(self) -> list[list[tuple[int, ...]]]:
        """Draw the problems of the three parts, all different."""
        generator = torch.Generator().manual_seed(self.seed)
        digits = torch.arange(10, dtype=torch.float64, device="cpu")
        taken: dict[tuple[int, ...], None] = {}
        parts = []
        for size, skew in ((self.validation_size, self.skew), (self.test_size, 0.0), (self.train_size, self.skew)):
            part: dict[tuple[int, ...], None] = {}
            for _ in range(ROUNDS):
                drawn = torch.multinomial((1 + digits) ** -skew, size * self.operands, True, generator=generator)
                found = map(tuple, drawn.view(size, self.operands).tolist())
                part.update(dict.fromkeys(problem for problem in found if problem not in taken))
                if len(part) >= size:
                    break
            else:
                raise ValueError(
                    f"there are not enough different problems of {self.operands} operands for {size} of one part: ask "
                    f"for fewer, take more operands or a smaller skew"
                )
            parts.append(list(part)[:size])
            taken.update(dict.fromkeys(parts[-1]))
        validation, test, train = parts
        return [train, validation, test]

    def _mistaken(self, operands: tuple[int, ...], place: int) -> tuple[int, ...]:
        """Return steps in which one operand was replaced by another one, its neighbour if that differs."""
        used = list(operands)
        others = (*operands[place + 1 :], *operands[:place], *range(10))
        used[place] = next(other for other in others if (other - operands[place]) % self.modulus)
        return self.running_sums(used)

    def _tokens(self, trajectories: Sequence[Trajectory]) -> Sequences:
        rows, ignored = [], []
        for trajectory in trajectories:
            asked = self.encode(trajectory.problem)  # apart, so that no token spans both
            rows.append([*asked, *self.encode(trajectory.solution), self.end])
            ignored.append(len(asked))
        return pad(rows, self.padding, ignored)
