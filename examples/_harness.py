"""What every example shares: interleaved runs over seeds, live progress, CSV files, a table and a verdict.

An example says what one run is and leaves the rest to this file, `_plots.py` and, for a grid search, `_grid.py`:

    def train_one(settings, seed):                      # returns numbers, {"accuracy": 91.2, ...}
        ...

    results = run_all({"SGD": {"lr": 0.1}, "mine": {"lr": 0.2}}, range(5), train_one, out, watch="accuracy")
    gain = results.difference("accuracy", "mine", "SGD")
    criteria = [(f"at least 1 point more: {gain}", gain.mean >= 1)]
    conclude(results, [Column("accuracy", "accuracy")], criteria, out, claim="more accurate than SGD")
"""

import io
import json
import logging
import math
import os
import statistics
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from _files import Run, read_runs, write_csv, write_runs
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer, seed_everything

from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.whole_files import replacing_file

try:
    from rich import box, progress
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise MissingDependencyError("rich", "plots", "Running the examples") from error

Settings = Mapping[str, Any]
TrainOne = Callable[[Settings, int], Mapping[str, float]]
Key = tuple[str, int, str]  # method, seed, settings


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error, NaN for one seed; the text leaves errors of zero and NaN out."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), spread / math.sqrt(len(values)))

    def __format__(self, spec: str) -> str:
        spec = spec or ".1f"
        error = f" ± {format(self.error, spec.lstrip('+'))}" if self.error > 0 else ""
        return format(self.mean, spec) + error

    def within_noise(self) -> bool:
        """Tell whether zero is at most two standard errors away, which for one seed nobody can deny."""
        return not abs(self.mean) > 2 * self.error


@dataclass(frozen=True)
class Column:
    """A column of the table: which metric, under which title, in which number format."""

    metric: str
    title: str
    spec: str = ".1f"


@dataclass(frozen=True)
class Results:
    """All runs, and what they say about a metric; ``seconds`` is one."""

    runs: list[Run]

    @property
    def methods(self) -> list[str]:
        """Names in the order in which they were given."""
        return list(dict.fromkeys(run.method for run in self.runs))

    def values(self, metric: str, method: str) -> dict[int, float]:
        """Return the metric of every seed."""
        return {run.seed: run.metrics[metric] for run in self.runs if run.method == method}

    def estimate(self, metric: str, method: str) -> Estimate:
        """Return mean and standard error over the seeds."""
        return Estimate.of(list(self.values(metric, method).values()))

    def difference(self, metric: str, method: str, other: str) -> Estimate:
        """Return mean and standard error of ``method`` minus ``other``, paired seed by seed."""
        others = self.values(metric, other)
        return Estimate.of([value - others[seed] for seed, value in self.values(metric, method).items()])


def arguments(key: str, description: str, seeds: int = 5) -> ArgumentParser:
    """Return a parser with the options that all examples have."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds, counted from 0 (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results") / key, help="folder for results (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep the runs in the folder that have the same settings")
    workers = min(2, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, help="runs at a time, a process each (%(default)s)")
    return parser


def hush() -> None:
    """Keep Lightning from saying what it says about every small run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text, category in ((".*barebones", UserWarning), (".*LeafSpec", FutureWarning), ("", PossibleUserWarning)):
        warnings.filterwarnings("ignore", message=text, category=category)


def quiet_trainer(**options: Any) -> Trainer:
    """Return a CPU Trainer that logs, saves and shows nothing, which halves the time of a small run."""
    hush()
    return Trainer(accelerator="cpu", devices=1, barebones=True, **options)


