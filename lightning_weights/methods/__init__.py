"""One card per method: the paper, the classes, the files, and what was measured."""

import textwrap
from collections.abc import Sequence

from lightning_weights.errors import check_choice
from lightning_weights.methods import (
    classifiers,
    equivariance,
    few_bits,
    fine_tuning,
    post_training,
    sizes,
    trained_weights,
)
from lightning_weights.methods.card import MethodCard

__all__ = ["METHODS", "MethodCard", "describe_methods"]

METHODS: tuple[MethodCard, ...] = (
    *classifiers.CARDS,
    *fine_tuning.CARDS,
    *few_bits.CARDS,
    *equivariance.CARDS,
    *sizes.CARDS,
    *post_training.CARDS,
    *trained_weights.CARDS,
)


def describe_methods(keys: Sequence[str] = (), width: int = 80) -> str:
    """Return cards as text.

    Args:
        keys: Of the methods wanted; all by default.
        width: Columns of the terminal.

    Raises:
        ValueError: If a key is none of a method's.

    Examples:
        >>> print(describe_methods(["lift", "glow"]).splitlines()[0])
        lift
    """
    cards = {card.key: card for card in METHODS}
    for key in keys:
        check_choice("key", key, list(cards))
    blocks = []
    for card in [cards[key] for key in keys or cards]:
        fields = {
            "paper": f"{card.title}. {card.authors}, {card.year}, arXiv:{card.arxiv}",
            "classes": " ".join(card.classes),
            "operators": " ".join(card.ops),
            "try": f"lightning-weights fit --config {card.config}",
            "example": f"python {card.example}",
            "measured": card.measured,
        }
        lines = [
            textwrap.fill(
                text, width, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12, break_on_hyphens=False
            )
            for name, text in fields.items()
        ]
        blocks.append("\n".join([card.key, *lines]))
    return "\n\n".join(blocks)
