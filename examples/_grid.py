"""Choose the settings of every method, baselines included, from a stated grid on seeds that are not reported."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from _files import write_csv
from _harness import Settings, TrainOne, run_all


def tune(
    grid: Mapping[str, Mapping[str, Sequence[float]]],
    seeds: Iterable[int],
    train_one: TrainOne,
    out: Path,
    *,
    best: str,
    common: Settings | None = None,
    resume: bool = False,
    workers: int = 1,
) -> dict[str, dict[str, float]]:
    """Run a grid of settings, write ``grid.csv`` and ``grid/runs.csv`` and print the best settings of every method.

    Args:
        grid: Values to try of each setting of each method. ``train_one`` finds the method's name in ``method``.
        seeds: Seeds, other than those of the results to report.
        train_one: As in ``run_all``.
        out: Folder for the files.
        best: Metric whose mean has to be largest.
        common: As in ``run_all``.
        resume: As in ``run_all``.
        workers: As in ``run_all``.

    Returns:
        The best settings of each method.
    """
    points = {}
    for method, axes in grid.items():
        for values in product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            label = ", ".join([method, *(f"{name} {value:g}" for name, value in chosen.items())])
            points[label] = {"method": method, **chosen}
    shared = {"watch": best, "common": common, "resume": resume, "workers": workers}
    results = run_all(points, seeds, train_one, out / "grid", **shared)
    rows = []
    for label, point in points.items():
        estimate = results.estimate(best, label)
        rows.append({**point, best: estimate.mean, f"{best}_standard_error": estimate.error})
    write_csv(out / "grid.csv", rows)
    winners = {}
    for method, axes in grid.items():
        row = max((row for row in rows if row["method"] == method), key=lambda row: row[best])
        winners[method] = {name: row[name] for name in axes}
        ends = [name for name, values in axes.items() if row[name] in (min(values), max(values))]
        remark = f", at an end of the grid in {' and '.join(ends)}" if ends else ""
        print(f'"{method}": {winners[method]},  # {row[best]:.1f}{remark}')
    return winners
