"""The files of the examples: runs and tables as CSV, replaced whole so that none is ever half written."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_weights.functional.whole_files import replacing_file


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
    with replacing_file(path) as file:
        file.write_text(text.getvalue(), "utf-8")
