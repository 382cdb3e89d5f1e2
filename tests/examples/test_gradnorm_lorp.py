import csv
from functools import partial
from pathlib import Path

import _projected_training as runs
import gradnorm_lorp
import pytest
import torch
from _fine_tuning import fine_tune
from torch import nn

from lightning_weights.data import CausalText
from lightning_weights.optimizers import GradNormLoRPAdamW


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two steps, two learning rates, and a narrow language model of short texts."""
    texts = tmp_path_factory.mktemp("texts")
    for word in ("left", "right", "up", "down"):
        (texts / f"{word}.txt").write_text(f"{word} and {word} again, " * 40, encoding="utf-8")

    def two_steps(*arguments: object, **options: object) -> dict[str, float]:
        return fine_tune(*arguments, **{**options, "steps": 2})

    monkeypatch.setattr(runs, "fine_tune", two_steps)
    monkeypatch.setattr(gradnorm_lorp, "LRS", (1e-2, 3e-2))
    monkeypatch.setattr(runs, "CausalText", partial(CausalText, str(texts), validation_share=0.4))


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_script_runs_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    options = ["--seeds", "1", "--steps", "2", "--width", "16", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["gradnorm_lorp.py", *options])
    gradnorm_lorp.main()
    found = {part: rows(tmp_path / part / "runs.csv") for part in gradnorm_lorp.TUNED}
    for part, tuned in gradnorm_lorp.TUNED.items():
        assert found[part].keys() == tuned.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"gradnorm_lorp.png", *gradnorm_lorp.TUNED}
    bytes_of = {method: float(row["state_bytes"]) for method, row in found["fine-tuning"].items()}
    sizes = [(128, 64), (128, 128), (128, 128)]
    for method, p in runs.RANKS.items():
        numbers = sum(2 * p * (m + n) + 2 * p * 8 + 2 * m for m, n in sizes)
        assert bytes_of[method] == 4 * numbers, method
    assert bytes_of[runs.LORA] == 4 * sum(2 * 8 * (m + n) for m, n in sizes)
    eight, whole = (float(found["lm"][method]["state_bytes"]) for method in (runs.FULL_8BIT, runs.FULL))
    assert eight < 0.75 * whole, "the embedding is in 8 bits; what is smaller stays as it is"


def test_every_method_has_a_grid_that_holds_what_was_chosen() -> None:
    for part, tuned in gradnorm_lorp.TUNED.items():
        for method, chosen in tuned.items():
            axes = gradnorm_lorp.GRID[part].get(method, gradnorm_lorp.GRID[part].get(runs.FULL))
            assert all(value in axes[name] for name, value in chosen.items()), (part, method)


def test_galore_projects_the_matrices_that_it_is_given() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    optimizer = runs.galore([network[0].weight], lr=0.1, rank=2)(network.parameters())
    assert isinstance(optimizer, GradNormLoRPAdamW)
    network(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    projected = {
        name for name, param in network.named_parameters() if optimizer.state[param]["exp_avg"].shape != param.shape
    }
    assert projected == {"0.weight"}


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [runs.warm_then_fall(step, 100) for step in range(101)]
    assert factors[0] == 0.1
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[100] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)
