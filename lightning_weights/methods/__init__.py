"""One card per method: the paper, the classes, the files, and what was measured."""

import textwrap

from lightning_weights.methods import classifiers, equivariance, few_bits, fine_tuning, post_training, sizes
from lightning_weights.methods.card import MethodCard

__all__ = ["METHODS", "MethodCard", "describe_methods"]

METHODS: tuple[MethodCard, ...] = (
    *classifiers.CARDS,
    *fine_tuning.CARDS,
    *few_bits.CARDS,
    *equivariance.CARDS,
    *sizes.CARDS,
    *post_training.CARDS,
)


def describe_methods(width: int = 80) -> str:
    """Return the cards as text.

    Args:
        width: Columns of the terminal.

    Examples:
        >>> print(describe_methods().splitlines()[0])
        classp
    """
    blocks = []
    for card in METHODS:
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
