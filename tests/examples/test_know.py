import copy
import csv
import math
from functools import partial
from pathlib import Path

import _know_starts
import _know_transfer
import know
import pytest
import torch

from lightning_weights.modules import MLP, Snapshot

pytestmark = pytest.mark.filterwarnings("ignore")
PLAN = {"lr": 1e-2, "batch_size": 4, "epochs": 1}


def small_task(name: str, seed: int, batch_norm: bool = False) -> _know_transfer.Task:
    """Return clusters of six numbers, four classes and then two."""
    generator = torch.Generator().manual_seed(seed + len(name))
    y = torch.arange(500) % 4
    x = torch.eye(6)[y] + 0.3 * torch.randn(500, 6, generator=generator)
    samples = [(x[part], y[part]) for part in (slice(400), slice(400, None))]
    new = [(part[:, :2], labels % 2) for part, labels in samples]
    new = [(torch.cat([part, part, part], dim=1), labels) for part, labels in new]
    return _know_transfer.Task(partial(MLP, 6, (5,)), *samples, *new, PLAN)


def test_script_runs_all_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(know, "task", small_task)
    monkeypatch.setattr(know, "TASKS", {"A": "clusters"})
    monkeypatch.setattr(know, "SHOTS", (4,))
    monkeypatch.setattr(know, "PLACES", ["A4"])
    monkeypatch.setattr(know, "RATES", (know.LR,))
    for name in ("STEPS", "HEAD_STEPS"):
        monkeypatch.setattr(_know_transfer, name, 2)
    monkeypatch.setattr("sys.argv", ["know.py", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)])
    know.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(know.METHODS)
    assert {path.name for path in tmp_path.iterdir()} == {"know.png", "report.md", "runs.csv", "sources", "summary.csv"}
    sizes = {method: float(row["size"]) for method, row in rows.items()}
    assert sizes[know.NAIVE] == pytest.approx(1.0)
    assert [sizes[name] for name in know.FACTORS] == pytest.approx([0.93, 0.8])
    assert sizes[know.SIZE] == pytest.approx(sizes[know.LAST], rel=1e-3)
    assert sizes[know.DIRECTION] == pytest.approx(1.0)
    assert float(rows[know.NAIVE]["score gain"]) == 0.0


def test_batch_normalisation_keeps_its_scale_and_gets_statistics_of_the_first_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_know_transfer, "_new_classes", lambda *args: small_task("", 0))
    found = _know_transfer.task.__wrapped__("digits, new classes", 0, batch_norm=True)
    _know_transfer.learn_and_forget(found, know.SESSIONS, 0, tmp_path)
    old, new = (know.with_weights(found, know.METHODS[name], 0, tmp_path, "digits") for name in (know.NAIVE, know.LAST))
    (linear, norm), (moved, kept) = old.body[1], new.body[1]
    assert torch.equal(norm.weight, kept.weight)
    assert not torch.equal(linear.weight, moved.weight)
    outputs = moved(found.half[0].float())
    torch.testing.assert_close(kept.running_mean, outputs.mean(0))
    torch.testing.assert_close(kept.running_var, outputs.var(0))


def test_starts_are_what_they_are_called() -> None:
    weights = [
        {"network.w": torch.tensor([[s, 2.0]]), "network.b.bias": torch.tensor([s])} for s in torch.arange(1.0, 6)
    ]
    snapshots = [
        Snapshot(tensors, session=4 - s, sessions=5, samples=10 * 2**s, rate=0.5, subset_seed=0)
        for s, tensors in enumerate(weights)
    ]
    start = partial(_know_starts.predicted, snapshots, bank="digits")
    assert start("linear", 1)["w"].tolist() == [[6.0, 2.0]]
    assert start("linear", 3)["w"].tolist() == [[8.0, 2.0]]
    torch.testing.assert_close(start("shrink 0.8", 1)["w"], torch.tensor([[4.0, 1.6]]))
    torch.testing.assert_close(start("mean", 1)["b.bias"], torch.tensor([3.0]))
    assert torch.equal(start("bank", 0)["w"], weights[-1]["network.w"])
    assert not torch.equal(start("bank", 1)["w"], weights[-1]["network.w"])


def test_parts_of_a_prediction_add_up() -> None:
    old, new = ({"w": torch.randn(4, 3)} for _ in range(2))
    size, direction = (_know_starts.part_of(new, old, part)["w"] for part in ("size", "direction"))
    torch.testing.assert_close(size + direction, new["w"] + old["w"])
    assert ((new["w"] - size) * old["w"]).sum().abs() < 1e-5
    torch.testing.assert_close(size, _know_starts.size_of(new, old) * old["w"])


@pytest.mark.parametrize("name", ["digits, new classes", "digits, other images"])
def test_tasks_share_no_sample_and_few_shots_are_balanced(name: str) -> None:
    found = _know_transfer.task(name, 0)
    parts = [{tuple(row) for row in x.tolist()} for x, _ in (found.source, found.source_test, found.pool, found.test)]
    assert len(found.half[1]) == len(found.source[1]) // 2
    assert not parts[0] & (parts[2] | parts[3])
    assert not parts[2] & parts[3]
    assert torch.equal(found.half[0], found.source[0][: len(found.half[0])])
    x, y = _know_transfer.few_shots(found.pool, 25, 3)
    counts = y.bincount()
    assert len(x) == 25
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(x, _know_transfer.few_shots(found.pool, 25, 4)[0])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_networks_that_are_trained_side_by_side_end_where_they_would_alone(
    batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_know_transfer, "BATCH", 8)
    monkeypatch.setattr(_know_transfer, "HEAD_STEPS", 5)
    monkeypatch.setattr(_know_transfer, "STEPS", 20)
    found = small_task("", 0)
    starts = [MLP(6, (5,), 4, batch_norm=batch_norm) for _ in range(3)]
    few = [_know_transfer.few_shots(found.pool, 20, seed) for seed in range(3)]
    state = torch.random.get_rng_state()
    together, alone = copy.deepcopy(starts), copy.deepcopy(starts)
    _know_transfer.fine_tune(together, few, 1e-2, range(3))
    for seed in range(3):
        _know_transfer.fine_tune(alone[seed : seed + 1], few[seed : seed + 1], 1e-2, [seed])
    assert torch.equal(torch.random.get_rng_state(), state)
    for start, one, other in zip(starts, together, alone, strict=True):
        assert one.head.out_features == 2
        assert not torch.allclose(one.body[1].weight, start.body[1].weight)
        logits = (
            network(found.test[0]) for network in (one, other)
        )  # in training mode: biases before a norm are noise
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_fine_tuning_is_adam_on_the_head_and_then_on_all_along_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_know_transfer, "HEAD_STEPS", 3)
    monkeypatch.setattr(_know_transfer, "STEPS", 4)
    found = small_task("", 0)
    network = found.network(4)
    x, y = _know_transfer.few_shots(found.pool, 20, 0)
    expected = copy.deepcopy(network)
    torch.manual_seed(7)
    expected.head = torch.nn.Linear(5, 2)
    for steps, part in ((3, expected.head), (4, expected)):
        optimizer = torch.optim.Adam(part.parameters(), lr=1e-2)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-2 if steps == 3 else 5e-3 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(expected(x), y).backward()
            optimizer.step()
    _know_transfer.fine_tune([network], [(x, y)], 1e-2, [7])
    torch.testing.assert_close(
        dict(network.named_parameters()), dict(expected.named_parameters()), rtol=1e-4, atol=1e-5
    )
