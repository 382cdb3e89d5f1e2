"""Energies and forces: what they are, how they are trained, and where they are refused."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_weights.callbacks import CalibrateOnFirstBatch, RotateBatch
from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.ponita import random_rotations
from lightning_weights.modules import EnergyForces, PonitaPotential
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.tasks import make_trainer
from tests.modules.ponita_tasks.cases import collate, fit, loader, molecules, net

pytestmark = pytest.mark.filterwarnings(NOISE)

MODES = ("bundle", "pointcloud", "position")


def potential(double=False, mode="bundle", **options):
    module = PonitaPotential(net(mode=mode, pooling="sum"), **options)
    return module.double() if double else module


def batch_of(*numbers, dtype=torch.float64):
    graphs = molecules()
    return collate([graphs[number] for number in numbers], dtype)


@pytest.mark.parametrize("mode", MODES)
def test_forces_are_slopes_and_sum_to_zero(mode):
    module, batch = potential(double=True, mode=mode), batch_of(0, 1)
    module.standardize(loader())
    energies, forces = module.predict(batch, rotations=0)
    generator, step = torch.Generator().manual_seed(1), 1e-5
    for _ in range(3):
        way = torch.randn(batch["pos"].shape, dtype=torch.float64, generator=generator)
        up, down = (
            module.predict({**batch, "pos": batch["pos"] + sign * step * way}, rotations=0).energies for sign in (1, -1)
        )
        assert abs(float((forces * way).sum() + (up - down).sum() / (2 * step))) < 1e-6
    assert forces.abs().max() > 1e-3
    sums = torch.zeros(2, 3, dtype=torch.float64).index_add(0, batch["batch"], forces)
    assert sums.abs().max() < 1e-10
    assert energies.shape == (2,)


def test_two_molecules_are_each_alone():
    module = potential(double=True)
    module.standardize(loader())
    both, first, second = (module.predict(batch_of(*numbers), rotations=2) for numbers in ((0, 1), (0,), (1,)))
    torch.testing.assert_close(both.energies, torch.cat([first.energies, second.energies]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both.forces, torch.cat([first.forces, second.forces]), rtol=1e-12, atol=1e-12)


def test_forces_are_turned_back():
    module, batch = potential(double=True), batch_of(0, 1)
    mean = module.predict(batch, rotations=3)
    rotations = random_rotations(3, generator=torch.Generator().manual_seed(0))
    turned = [module({**batch, "pos": batch["pos"] @ rotation.mT}) for rotation in rotations]
    torch.testing.assert_close(mean.energies, sum(answer.energies for answer in turned) / 3)
    back = [answer.forces @ rotation for answer, rotation in zip(turned, rotations, strict=True)]
    torch.testing.assert_close(mean.forces, sum(back) / 3)
    exact = potential(double=True, mode="pointcloud")
    torch.testing.assert_close(exact.predict(batch).forces, exact(batch).forces, rtol=1e-9, atol=1e-9)


def test_loss_is_that_of_the_paper(monkeypatch):
    module, batch = potential(double=True, lambda_force=7.0), batch_of(0, 1)
    module.standardize(loader())
    energies, forces = (part.detach() for part in module(batch))
    truth = molecules(6)
    shift = sum(graph["y"] for graph in truth) / 6
    scale = torch.cat([graph["forces"] for graph in truth]).square().mean().sqrt()
    of_energies = ((energies - shift) / scale - (batch["y"] - shift) / scale).square().mean()
    of_forces = ((forces - batch["forces"]) / scale).square().sum(1).mean() / 3
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **options: logged.update({name: (value, options)}))
    torch.testing.assert_close(module.training_step(batch, 0), of_energies / 7.0 + of_forces, rtol=1e-6, atol=1e-6)
    out = module.validation_step(batch, 0)
    torch.testing.assert_close(out["preds"].forces, forces)
    assert torch.equal(out["target"].energies, batch["y"])
    assert logged.keys() == {"train/loss", "val/loss", "val/energy_mae", "val/force_mae"}
    assert (logged["val/energy_mae"][1]["batch_size"], logged["val/force_mae"][1]["batch_size"]) == (2, 7)
    torch.testing.assert_close(logged["val/energy_mae"][0], (energies - batch["y"]).abs().mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logged["val/force_mae"][0], (forces - batch["forces"]).abs().mean(), rtol=1e-6, atol=0)


def test_large_energies_keep_their_digits():
    module, batch = potential(), batch_of(0, 1, dtype=torch.float32)
    far = 4e5 + batch["y"] * 1e-4
    module.standardize([{**batch, "y": far}])
    scale = batch["forces"].double().square().mean().sqrt()
    expected = (far - far.mean()) / scale
    found = module.standardization.normalized(far[:, None])[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-8)
    network = module.network(batch["x"], batch["pos"], batch=batch["batch"]).scalars[:, 0]
    energies = module.predict(batch, rotations=0).energies
    torch.testing.assert_close((energies - far.mean()) / scale, network.double(), rtol=1e-4, atol=1e-6)


def test_a_fit_finds_the_scale_and_draws_nothing():
    found = fit(potential())
    given = potential()
    given.standardize(loader())
    assert not differing(outcome(found), outcome(fit(given)))
    assert bool(given.standardization.known)
    before = given.standardization.scale.clone()
    fit(given, train=loader(count=2))
    assert torch.equal(given.standardization.scale, before)


def test_a_fit_resumes_in_the_middle(tmp_path, monkeypatch):
    def run(**options):
        average = EMAWeightAveraging(decay=0.9, use_buffers=False)
        rotate = RotateBatch(fields=["pos", "forces"])
        module = potential(optimizer=partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-3))
        module.network.random_grid = "train"
        return fit(module, CalibrateOnFirstBatch(), rotate, average, *options.pop("extra", ()), val=loader(), **options)

    path = tmp_path / "middle.ckpt"
    straight = run(extra=[SaveAt("on_train_batch_end", 2, path)])
    monkeypatch.setattr(PonitaPotential, "standardize", lambda *_: pytest.fail("standardized again"))
    resumed = run(ckpt=path, seed=9)
    assert not differing(outcome(straight), outcome(resumed))
    assert float(straight.callback_metrics["val/loss"]) == float(resumed.callback_metrics["val/loss"])
    assert float(resumed.lightning_module.standardization.scale) != 1.0


def test_averaged_weights_are_measured_in_the_same_units():
    module = potential()
    fit(module, EMAWeightAveraging(decay=0.9, use_buffers=False), val=loader())
    expected = torch.stack([graph["y"] for graph in molecules()]).mean()
    shift = module.standardization.shift.double() + module.standardization.shift_rest.double()
    assert float(shift) == pytest.approx(float(expected), rel=1e-12)


def test_training_lowers_errors():
    module = potential(optimizer=partial(torch.optim.Adam, lr=1e-2), test_time_rotations=1)
    trainer = fit(module, max_epochs=1, limit_train_batches=1)
    (first,) = trainer.test(module, loader(), verbose=False)
    assert first.keys() == {"test/loss", "test/energy_mae", "test/force_mae"}
    trainer = fit(module, max_epochs=6)
    (last,) = trainer.test(module, loader(), verbose=False)
    assert last["test/force_mae"] < 0.9 * first["test/force_mae"]
    assert last["test/loss"] < 0.9 * first["test/loss"]


@pytest.mark.parametrize("function", ["validate", "test", "predict"])
def test_inference_mode_is_refused(function):
    with pytest.raises(ValueError, match=r"Trainer\(inference_mode=False\)"):
        getattr(make_trainer([]), function)(potential(), loader())


def test_inference_mode_is_refused_without_a_trainer():
    batch = batch_of(0, dtype=torch.float32)
    with torch.inference_mode():
        batch = {name: value.clone() for name, value in batch.items()}
        with pytest.raises(ValueError, match="inference_mode=False"):
            potential()(batch)
    with pytest.raises(ValueError, match="inference_mode=False"):
        potential()(batch)


def test_any_trainer_fits():
    trainer = make_trainer([], max_steps=1, val_check_interval=1)
    trainer.fit(potential(), loader(), loader())
    assert float(trainer.callback_metrics["val/force_mae"]) > 0


def test_predictions_come_from_the_trainer():
    module = potential()
    (first, *_) = make_trainer([], inference_mode=False).predict(module, loader())
    assert isinstance(first, EnergyForces)
    torch.testing.assert_close(first.forces, module.predict(next(iter(loader()))).forces)
    assert not first.forces.requires_grad


def test_objects_are_batches_and_outputs_differentiable():
    module, batch = potential(double=True), batch_of(0)
    energies, forces = module(SimpleNamespace(**batch))
    assert torch.equal(energies, module(batch).energies)
    (energies.sum() + forces.square().sum()).backward()
    assert all(param.grad is not None for param in module.network.parameters())
    with torch.no_grad():
        assert not module(batch).forces.requires_grad


def test_autocast_leaves_forces_in_single_precision():
    module, batch = potential(), batch_of(0, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        energies, forces = module(batch)
    assert (energies.dtype, forces.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(forces, module(batch).forces, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision is '{precision}'"):
        make_trainer([], precision=precision, max_epochs=1).fit(potential(), loader())


def test_sharded_weights_are_refused():
    module = potential()
    next(module.parameters()).placements = ()
    with pytest.raises(ShardedParameterError, match="use strategy='ddp'"):
        module.training_step(batch_of(0), 0)


def test_bad_input():
    with pytest.raises(ValueError, match="lambda_force is 0"):
        potential(lambda_force=0)
    with pytest.raises(ValueError, match="test_time_rotations is -1"):
        potential(test_time_rotations=-1)
    with pytest.raises(ValueError, match="out_scalars=2; allowed is 1"):
        PonitaPotential(net(out_scalars=2, pooling="sum"))
    with pytest.raises(ValueError, match="pooling='none'; allowed is 'sum' or 'mean'"):
        PonitaPotential(net())
    module, batch = potential(), batch_of(0, 1, dtype=torch.float32)
    for wrong, message in (
        ({"forces": None}, "no tensor 'forces'"),
        ({"y": None}, "no tensor 'y'"),
        ({"forces": batch["forces"][:, :2]}, r"forces has shape \(7, 2\)"),
        ({"y": batch["y"][:1]}, r"y has shape \(1, 1\)"),
        ({"x": None}, "without tensors x and pos"),
    ):
        with pytest.raises(ValueError, match=message):
            module.training_step({**batch, **wrong}, 0)
    with pytest.raises(ValueError, match="scales above 0"):
        module.standardize([{**batch, "forces": torch.zeros(7, 3)}])
    with pytest.raises(ValueError, match="there are no batches"):
        module.standardize([])
    with pytest.raises(ValueError, match=r"call module.standardize\(batches\)"):
        make_trainer([], max_epochs=1).fit(potential(), [batch])
