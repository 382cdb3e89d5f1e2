"""Digits as graphs of superpixels: the cut, the edges, and the split."""

import re

import pytest
import torch
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from lightning_weights.data import Digits, DigitSuperpixels
from lightning_weights.data import digit_superpixels as module
from lightning_weights.data._superpixels import superpixels
from lightning_weights.data.digit_superpixels import nearest_neighbours


@pytest.fixture(scope="module")
def parts():
    """Return all of each part as one batch, of a coarser grid than the default."""
    data = DigitSuperpixels(batch_size=2000, grid=4, neighbours=5, shuffle=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SIDE", 12)
        data.setup()
    return [next(iter(loader)) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]


def test_superpixels_of_equal_pixels_are_the_grid():
    owner, pos, grey = superpixels(torch.full((2, 6, 6), 0.25), rows=3, compactness=1.0)
    assert owner.tolist() == [0] * 9 + [1] * 9
    thirds = torch.tensor([-2 / 3, 0.0, 2 / 3])
    expected = torch.stack(torch.meshgrid(thirds, thirds, indexing="xy"), dim=-1).reshape(9, 2)
    assert torch.allclose(pos, expected.repeat(2, 1), atol=1e-6)
    assert torch.allclose(grey, torch.tensor(0.25), atol=1e-6)


def test_superpixels_follow_edges_of_the_image():
    image = torch.zeros(1, 6, 6)
    image[:, :, 4:] = 1.0  # not where the grid has its border
    _, pos, grey = superpixels(image, rows=2, compactness=0.1)
    assert sorted(grey.flatten().tolist()) == [0, 0, 1, 1]
    assert torch.allclose(pos[grey[:, 0] == 1][:, 0], torch.tensor(2 / 3), atol=1e-6)
    assert torch.allclose(pos[grey[:, 0] == 0][:, 0], torch.tensor(-1 / 3), atol=1e-6)


def test_the_cut_is_k_means(monkeypatch):
    monkeypatch.setattr("lightning_weights.data._superpixels.ROUNDS", 100)  # until nothing moves
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    _, pos, grey = superpixels(image, rows=3, compactness=0.5)
    weight = 0.5 * 3 / 2
    axis = (torch.arange(8) * 2 + 1) / 8 - 1
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    pixels = torch.stack([columns.flatten() * weight, rows.flatten() * weight, image.flatten()], dim=1)
    found = torch.cat([pos * weight, grey], dim=1)
    again = KMeans(len(found), init=found.numpy(), n_init=1, max_iter=1).fit(pixels.numpy())
    assert torch.allclose(torch.from_numpy(again.cluster_centers_), found, atol=1e-5)


def test_superpixels_without_pixels_vanish():
    image = (torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    owner, pos, grey = superpixels(image, rows=4, compactness=1e-3)
    assert len(owner) == len(pos) == len(grey) < 16
    assert set(grey.flatten().tolist()) == {0.0, 1.0}
    assert pos.abs().max() <= 1


def test_images_do_not_depend_on_each_other():
    images = torch.rand(70, 6, 6, generator=torch.Generator().manual_seed(0))
    owner, pos, _ = superpixels(images, rows=3, compactness=0.5)
    _, alone, _ = superpixels(images[68:69], rows=3, compactness=0.5)
    assert torch.allclose(pos[owner == 68], alone, atol=1e-6)


def test_edges_come_from_the_nearest_of_the_same_graph():
    generator = torch.Generator().manual_seed(0)
    pos, sizes = torch.randn(17, 2, generator=generator), torch.tensor([9, 2, 6])
    edges, edge_sizes = nearest_neighbours(pos, sizes, 4)
    assert edge_sizes.tolist() == [36, 2, 24]
    for points, own in zip(pos.split(sizes.tolist()), edges.split(edge_sizes.tolist(), dim=1), strict=True):
        count = min(4, len(points) - 1)
        expected = cKDTree(points).query(points, count + 1)[1][:, 1:]
        for receiver in range(len(points)):
            assert set(own[0, own[1] == receiver].tolist()) == set(expected[receiver].tolist())
        assert own[1].tolist() == sorted(own[1].tolist())


def test_parts_are_those_of_the_digits(parts):
    train, val, test = parts
    _, train_y, _, test_y = Digits().tensors()
    assert [len(batch["y"]) for batch in parts] == [1147, 150, 500]
    assert torch.equal(test["y"], test_y)
    counts = [torch.bincount(labels, minlength=10) for labels in (train["y"], val["y"], train_y)]
    assert torch.equal(counts[0] + counts[1], counts[2])
    for batch in parts:
        nodes = len(batch["x"])
        assert {name: tuple(values.shape[1:]) for name, values in batch.items()} == {
            **{"x": (1,), "pos": (2,), "y": (), "batch": (), "edge_index": (nodes * 5,)}
        }
        assert torch.equal(batch["batch"][batch["edge_index"][0]], batch["batch"][batch["edge_index"][1]])
        assert (batch["edge_index"][0] != batch["edge_index"][1]).all()
        assert batch["x"].min() >= 0
        assert batch["x"].max() <= 1


def test_grey_values_are_the_images(parts):
    """Superpixels are of about equal size, so that the mean over them is near that over the pixels."""
    means = torch.zeros(500).scatter_reduce(0, parts[2]["batch"], parts[2]["x"][:, 0], "mean", include_self=False)
    images = Digits().tensors()[2].mean(1)
    assert torch.corrcoef(torch.stack([means, images]))[0, 1] > 0.7
    assert load_digits().images.max() / 16 == 1


def test_the_seed_decides_and_global_generators_stay(monkeypatch):
    def labels(seed):
        (batch,) = DigitSuperpixels(batch_size=200, grid=2, neighbours=2, seed=seed, val_size=120).val_dataloader()
        return batch["y"].tolist()

    monkeypatch.setattr(module, "SIDE", 8)
    before = torch.get_rng_state()
    first, again, other = map(labels, (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("grid", 1, "whole number in [2, 13)"),
        ("grid", 13, "whole number in [2, 13)"),
        ("compactness", 0.0, "finite number in (0.0, inf)"),
        ("neighbours", 0, "whole number in [1, inf)"),
        ("val_size", 1297, "whole number in [1, 1297)"),
        ("test_size", 5, "whole number in [10, 1788)"),
    ],
)
def test_bad_arguments(name, value, allowed):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed is a {allowed}")):
        DigitSuperpixels(**{name: value})
