"""Random rotations of training batches."""

from types import SimpleNamespace

import pytest
import torch

from lightning_weights.callbacks import RotateBatch


def batch(dim=3):
    return {
        "pos": torch.randn(5, dim),
        "vec": torch.randn(5, 2, dim),
        "x": torch.ones(5, dim),
        "batch": torch.tensor([0, 0, 1, 1, 1]),
    }


def rotate(callback, given):
    callback.on_train_batch_start(None, None, given, 0)
    return given


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("per_graph", [False, True])
def test_vectors_turn_together_and_the_rest_stays(dim, per_graph):
    before = batch(dim)
    after = rotate(RotateBatch(per_graph=per_graph), dict(before))
    assert torch.equal(after["x"], before["x"])
    old, new = (torch.cat([b["pos"][:, None], b["vec"]], dim=1) for b in (before, after))
    assert not torch.allclose(old, new)
    for graph in (0, 1) if per_graph else (slice(None),):
        own = before["batch"] == graph if per_graph else graph
        flat, turned = old[own].flatten(0, 1), new[own].flatten(0, 1)
        torch.testing.assert_close(turned @ turned.mT, flat @ flat.mT)  # all angles and lengths
        rotation = torch.linalg.lstsq(flat, turned).solution
        torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_graphs_turn_on_their_own_only_if_asked():
    given = batch()
    given["pos"][2:4] = given["pos"][:2]
    for per_graph in (False, True):
        after = rotate(RotateBatch(["pos"], per_graph=per_graph), dict(given))["pos"]
        assert torch.allclose(after[2:4], after[:2]) != per_graph


def test_objects_lists_and_the_data_behind_them():
    data = batch()
    pos = data["pos"].clone()
    for given, read in ((SimpleNamespace(**data), lambda b: b.pos), ([data["pos"], 1], lambda b: b[0])):
        callback = RotateBatch(["pos"] if hasattr(given, "pos") else ["0"])
        torch.manual_seed(0)
        first = read(rotate(callback, given))
        assert not torch.allclose(first, pos)
        assert torch.equal(data["pos"], pos)


def test_the_global_generator_decides():
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append(rotate(RotateBatch(), {"pos": torch.eye(3)})["pos"])
    assert torch.equal(*found)
    assert not torch.equal(found[0], rotate(RotateBatch(), {"pos": torch.eye(3)})["pos"])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((torch.ones(2, 3),), {"fields": ["0"]}, "the batch is a tuple"),
        ({"x": torch.ones(2, 3)}, {}, "the batch is a dict without a tensor 'pos'"),
        ([torch.ones(2, 3)], {"fields": ["1"]}, "the batch is a list without a tensor '1'"),
        ({"pos": torch.ones(2, 3), "vec": torch.ones(2, 2)}, {}, r"vec has shape \(2, 2\)"),
        ({"pos": torch.ones(2, 3).long()}, {}, "torch.int64"),
        ({"pos": torch.ones(2, 3)}, {"per_graph": True}, "no tensor 'batch'"),
        (
            {"pos": torch.ones(2, 3), "vec": torch.ones(1, 3), "batch": torch.zeros(2, dtype=torch.int64)},
            {"per_graph": True},
            "vec has 1 rows and batch 2",
        ),
    ],
)
def test_batches_that_cannot_be_turned(given, options, message):
    with pytest.raises(ValueError, match=message):
        rotate(RotateBatch(**options), given)


@pytest.mark.parametrize("fields", ["pos", [], [1]])
def test_bad_arguments(fields):
    with pytest.raises(ValueError, match="fields is"):
        RotateBatch(fields=fields)
