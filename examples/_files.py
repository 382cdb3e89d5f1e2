"""The files of the examples: runs and tables as CSV, replaced whole so that none is ever half written."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One method trained with one seed, and the numbers that came out."""

    method: str
    seed: int
    settings: str
    metrics: dict[str, float]


def read_runs(path: Path) -> list[Run]:
    """Read what ``write_runs`` wrote; no file means no runs."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Run(
            row.pop("method"),
            int(row.pop("seed")),
            row.pop("settings"),
            {metric: float(value) for metric, value in row.items() if value},
        )
        for row in rows
    ]


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Write one line per run."""
    write_csv(path, [{"method": r.method, "seed": r.seed, "settings": r.settings, **r.metrics} for r in runs])


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, whose keys may differ, under one header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file:
        file.write_text(text.getvalue(), "utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``path`` when all is written, so that no file is ever half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    yield part
    os.replace(part, path)
