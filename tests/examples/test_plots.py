from pathlib import Path

from _harness import Results, Run
from _plots import draw_bars, draw_lines, looks, plot

RUNS = [
    Run(method, seed, "", {"first": 90.0 + seed, "last": height + seed})
    for method, height in {"SGD": 60.0, "mine": 80.0, "other": 75.0}.items()
    for seed in range(2)
]


def test_plot_shows_every_method(tmp_path: Path) -> None:
    results = Results(RUNS)
    with plot(tmp_path / "plot.png", widths=(4, 3)) as (left, right):
        draw_lines(left, results, {1: "first", 2: "last"}, ["SGD"])
        draw_bars(right, results, "last", ["SGD"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [text.get_text() for text in right.get_yticklabels()] == ["SGD", "mine", "other"]
    assert [text.get_text() for text in right.texts] == ["60.5", "80.5", "75.5"]
    assert [bar.get_width() for bar in right.patches] == [60.5, 80.5, 75.5]
    lines = [container.lines[0] for container in left.containers]
    assert [list(line.get_ydata()) for line in lines] == [[90.5, 60.5], [90.5, 80.5], [90.5, 75.5]]
    assert [line.get_linestyle() for line in lines] == ["--", "-", "-"]


def test_one_seed_can_be_drawn(tmp_path: Path) -> None:
    results = Results(RUNS[::2])
    with plot(tmp_path / "plot.png") as (axis,):
        draw_bars(axis, results, "last")
    assert (tmp_path / "plot.png").exists()


def test_methods_look_different() -> None:
    styles = looks(Results(RUNS), ["SGD"])
    assert len({style["color"] for style in styles.values()}) == 3
    assert len({style["marker"] for style in styles.values()}) == 3
