"""Numbers of graphs, standardized."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_weights.modules import PonitaRegressor
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.modules.ponita_tasks.cases import collate, fit, loader, molecules, net

pytestmark = pytest.mark.filterwarnings(NOISE)


def regressor(num_targets=1, **options):
    return PonitaRegressor(net(out_scalars=num_targets, pooling="mean"), num_targets, **options)


def two_targets(graphs):
    batch = collate(graphs)
    return {**batch, "y": torch.stack([batch["y"], 1e-3 * batch["y"].square()], dim=1)}


def test_each_target_is_standardized(monkeypatch):
    module, batch = regressor(2), two_targets(molecules()[:2])
    module.standardize(loader(make=two_targets))
    truth = two_targets(molecules())["y"]
    mean, std = truth.mean(0), truth.std(0, correction=0)
    answer = module.network(batch).scalars
    torch.testing.assert_close(module(batch), (answer * std + mean).float())
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **options: logged.update({name: value}))
    errors = (answer - (batch["y"] - mean) / std).abs().float()
    torch.testing.assert_close(module.training_step(batch, 0), errors.mean())
    out = module.validation_step(batch, 0)
    torch.testing.assert_close(logged["val/mae"], (errors * std).float().mean())
    assert logged.keys() == {"train/loss", "val/loss", "val/mae"}
    torch.testing.assert_close(out["preds"], module(batch))


def test_a_fit_standardizes_once_and_resumes(tmp_path, monkeypatch):
    path = tmp_path / "middle.ckpt"
    straight = fit(regressor(), SaveAt("on_train_batch_end", 2, path))
    expected = collate(molecules())["y"]
    scale = straight.lightning_module.standardization.scale
    torch.testing.assert_close(scale, expected.std(correction=0).float().view(1))
    monkeypatch.setattr(PonitaRegressor, "standardize", lambda *_: pytest.fail("standardized again"))
    assert not differing(outcome(straight), outcome(fit(regressor(), ckpt=path, seed=8)))


def test_any_batching_of_the_loader_gives_the_same_scale():
    scales = []
    whole = [collate(molecules()[start : start + 3]) for start in (0, 3)]
    for train in (
        loader(shuffle=True, batch_size=4),
        DataLoader(molecules(), batch_sampler=[[5, 0], [1, 2], [3, 4]], collate_fn=collate),
        DataLoader(whole, batch_size=None, shuffle=True),
    ):
        module = regressor()
        fit(module, train=train, max_steps=1, max_epochs=-1)
        scales.append(float(module.standardization.scale))
    assert scales == [scales[0]] * 3


def test_learns():
    module = regressor(optimizer=partial(torch.optim.Adam, lr=1e-2), test_time_rotations=1)
    fit(module, max_epochs=1, limit_train_batches=1)
    trainer = fit(module, max_epochs=12, train=loader(batch_size=6))
    (logged,) = trainer.test(module, loader(), verbose=False)
    assert logged.keys() == {"test/loss", "test/mae"}
    deviation = collate(molecules())["y"]
    assert logged["test/mae"] < 0.9 * float((deviation - deviation.mean()).abs().mean())


def test_bad_input():
    with pytest.raises(ValueError, match="num_targets is 0"):
        PonitaRegressor(net(pooling="sum"), num_targets=0)
    with pytest.raises(ValueError, match="out_scalars=1; allowed is 2"):
        PonitaRegressor(net(pooling="sum"), num_targets=2)
    batch = collate(molecules()[:2])
    with pytest.raises(ValueError, match=r"y has shape \(2, 1\); allowed is \(2, 2\)"):
        regressor(2).training_step(batch, 0)
    with pytest.raises(ValueError, match="all equal can't be learnt"):
        regressor().standardize([{**batch, "y": torch.ones(2)}])
    with pytest.raises(ValueError, match="there are no batches"):
        regressor().standardize([])
