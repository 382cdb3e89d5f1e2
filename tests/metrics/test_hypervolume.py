import pytest
import torch

from lightning_weights.functional.dynamic_reward import hypervolume
from lightning_weights.metrics import Hypervolume


def test_it_is_the_volume_of_all_vectors():
    points = torch.rand(9, 3)
    metric = Hypervolume(reference=[0.1, 1.0, 0.0], maximize=[True, False, True])
    metric.update(points[:4])
    metric.update(points[4])
    metric.update(points[5:].tolist())
    found = metric.compute()
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(hypervolume(points, [0.1, 1.0, 0.0], [True, False, True]))
    scaled = Hypervolume(reference=[0.1, 1.0, 0.0], maximize=[True, False, True], scale=[2.0, 4.0, 1.0])
    scaled.update(points)
    assert scaled.compute().item() == pytest.approx(found.item() / 8)


def test_parts_of_several_processes_count_together():
    points = torch.rand(6, 2)
    parts = [Hypervolume(reference=[0.0, 0.0]) for _ in range(2)]
    for metric, part in zip(parts, (points[:2], points[2:]), strict=True):
        metric.update(part)
    whole = Hypervolume(reference=[0.0, 0.0])
    whole.points = [torch.cat([row for metric in parts for row in metric.points])]
    whole._update_count = 1
    assert whole.compute().item() == pytest.approx(hypervolume(points, [0.0, 0.0]))


def test_reset_and_bad_input():
    metric = Hypervolume(reference=[0.0, 0.0])
    metric.update([1.0, 2.0])
    assert metric.compute().item() == 2.0
    metric.reset()
    with pytest.warns(UserWarning, match="compute"):
        assert metric.compute().item() == 0.0
    with pytest.raises(ValueError, match=r"points have shape \(1, 3\); allowed is \(n, 2\)"):
        metric.update([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="reference has 1 numbers, maximize 2"):
        Hypervolume(reference=[0.0], maximize=[True, False])