def run_all(
    methods: Mapping[str, Settings],
    seeds: Iterable[int],
    train_one: TrainOne,
    out: Path,
    *,
    watch: str,
    common: Settings | None = None,
    resume: bool = False,
    workers: int = 1,
) -> Results:
    """Train all methods with all seeds, a thread each: seed by seed, the methods in turn, so that drift hits all alike.

    Args:
        methods: Settings of each method, plain values.
        seeds: Seeds; the global generators are seeded with it before every run.
        train_one: Trains once with a method's settings and a seed and returns the metrics.
        out: Folder for ``runs.csv``, which is complete after every run.
        watch: Metric whose mean so far is shown while running.
        common: Settings shared by all methods, kept with the runs so that ``resume`` notices when they change.
        resume: Whether runs found in ``runs.csv`` with the same method, seed and settings are taken from there.
        workers: How many runs at a time. More than 1 take processes of their own, to which ``train_one`` is pickled.

    Returns:
        The results.

    Raises:
        ValueError: If there is nothing to run, or nobody to do it.
    """
    plan = {
        (name, seed, json.dumps({**(common or {}), **settings}, sort_keys=True)): settings
        for seed in seeds
        for name, settings in methods.items()
    }
    if not plan:
        raise ValueError(
            "nothing to run: seeds and methods must have at least one entry each, so use --seeds 1 or more"
        )
    if workers < 1:
        raise ValueError(f"workers={workers}: at least one process has to run; use --workers 1 or more")
    torch.set_num_threads(1)
    path = out / "runs.csv"
    found = read_runs(path) if resume else []
    done = {key: run for run in found if (key := (run.method, run.seed, run.settings)) in plan}
    pending = {key: settings for key, settings in plan.items() if key not in done}
    texts = progress.TextColumn("runs"), progress.TextColumn("{task.description}")
    times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
    with progress.Progress(texts[0], progress.BarColumn(20), progress.MofNCompleteColumn(), *times, texts[1]) as bars:
        bar = bars.add_task("", total=len(plan), completed=len(done))
        for key, metrics in _finished(pending, train_one, min(workers, len(pending))):
            name, seed, _ = key
            done[key] = Run(*key, metrics)
            write_runs(path, [done[key] for key in plan if key in done])
            mean = Results(list(done.values())).estimate(watch, name)
            bars.update(bar, advance=1, description=f"seed {seed}, {name}: {watch} so far {mean}")
    return Results([done[key] for key in plan])


def _finished(
    pending: Mapping[Key, Settings], train_one: TrainOne, workers: int
) -> Iterator[tuple[Key, dict[str, float]]]:
    if workers <= 1:
        for key, settings in pending.items():
            yield key, _run_one(train_one, settings, key[1])
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        runs = {pool.submit(_run_one, train_one, settings, key[1]): key for key, settings in pending.items()}
        try:
            for run in as_completed(runs):
                yield runs[run], run.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    # Without it a worker whose parent was killed would wait for work for ever.
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _run_one(train_one: TrainOne, settings: Settings, seed: int) -> dict[str, float]:
    seed_everything(seed, verbose=False)
    start = time.perf_counter()
    metrics = {metric: float(value) for metric, value in train_one(settings, seed).items()}
    return {**metrics, "seconds": time.perf_counter() - start}


def conclude(
    results: Results,
    columns: Sequence[Column],
    criteria: Sequence[tuple[str, bool]],
    out: Path,
    *,
    claim: str,
    notes: Sequence[str] = (),
) -> bool:
    """Print table, notes, criteria and verdict, and write them to ``report.md`` and the table to ``summary.csv``.

    Args:
        results: What ``run_all`` returned.
        columns: Columns of the table.
        criteria: What has to hold for the claim to count as reproduced, with its numbers, and whether it does.
        out: Folder for the files.
        claim: What the criteria stand for, for the verdict: no more than they test.
        notes: Texts that come after the table.

    Returns:
        Whether all criteria hold.
    """
    table = Table(box=box.MARKDOWN)
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right")
    rows = []
    for method in results.methods:
        row: dict[str, Any] = {"method": method, "seeds": len(results.values(columns[0].metric, method))}
        estimates = {column: results.estimate(column.metric, method) for column in columns}
        for column, estimate in estimates.items():
            row |= {column.metric: estimate.mean, f"{column.metric}_standard_error": estimate.error}
        table.add_row(method, *(format(estimate, column.spec) for column, estimate in estimates.items()))
        rows.append(row)
    write_csv(out / "summary.csv", rows)

    holds = all(held for _, held in criteria)
    verdict = "reproduced" if holds else "not reproduced"
    checks = "\n".join(f"- [{'x' if held else ' '}] {text}" for text, held in criteria)
    text = io.StringIO()
    for console in (Console(width=max(Console().width, 160)), Console(file=text, width=160)):
        console.print(table)
        for part in (*notes, checks, f"{claim}: {verdict} at this scale"):
            console.print(part, end="\n\n", markup=False, highlight=False, soft_wrap=True)
    with replacing_file(out / "report.md") as file:
        file.write_text("\n".join(line.rstrip() for line in text.getvalue().strip().split("\n")) + "\n", "utf-8")
    print("files:", *sorted(str(path) for path in out.glob("[!.]*.*")))
    return holds
