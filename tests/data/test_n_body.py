"""The data set of charged particles: batches, parts, seeds, and the folder."""

import re

import pytest
import torch

from lightning_weights.data import NBody
from lightning_weights.functional.n_body import simulate_charges

SMALL = {"train_size": 30, "val_size": 10, "test_size": 20, "input_steps": 40, "horizon": 60, "shuffle": False}


def parts(data):
    """Return all of each part as one batch."""
    data.batch_size = 10_000
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return [next(iter(loader)) for loader in loaders]


def test_batches_have_charges_velocities_and_later_positions():
    for batch, size in zip(parts(NBody(**SMALL)), (30, 10, 20), strict=True):
        assert batch["batch"].tolist() == [system for system in range(size) for _ in range(5)]
        assert {name: values.shape[1:] for name, values in batch.items()} == {
            **{"x": (1,), "pos": (3,), "vec": (1, 3), "y": (3,), "batch": ()}
        }
        assert set(batch["x"].flatten().tolist()) == {-1.0, 1.0}
        assert {values.dtype for name, values in batch.items() if name != "batch"} == {torch.float32}


def test_targets_are_where_the_simulator_leads():
    batch = parts(NBody(**SMALL))[0]
    pos, vel, charges = (batch[name].double().reshape(30, 5, -1) for name in ("pos", "vec", "x"))
    later, _ = simulate_charges(pos, vel, charges[..., 0], steps=60)
    assert torch.allclose(later.flatten(0, 1).float(), batch["y"], atol=1e-3)
    assert (batch["y"] - batch["pos"]).abs().max() > 0.05


def test_systems_start_as_stated():
    batch = parts(NBody(train_size=2000, val_size=1, test_size=1, input_steps=0, horizon=1))[0]
    assert torch.allclose(batch["vec"].norm(dim=-1), torch.tensor(0.5))
    assert batch["pos"].mean().abs() < 0.03
    assert batch["pos"].var().item() == pytest.approx(1, rel=0.03)
    assert batch["x"].mean().abs() < 0.05


def test_no_system_is_in_two_parts_or_under_two_seeds():
    every = [part["pos"].reshape(-1, 15) for seed in (0, 1, 2) for part in parts(NBody(**SMALL, seed=seed))]
    assert len(torch.cat(every).unique(dim=0)) == 3 * 60


def test_the_seed_decides_and_global_generators_stay():
    before = torch.get_rng_state()
    first, again = parts(NBody(**SMALL)), parts(NBody(**SMALL))
    larger = parts(NBody(**{**SMALL, "val_size": 25}))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert torch.allclose(first[2]["y"], larger[2]["y"], atol=1e-5)


def test_a_folder_keeps_the_systems(tmp_path, monkeypatch):
    made = parts(NBody(**SMALL, folder=str(tmp_path / "new")))
    (path,) = (tmp_path / "new").iterdir()
    other = NBody(**{**SMALL, "seed": 1}, folder=str(tmp_path / "new"))
    other.prepare_data()
    assert len(list((tmp_path / "new").iterdir())) == 2
    monkeypatch.setattr(NBody, "_simulate", None)  # what lies there is not made again
    read = parts(NBody(**SMALL, folder=str(tmp_path / "new")))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(made, read, strict=True) for name in a)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=re.escape(f"{path} can't be read: delete it")):
        NBody(**SMALL, folder=str(tmp_path / "new")).setup()


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = NBody(**SMALL)
    data.prepare_data()
    data.setup()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("train_size", 0, "whole number in [1, inf)"),
        ("val_size", 1.5, "whole number in [1, inf)"),
        ("test_size", None, "whole number in [1, inf)"),
        ("bodies", 1, "whole number in [2, inf)"),
        ("input_steps", -1, "whole number in [0, inf)"),
        ("horizon", 0, "whole number in [1, inf)"),
        ("dt", 0.0, "finite number in (0.0, inf)"),
        ("max_force", -1.0, "finite number in (0.0, inf)"),
    ],
)
def test_bad_arguments(name, value, allowed):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed is a {allowed}")):
        NBody(**{name: value})
