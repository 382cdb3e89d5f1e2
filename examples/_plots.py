"""The one style in which all examples draw: baselines grey and dashed or hatched, methods in colour and solid."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from _harness import Results

from lightning_weights.errors import MissingDependencyError
from lightning_weights.functional.whole_files import replacing_file

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError("matplotlib", "plots", "Drawing the examples' plots") from error

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.fontsize": 8,
    "grid.alpha": 0.25,
    "hatch.linewidth": 0.6,
    "savefig.dpi": 105,
}
# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
GREYS = ("#a8a8a8", "#8a8a8a", "#6c6c6c", "#000000", "#484848")
MARKERS = "osD^vPX<>*"


@contextmanager
def plot(path: Path, widths: Sequence[float] = (4.5,), height: float = 3.4) -> Iterator[Sequence[Axes]]:
    """Give panels of these widths in inches to draw on, side by side, and save them as PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(sum(widths), height), layout="constrained")
        yield figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        with replacing_file(path) as file:
            figure.savefig(file, format="png")


def looks(results: Results, baselines: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return colour, line style and marker of every method."""
    colours, greys, markers = cycle(COLOURS), cycle(GREYS), cycle(MARKERS)
    return {
        method: {
            "color": next(greys if method in baselines else colours),
            "linestyle": "--" if method in baselines else "-",
            "marker": next(markers),
        }
        for method in results.methods
    }


def draw_lines(axis: Axes, results: Results, metrics: Mapping[float, str], baselines: Collection[str] = ()) -> None:
    """Draw one line per method through the means of several metrics, given by their place on the x axis."""
    places = list(metrics)
    step = (places[-1] - places[0]) / 200
    for number, (method, look) in enumerate(looks(results, baselines).items()):
        estimates = [results.estimate(metric, method) for metric in metrics.values()]
        means, errors = [e.mean for e in estimates], [e.error for e in estimates]
        shifted = [place + number * step for place in places]  # so that error bars don't hide each other
        axis.errorbar(shifted, means, errors, label=method, markersize=5, linewidth=1.3, elinewidth=0.8, **look)


def draw_bars(axis: Axes, results: Results, metric: str, baselines: Collection[str] = (), spec: str = ".1f") -> None:
    """Draw one horizontal bar per method with its standard error and its mean, in the colours of the lines."""
    for method, look in looks(results, baselines).items():
        estimate = results.estimate(metric, method)
        fill = {"facecolor": "white", "hatch": "/////"} if method in baselines else {"facecolor": look["color"]}
        axis.barh(method, estimate.mean, edgecolor=look["color"], height=0.7, **fill)
        axis.errorbar(estimate.mean, method, xerr=estimate.error, color="#404040", capsize=2, linewidth=1)
        end = max(estimate.mean, 0.0) + (0.0 if math.isnan(estimate.error) else estimate.error)
        axis.annotate(f"{estimate.mean:{spec}}", (end, method), (4, 0), textcoords="offset points", va="center")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.2)
