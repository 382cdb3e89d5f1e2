"""What is known about one method."""

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

    Examples:
        >>> card = MethodCard("key", "Title", "Authors", 2024, "2405.09637", (), "a.yaml", "a.py", (), "no effect")
        >>> card.key, card.year
        ('key', 2024)
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
