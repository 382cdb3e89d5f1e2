import csv
from pathlib import Path

import _quantized_vit
import ofq
import pytest
import torch
from torch import nn

from lightning_weights.callbacks import OFQ
from lightning_weights.metrics import OscillationRate
from lightning_weights.modules import KDLoss

pytestmark = pytest.mark.filterwarnings("ignore:.*times as wide.*")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave two batches of the data and ten steps of the toy."""
    monkeypatch.setattr(_quantized_vit, "TEST_IMAGES", 1697)
    monkeypatch.setattr(ofq, "TOY", {**ofq.TOY, "steps": 10, "seen": 5})
    monkeypatch.setattr(ofq, "find_spec", lambda name: None)


@pytest.mark.usefixtures("small")
def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--epochs", "1", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["ofq.py", *options])
    ofq.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == [method for method in ofq.METHODS if method != ofq.TORCHAO]
    assert {path.name for path in tmp_path.iterdir()} == {".weights", "ofq.png", "report.md", "runs.csv", "summary.csv"}
    assert "CGA halves the flips of 2-bit weights" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("small")
def test_what_is_watched_is_what_the_metric_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, teacher = (_quantized_vit.pretrained(0, 1, tmp_path) for _ in range(2))
    metric, seen = OscillationRate(), []
    OFQ(edge_bits=None, distillation=0.0).attach(network)

    def codes(module: nn.Module) -> dict[str, torch.Tensor]:
        seen.append(_quantized_vit.own_codes(module))
        metric.update(seen[-1])
        return seen[-1]

    assert [path.name for path in tmp_path.iterdir()] == ["full-1-0.pt"]
    watch = _quantized_vit.train(network, teacher, 0, 4, (0.01, 0.01), codes, [])
    found, wanted = watch.summary(), {name: float(value) for name, value in metric.compute().items()}
    assert len(seen) == 1 + 4 * 2
    assert found["flips"] == pytest.approx(100 * wanted["flips"], rel=1e-5)
    assert found["flips"] > 0
    assert found["oscillating"] == pytest.approx(100 * wanted["oscillating"], rel=1e-5)
    assert watch.path(4, before=3)["oscillating_at_7"] == pytest.approx(found["oscillating"])


def test_students_learn_from_labels_and_teacher_alike() -> None:
    torch.manual_seed(0)
    network, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    student = _quantized_vit.Student(network, num_classes=3)
    student.distil = KDLoss(teacher)
    soft = nn.functional.cross_entropy(network(x), teacher(x).softmax(-1))
    wanted = nn.functional.cross_entropy(network(x), y) + soft
    torch.testing.assert_close(student.training_step((x, y), 0), wanted)
    assert not any(param is other for param in student.parameters() for other in teacher.parameters())


def test_the_toys_scales_are_those_of_the_quantizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ofq, "TOY", {"rows": 4, "columns": 16, "steps": 6, "seen": 3})
    still = [ofq.scale_jitter(settings, 2, 0.0, 0) for settings in ({}, {"weight_quantizer": "lsq"})]
    moving = [ofq.scale_jitter(settings, 2, 0.01, 0) for settings in ({}, {"weight_quantizer": "lsq"})]
    assert still == pytest.approx([0.0, 0.0], abs=1e-6)
    assert min(moving) > 1e-4
