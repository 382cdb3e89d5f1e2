"""One card per method: the paper, the classes, the files, and what was measured."""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodCard:
    """Facts about one method, from which listings and completeness tests are made.

    Args:
        key: File name of the method everywhere.
        title: Title of the paper.
        authors: Authors of the paper.
        year: Year of publication.
        arxiv: arXiv identifier.
        classes: Import paths of the public classes.
        config: Config file, relative to the repository.
        example: Example script, relative to the repository.
        ops: Operators of ``lightning_weights.kernels``.
        measured: What the example showed, with numbers.
    """

    key: str
    title: str
    authors: str
    year: int
    arxiv: str
    classes: tuple[str, ...]
    config: str
    example: str
    ops: tuple[str, ...]
    measured: str


METHODS: tuple[MethodCard, ...] = (
    MethodCard(
        key="classp",
        title=(
            "CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment Suppression and "
            "Sparsity Promotion"
        ),
        authors="Oswaldo Ludwig",
        year=2024,
        arxiv="2405.09637",
        classes=(
            "lightning_weights.optimizers.CLASSP",
            "lightning_weights.callbacks.CLASSPPhases",
            "lightning_weights.callbacks.TaskStream",
            "lightning_weights.metrics.TaskAccuracyMatrix",
            "lightning_weights.data.PermutedDigits",
            "lightning_weights.data.SplitDigits",
        ),
        config="configs/classp.yaml",
        example="examples/classp.py",
        ops=("classp_step",),
        measured=(
            "3 permuted-digits tasks, 5 seeds, every method at its best setting of a grid: average accuracy "
            "85.1 ± 3.0 % (SGD 65.4 ± 1.6, Adam 68.7 ± 2.0, Adagrad 72.9 ± 1.9, SI 85.4 ± 1.7, EWC 90.5 ± 0.8), "
            "forgetting 14.4 ± 4.4 points (SGD 44.2 ± 2.3, EWC 4.7 ± 1.6), one state tensor per parameter"
        ),
    ),
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
