"""Where points will be."""

from functools import partial

import pytest
import torch

from lightning_weights.callbacks import CalibrateOnFirstBatch, RotateBatch
from lightning_weights.functional.ponita import random_rotations
from lightning_weights.modules import PonitaDynamics
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.tasks import make_trainer
from tests.modules.ponita_tasks.cases import collate, fit, loader, net

pytestmark = pytest.mark.filterwarnings(NOISE)


def moving(graphs, dtype=torch.float32):
    """Points that move along their forces."""
    batch = collate(graphs, dtype)
    velocities = batch.pop("forces")
    return {**batch, "vec": velocities, "y": batch["pos"] + 0.3 * velocities}


def points(**options):
    return loader(make=moving, **options)


def dynamics(mode="bundle", **options):
    return PonitaDynamics(net(in_vectors=1, out_scalars=0, out_vectors=1, mode=mode), **options)


def test_predicts_a_displacement(monkeypatch):
    module, batch = dynamics(), next(iter(points()))
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **options: logged.update({name: value}))
    vectors = module.network(batch).vectors[:, 0]
    torch.testing.assert_close(module(batch), batch["pos"] + vectors)
    loss = (batch["pos"] + vectors - batch["y"]).square().mean()
    torch.testing.assert_close(module.training_step(batch, 0), loss)
    out = module.validation_step(batch, 0)
    assert torch.equal(out["target"], batch["y"])
    torch.testing.assert_close(out["preds"], module(batch))
    assert logged.keys() == {"train/loss", "val/loss"}


def test_rotations_are_averaged_in_tests_only():
    module, batch = dynamics(test_time_rotations=2).double(), moving(next(iter(loader(make=list))), torch.float64)
    rotations = random_rotations(2, generator=torch.Generator().manual_seed(0))
    turned = [{**batch, **{name: batch[name] @ rotation.mT for name in ("pos", "vec")}} for rotation in rotations]
    answers = [module(copy) @ rotation for copy, rotation in zip(turned, rotations, strict=True)]
    torch.testing.assert_close(module.predict_step(batch, 0), sum(answers) / 2)
    assert not torch.allclose(module.predict_step(batch, 0), module(batch), rtol=1e-6, atol=1e-6)
    exact = dynamics("pointcloud", test_time_rotations=2).double()
    torch.testing.assert_close(exact.predict_step(batch, 0), exact(batch), rtol=1e-9, atol=1e-9)
    state = torch.get_rng_state()
    module.predict_step(batch, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_learns_and_resumes(tmp_path):
    def run(*extra, **options):
        module = dynamics(optimizer=partial(torch.optim.Adam, lr=1e-2))
        callbacks = (CalibrateOnFirstBatch(), RotateBatch(fields=["pos", "vec", "y"]), *extra)
        return fit(module, *callbacks, train=points(batch_size=1, shuffle=True), max_epochs=5, **options)

    path = tmp_path / "middle.ckpt"
    trainer = run(SaveAt("on_train_batch_end", 9, path))
    assert not differing(outcome(trainer), outcome(run(ckpt=path, seed=8)))
    (logged,) = trainer.test(trainer.lightning_module, points(), verbose=False)
    (fresh,) = make_trainer([]).test(dynamics(), points(), verbose=False)
    assert logged.keys() == {"test/loss"}
    assert logged["test/loss"] < 0.7 * fresh["test/loss"]


def test_bad_input():
    with pytest.raises(ValueError, match="out_scalars=1; allowed is 0"):
        PonitaDynamics(net(in_vectors=1, out_vectors=1))
    with pytest.raises(ValueError, match="pooling='sum'; allowed is 'none'"):
        PonitaDynamics(net(out_scalars=0, out_vectors=1, pooling="sum"))
    batch = next(iter(points()))
    with pytest.raises(ValueError, match=r"y has shape \(7, 2\); allowed is \(7, 3\)"):
        dynamics().training_step({**batch, "y": batch["y"][:, :2]}, 0)
    with pytest.raises(ValueError, match="no tensor 'y'"):
        dynamics().training_step({**batch, "y": None}, 0)
