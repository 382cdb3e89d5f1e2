"""Reward functions for language models, with the interface of trl's."""

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from lightning_weights.errors import check_number

BOX = r"\\boxed\{(?=\s*[^\s}])((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"  # braces inside, two deep
STEP = r"(?m)^[\s#*]*(?:\d+[.)]|[a-z]\)|[Ss]tep\s+\d+\s*:?|[-*•])(?:\*\*:?)?\s"  # also in Markdown's bold
ORDINALS = r"(?i)\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|then)\b"
THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")  # the commas of 1,024
Completion = str | Sequence[dict[str, str]]


def text_of(completion: Completion) -> str:
    """Return a completion as text, also one that is a list of chat messages.

    Args:
        completion: Text, or messages with a ``content``.

    Examples:
        >>> text_of([{"role": "assistant", "content": "4"}])
        '4'
    """
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


class AccuracyReward:
    r"""Reward the right answer with 1.

    Args:
        pattern: Regular expression whose last match is the answer, or the first group of it. The default finds what is
            inside ``\boxed{...}``.
        column: Column of the data that holds the right answers.

    Raises:
        ValueError: If the pattern is none.

    Examples:
        >>> AccuracyReward()(completions=[r"so \boxed{ 12.0 }", "12"], answer=["12", "12"])
        [1.0, 0.0]
    """

    __name__ = "accuracy"

    def __init__(self, pattern: str = BOX, column: str = "answer") -> None:
        self.pattern = _compiled("pattern", pattern)
        self.column = column

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Return 1 for every completion with the right answer, else 0."""
        if self.column not in columns:
            given = ", ".join(columns) or "none"
            raise ValueError(f"column is {self.column!r}, but the data has the columns: {given}")
        pairs = zip(completions, columns[self.column], strict=True)
        return [float(self._agrees(text_of(completion), str(answer))) for completion, answer in pairs]

    def _agrees(self, text: str, answer: str) -> bool:
        found = [match.group(match.lastindex or 0) for match in self.pattern.finditer(text)]
        return bool(found) and _normalized(found[-1]) == _normalized(answer)


class BrevityReward:
    """Reward what is shorter than the mean of everything so far with 1.

    The mean is that of all completions that were rewarded, of all processes, the present ones included; it belongs to
    the state of a training. Validation measures lengths instead: ``evaluate`` returns them and changes nothing.

    Examples:
        >>> reward = BrevityReward()
        >>> reward(completions=["", ""], completion_ids=[[1, 2], [1, 2, 3, 4]])
        [1.0, 0.0]
        >>> reward.evaluate(completions=["", ""], completion_ids=[[1], [2, 3]]), reward.state_dict()
        ([1.0, 2.0], {'tokens': 6, 'responses': 2})
    """

    __name__ = "brevity"

    def __init__(self) -> None:
        self.tokens = self.responses = 0

    def __call__(
        self, completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float]:
        """Take the lengths into the mean and return 1 for every shorter completion, else 0."""
        lengths = [len(tokens) for tokens in completion_ids]
        totals = torch.tensor([sum(lengths), len(lengths)], device="cpu")
        if dist.is_available() and dist.is_initialized():
            found = [torch.zeros(2, dtype=torch.long, device="cpu")] * dist.get_world_size()
            dist.all_gather_object(found, totals)
            totals = torch.stack(found).sum(dim=0)
        self.tokens += int(totals[0])
        self.responses += int(totals[1])
        return [float(length * self.responses < self.tokens) for length in lengths]

    def evaluate(
        self, completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float]:
        """Return the lengths."""
        return [float(len(tokens)) for tokens in completion_ids]

    def state_dict(self) -> dict[str, int]:
        """Return how many tokens and completions were seen."""
        return {"tokens": self.tokens, "responses": self.responses}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what ``state_dict`` returned."""
        self.tokens, self.responses = state["tokens"], state["responses"]


class ClarityReward:
    r"""Reward an answer that shows its steps with 1.

    Args:
        answer: Regular expression that has to occur, by default something inside ``\boxed{...}``. Empty: none.
        steps: Regular expression of what begins a step: by default a line with ``1.``, ``a)``, ``Step 2:`` or a bullet.
        ordinals: Regular expression of words that count as steps, on their own: by default first to tenth, next, then.
            Empty: none.
        minimum: Steps, or ordinals, that there have to be.

    Raises:
        ValueError: If an expression is none, or the minimum is out of range.

    Examples:
        >>> clear, unclear = "First, 1 + 1 = 2. Then \\boxed{2}", "\\boxed{2}"
        >>> ClarityReward()(completions=[clear, unclear])
        [1.0, 0.0]
        >>> ClarityReward(answer="", steps="S", ordinals="", minimum=2)(completions=["S.S4", "S4"])
        [1.0, 0.0]
    """

    __name__ = "clarity"

    def __init__(self, answer: str = BOX, steps: str = STEP, ordinals: str = ORDINALS, minimum: int = 2) -> None:
        check_number("minimum", minimum, low=1, whole=True)
        self.answer = _compiled("answer", answer)
        self.marks = [
            _compiled(name, pattern) for name, pattern in (("steps", steps), ("ordinals", ordinals)) if pattern
        ]
        self.minimum = minimum

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Return 1 for every completion with an answer and enough steps, else 0."""
        return [float(self._is_clear(text_of(completion))) for completion in completions]

    def _is_clear(self, text: str) -> bool:
        steps = max((len(mark.findall(text)) for mark in self.marks), default=0)
        return bool(self.answer.search(text)) and steps >= self.minimum


def _normalized(answer: str) -> str:
    """Return a number in one way of writing it, and other text without the space around it."""
    plain = answer.strip().rstrip(".")
    try:
        return repr(float(THOUSANDS.sub("", plain)))
    except ValueError:
        return plain


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{name} is {pattern!r}; allowed is a regular expression ({error})") from error
