import csv
from pathlib import Path

import _stacking_models as models
import _stacking_rivals as rivals
import pytest
import regularized_stacking
import torch

from lightning_weights.functional.regularized_stacking import fold_ids

N = 120


def columns(data: str, seed: int, folder: Path) -> dict:
    """Return four columns, two of them copies but for little, and targets."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(N, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.randn(N, 4, generator=generator, dtype=torch.float64)
    noise[:, 3] = noise[:, 2] + 1e-3 * noise[:, 3]
    found = y[:, None] + noise
    return {"names": list("abcd"), "oof": found[:80], "test": found[80:], "y": y[:80], "test_y": y[80:]}


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regularized_stacking, "columns", columns)
    for name, settings in regularized_stacking.METHODS.items():
        if "rival" not in settings:
            few = {"learners": ["ridge"]}
            monkeypatch.setitem(regularized_stacking.METHODS, name, {**settings, **few})
    for name in ("lasso", "elasticnet"):
        measured = regularized_stacking.combine

        def combine(settings: dict, found: dict, measured=measured, name=name) -> tuple:
            predicted, known = measured(settings, found)
            return predicted, {**known, f"weight_{name}": 0.0}

        monkeypatch.setattr(regularized_stacking, "combine", combine)
    monkeypatch.setattr("sys.argv", ["x.py", "--seeds", "2", "--workers", "1", "--out", str(tmp_path)])
    regularized_stacking.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == regularized_stacking.METHODS.keys()
    names = {"models", "regularized_stacking.png", "report.md", "runs.csv", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
    kept = {name: float(row["kept_digits"]) for name, row in rows.items()}
    assert (kept["mean of all"], kept["best single"]) == (4.0, 1.0)
    assert kept["ridge"] == 4.0
    assert kept["+ dedup"] == kept["+ blend: whole method"] == 3.0
    found = [columns("digits", seed, tmp_path) for seed in range(2)]
    errors = [(part["test"].mean(1) - part["test_y"]).square().mean().sqrt().item() for part in found]
    assert float(rows["mean of all"]["rmse_digits"]) == pytest.approx(sum(errors) / 2)


def test_rivals_are_what_they_are_called() -> None:
    found = columns("", 3, Path())
    oof, y = found["oof"], found["y"]
    weight, constant = rivals.least_squares(oof[:, :3], y)
    residual = oof[:, :3] @ weight + constant - y
    assert (oof[:, :3].T @ residual).abs().max() < 1e-9
    assert abs(residual.sum()) < 1e-9
    best = (oof - y[:, None]).square().mean(0).argmin().item()
    assert rivals.best_single(oof, y)[0].nonzero().item() == best
    for name in ("NNLS", "greedy selection"):
        weight, constant = rivals.RIVALS[name](oof, y)
        assert (weight >= 0).all()
        assert constant == 0
        error = (oof @ weight - y).square().mean()
        assert error <= (oof - y[:, None]).square().mean(0).min()


def test_models_predict_rows_that_they_have_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "TRAINED", {"scores": 60})
    monkeypatch.setattr(models, "TESTS", {"scores": 10})
    assert len(list(models.models(0, 1.0))) == 68
    few = [pair for pair in models.models(0, 1.0) if pair[0] in ("ridge 1", "tree 10", "kernel ridge 1 1")]
    monkeypatch.setattr(models, "models", lambda seed, std: iter(few))
    monkeypatch.setattr(models, "networks", lambda *given: (["none"], torch.zeros(60, 1), torch.zeros(10, 1)))
    found = models.columns("scores", 1, tmp_path)
    assert found["names"] == ["ridge 1", "tree 10", "kernel ridge 1 1", "none"]
    x, y, test_x, test_y = (part.double().numpy() for part in models.table("scores", 1))
    folds = fold_ids(60, models.FOLDS, models.FOLD_SEED).numpy()
    for column, (_, model) in enumerate(few):
        held = folds == 2
        expected = models.fitted(model, x[~held], y[~held])(x[held])
        torch.testing.assert_close(found["oof"][torch.from_numpy(held), column], expected)
        torch.testing.assert_close(found["test"][:, column], models.fitted(model, x, y)(test_x))
    assert torch.equal(found["test_y"], torch.from_numpy(test_y))
    monkeypatch.setattr(models, "models", pytest.fail)
    assert torch.equal(models.columns("scores", 1, tmp_path)["oof"], found["oof"])
