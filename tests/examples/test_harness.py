"""The harness decides what counts as evidence: its order, its numbers and its files are checked here."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _files import Run, read_runs
from _harness import Column, Estimate, Results, conclude, run_all

METHODS = {"base": {"lr": 0.1}, "mine": {"lr": 0.2}}


def results_of(**accuracies: list[float]) -> Results:
    return Results([Run(name, s, "{}", {"accuracy": a}) for name, row in accuracies.items() for s, a in enumerate(row)])


def test_methods_take_turns_from_the_same_seeds(tmp_path: Path) -> None:
    calls = []

    def train_one(settings: Any, seed: int) -> dict[str, float]:
        calls.append((seed, settings["lr"]))
        return {"accuracy": torch.rand(()), "threads": torch.get_num_threads()}

    results = run_all(METHODS, [4, 7], train_one, tmp_path, watch="accuracy")
    assert calls == [(4, 0.1), (4, 0.2), (7, 0.1), (7, 0.2)]
    assert results.values("accuracy", "base") == results.values("accuracy", "mine")
    assert len(set(results.values("accuracy", "base").values())) == 2
    assert results.estimate("threads", "mine").mean == 1
    assert read_runs(tmp_path / "runs.csv") == results.runs


def draw(settings: Any, seed: int) -> dict[str, float]:
    return {"accuracy": settings["lr"] * torch.rand(()), "threads": torch.get_num_threads()}


@pytest.mark.slow
def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    results = run_all(METHODS, range(2), draw, tmp_path / "two", watch="accuracy", workers=2)
    alone = run_all(METHODS, range(2), draw, tmp_path / "one", watch="accuracy")
    for metric in ("accuracy", "threads"):
        for method in METHODS:
            assert results.values(metric, method) == alone.values(metric, method)
    assert [(run.method, run.seed) for run in results.runs] == [(run.method, run.seed) for run in alone.runs]


def test_statistics_are_numpys() -> None:
    mine, base = [80.0, 83.0, 85.0], [70.0, 71.0, 78.0]
    results = results_of(base=base, mine=mine)
    estimate = results.estimate("accuracy", "mine")
    assert estimate.mean == pytest.approx(np.mean(mine))
    assert estimate.error == pytest.approx(np.std(mine, ddof=1) / np.sqrt(3))
    gain = results.difference("accuracy", "mine", "base")
    assert gain.mean == pytest.approx(np.mean(np.subtract(mine, base)))
    assert gain.error == pytest.approx(np.std(np.subtract(mine, base), ddof=1) / np.sqrt(3))
    assert not gain.within_noise()
    assert Estimate(1.9, 1.0).within_noise()


def test_difference_pairs_by_seed_and_not_by_place() -> None:
    mine = [Run("mine", seed, "", {"accuracy": value}) for seed, value in ((0, 2.0), (1, 5.0))]
    base = [Run("base", seed, "", {"accuracy": value}) for seed, value in ((1, 4.0), (0, 1.0))]
    assert Results(mine + base).difference("accuracy", "mine", "base") == Estimate(1.0, 0.0)


def test_estimates_read_as_text() -> None:
    assert f"{Estimate(84.04, 0.82)}" == "84.0 ± 0.8"
    assert f"{Estimate(1.5, 0.25):+.2f}" == "+1.50 ± 0.25"
    assert f"{Estimate(2.0, 0.0):.0f}" == "2"
    alone = Estimate.of([3.0])
    assert f"{alone}" == "3.0"
    assert alone.within_noise()


def test_interrupted_runs_are_kept_and_resumed(tmp_path: Path) -> None:
    calls = []

    def train_one(settings: Any, seed: int) -> dict[str, float]:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((seed, settings["lr"]))
        return {"accuracy": len(calls), **({"extra": 1.5} if settings["lr"] == 0.1 else {})}

    common = {"epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        run_all(METHODS, range(2), train_one, tmp_path, watch="accuracy", common=common)
    kept = read_runs(tmp_path / "runs.csv")
    assert [run.metrics["accuracy"] for run in kept] == [1, 2, 3]
    assert [run.metrics.get("extra") for run in kept] == [1.5, None, 1.5]
    changed = {**METHODS, "mine": {"lr": 0.3}}
    calls[:] = 3 * [(0, 0.0)]
    with pytest.raises(KeyboardInterrupt):
        run_all(changed, range(2), train_one, tmp_path, watch="accuracy", common=common, resume=True)
    assert read_runs(tmp_path / "runs.csv") == kept
    calls.clear()
    run_all(changed, range(2), train_one, tmp_path, watch="accuracy", common=common, resume=True)
    assert calls == [(0, 0.3), (1, 0.3)]
    assert [run.metrics["accuracy"] for run in read_runs(tmp_path / "runs.csv")] == [1, 1, 3, 2]
    for options in ({"common": {"epochs": 3}, "resume": True}, {"common": common}):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):  # nothing fits, so all four are trained anew
            run_all(changed, range(2), train_one, tmp_path, watch="accuracy", **options)


@pytest.mark.parametrize(
    ("held", "verdict"), [(True, "\nbetter: reproduced at"), (False, "\nbetter: not reproduced at")]
)
def test_verdict_follows_the_criteria(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], held: bool, verdict: str
) -> None:
    results = results_of(base=[70.0, 71.0], mine=[80.0, 83.0])
    criteria = [("[always]", True), ("a gain of 11.0", held)]
    texts = {"claim": "better", "notes": ["a [note]"]}
    assert conclude(results, [Column("accuracy", "accuracy, %")], criteria, tmp_path, **texts) is held
    printed, written = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    for text in (printed, written):
        assert f"{verdict} this scale" in text
        assert "- [x] [always]" in text
        assert f"- [{'x' if held else ' '}] a gain of 11.0" in text
        assert "a [note]" in text
        assert "81.5 ± 1.5" in text
    assert str(tmp_path / "summary.csv") in printed
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert lines[0] == "method,seeds,accuracy,accuracy_standard_error"
    assert [float(number) for number in lines[2].split(",")[1:]] == pytest.approx([2, 81.5, 1.5])


def test_nothing_to_run_or_nobody_to_run_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--seeds 1"):
        run_all(METHODS, [], lambda settings, seed: {}, tmp_path, watch="accuracy")
    with pytest.raises(ValueError, match="workers=0"):
        run_all(METHODS, [0], lambda settings, seed: {}, tmp_path, watch="accuracy", workers=0)


@pytest.mark.parametrize(("file", "package"), [("_harness", "rich"), ("_plots", "matplotlib")])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, file: str, package: str) -> None:
    path = Path(__file__).parents[2] / "examples" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"fresh{file}", path)
    monkeypatch.setitem(sys.modules, package, None)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    with pytest.raises(ImportError, match=rf"pip install {package} \(extra 'plots' of lightning-weights\)"):
        spec.loader.exec_module(module)
