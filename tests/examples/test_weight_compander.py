import csv
import math
from pathlib import Path

import pytest
import torch
import weight_compander
from _weight_controls import ClipWeights, amplify
from torch import nn

from lightning_weights.data import Digits
from lightning_weights.modules import MLP


def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--epochs", "1", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["weight_compander.py", *options])
    few = {task: (64, wrong) for task, (_, wrong) in weight_compander.TASKS.items()}
    monkeypatch.setattr(weight_compander, "TASKS", few)
    weight_compander.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == weight_compander.METHODS.keys()
    names = {"weight_compander.png", "report.md", "runs.csv", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
    report = (tmp_path / "report.md").read_text()
    assert "near_zero, 100 images, plain to companded, every seed" in report


def test_methods_start_with_the_same_weights_and_train_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_compander, "TASKS", {"few": (64, 0.0)})
    found = {name: weight_compander.train_one({"method": name}, 0, 1) for name in weight_compander.METHODS}
    kurtosis = {name: metrics["kurtosis_few"] for name, metrics in found.items()}
    # in so few steps no weight reaches the bound
    assert kurtosis.pop("clipped at the same bound") == kurtosis["plain"]
    assert len(set(kurtosis.values())) == len(kurtosis)
    networks = []
    for settings in weight_compander.METHODS.values():
        torch.manual_seed(0)
        networks.append(weight_compander.parts(settings)[0].head.weight.detach())
    assert all(torch.allclose(weight, networks[0], rtol=1e-6) for weight in networks)


def test_few_digits_have_as_many_wrong_labels_as_asked_for() -> None:
    x, y, test_x, test_y = Digits(test_size=997, seed=3).load()
    few_x, few_y, few_test_x, few_test_y = weight_compander.FewDigits(300, 0.3, seed=3).load()
    assert torch.equal(few_x, x[:300])
    assert int((few_y != y[:300]).sum()) == 90
    assert torch.equal(few_test_x, test_x)
    assert torch.equal(few_test_y, test_y)


def test_controls_do_one_thing_each() -> None:
    torch.manual_seed(0)
    network, x = MLP(64, (16,), 10), torch.rand(4, 64)
    before, weight = network(x), network.head.weight.detach().clone()
    torch.testing.assert_close(amplify(network, 1.5)(x), before)
    (network.head.weight.sum()).backward()
    assert torch.equal(network.head.parametrizations["weight"].original.grad, torch.full_like(weight, 1.5))
    clip, layer = ClipWeights(kappa=1.0), nn.Linear(8, 8)
    bound = math.pi / 2 * float(layer.weight.detach().std(correction=0))
    clip.on_fit_start(None, layer)
    with torch.no_grad():
        layer.weight.mul_(10.0)
    clip.on_train_batch_end(None, layer)
    assert float(layer.weight.detach().abs().max()) == pytest.approx(bound)
