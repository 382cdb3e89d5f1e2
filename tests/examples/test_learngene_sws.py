import csv
from pathlib import Path

import _depth_family
import learngene_sws
import pytest
import torch

from lightning_weights.modules import CompactViT

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave few images, one epoch of everything, and short networks."""
    few = tuple(part[:40] for part in _depth_family.digits(0).load())
    monkeypatch.setattr(_depth_family.Digits, "load", lambda self: few)
    monkeypatch.setattr(_depth_family, "TEACHER_EPOCHS", 1)
    monkeypatch.setattr(learngene_sws, "EPOCHS", (1, 2))
    for module in (_depth_family, learngene_sws):
        monkeypatch.setattr(module, "LONGEST", 2)
    monkeypatch.setattr(learngene_sws, "LONGER", 2)


@pytest.mark.usefixtures("small")
def test_script_runs_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--depths", "1", "2", "--aux-epochs", "1", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["learngene_sws.py", *options])
    learngene_sws.main()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(learngene_sws.SETTINGS)
    files = {".weights", "learngene_sws.png", "report.md", "runs.csv", "summary.csv"}
    assert {path.name for path in tmp_path.iterdir()} == files
    report = (tmp_path / "report.md").read_text()
    assert "- [x] expanded with its own map it is the same network: logits differ by 0" in report


def test_first_layers_and_selected_entries() -> None:
    wide, same = (CompactViT(**shape, depth=3) for shape in (_depth_family.WIDE, _depth_family.SHAPE))
    network = _depth_family.select(same.state_dict(), CompactViT(**_depth_family.SHAPE, depth=2))
    assert torch.equal(network.blocks[1].mlp.fc1.weight, same.blocks[1].mlp.fc1.weight)
    assert torch.equal(network.head.weight, same.head.weight)
    network = _depth_family.select(wide.state_dict(), CompactViT(**_depth_family.SHAPE, depth=2))
    rows = torch.arange(64) * 96 // 64
    columns = torch.arange(32) * 48 // 32
    assert torch.equal(network.blocks[1].mlp.fc1.weight, wide.blocks[1].mlp.fc1.weight[rows][:, columns])
    query = network.blocks[0].attention.qkv.weight[:32]
    assert torch.equal(query, wide.blocks[0].attention.qkv.weight[:48][columns][:, columns])


def test_costs_and_sizes_are_counted() -> None:
    network = CompactViT(**_depth_family.SHAPE, depth=3)
    weights = 4 * sum(param.numel() for param in network.parameters())
    assert weights < _depth_family.checkpoint_bytes(network) < weights + 8000
    once = _depth_family.training_flops(network, 1)
    tokens, width = 16, 32
    layer = tokens * width * (3 * width + width + 2 * 2 * width) + 2 * tokens * tokens * width
    assert once == 3 * 2 * (3 * layer + tokens * 4 * width + 10 * width) * _depth_family.TRAIN_IMAGES
    assert _depth_family.training_flops(network, 5) == 5 * once
    teacher = _depth_family.forward_flops(_depth_family.teacher_network()) * _depth_family.TRAIN_IMAGES
    taught = _depth_family.training_flops(network, 1, taught=True)
    assert taught == once + teacher * (1 + 3 * _depth_family.TEACHER_EPOCHS)
    ours, theirs = (learngene_sws.cost(method, (3, 6), 1, 40) for method in (learngene_sws.SWS, learngene_sws.SCRATCH))
    six = CompactViT(**_depth_family.SHAPE, depth=6)
    assert ours == theirs / learngene_sws.LONGER + _depth_family.training_flops(six, 40, taught=True)


def test_learngene_takes_less_than_a_network_of_more_layers() -> None:
    learngene = learngene_sws.stored(learngene_sws.SWS, (3, 12))
    three = learngene_sws.stored(learngene_sws.SCRATCH, (3,))
    both = learngene_sws.stored(learngene_sws.SCRATCH, (3, 12))
    assert abs(learngene - three) < 2000
    assert both == three + learngene_sws.stored(learngene_sws.FIRST, (3, 12))


def test_starts_of_the_controls() -> None:
    trained = CompactViT(**_depth_family.SHAPE, depth=6, repeats=_depth_family.REPEATS)
    stages = [block.mlp.fc1.weight for block in trained.blocks]
    expected = {learngene_sws.SWS: [0, 0, 1, 2], learngene_sws.REVERSED: [2, 2, 1, 0], learngene_sws.SINGLE: [0] * 4}
    for method, mapping in expected.items():
        network = learngene_sws.begin(method, 4, 0, trained)
        for block, stage in zip(network.blocks, mapping, strict=True):
            assert torch.equal(block.mlp.fc1.weight, stages[stage])
