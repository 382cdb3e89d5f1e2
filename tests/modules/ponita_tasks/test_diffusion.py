"""Denoising positions and types: what is centred, what is equivariant, what is drawn."""

import pytest
import torch

from lightning_weights.functional.edm import edm_loss_weight
from lightning_weights.functional.ponita import random_rotations
from lightning_weights.modules import Denoised, DiffusionSamples, PonitaDiffusion
from lightning_weights.modules.ponita_tasks.diffusion import _centred
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.tasks import make_trainer
from tests.modules.ponita_tasks.cases import collate, fit, loader, molecules, net

pytestmark = pytest.mark.filterwarnings(NOISE)


def diffusion(double=False, num_charges=0, mode="bundle", **options):
    scalars = 2 + num_charges
    network = net(in_scalars=scalars, out_scalars=scalars, out_vectors=1, conditioning_dim=1, mode=mode)
    module = PonitaDiffusion(network, num_charges=num_charges, **options)
    return module.double() if double else module


def centres(values, graphs):
    return torch.zeros(2, values.shape[1], dtype=values.dtype).index_add(0, graphs, values)


def noisy(mode="pointcloud"):
    module, batch = diffusion(double=True, mode=mode), collate(molecules(2), torch.float64)
    pos = _centred(batch["pos"], batch["batch"], 2)
    return module, (pos, batch["x"], torch.tensor([0.3, 2.0], dtype=torch.float64), batch["batch"])


def test_a_step_is_equivariant():
    module, (pos, x, sigma, batch) = noisy()
    rotation = random_rotations(1, generator=torch.Generator().manual_seed(1))[0]
    before, after = module(pos, x, sigma, batch), module(pos @ rotation.mT, x, sigma, batch)
    torch.testing.assert_close(after.pos, before.pos @ rotation.mT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.x, before.x, rtol=1e-9, atol=1e-9)
    grid, arguments = noisy("bundle")
    before = grid(*arguments)
    grid.network.grid.copy_(grid.network.grid @ rotation.mT)
    after = grid(pos @ rotation.mT, x, sigma, batch)
    torch.testing.assert_close(after.pos, before.pos @ rotation.mT, rtol=1e-9, atol=1e-9)


def test_answers_are_centred_and_follow_the_preconditioning():
    module, (pos, x, sigma, batch) = noisy("bundle")
    denoised = module(pos, x, sigma, batch)
    assert centres(denoised.pos, batch).abs().max() < 1e-12
    for graph, level in enumerate(sigma.tolist()):
        own, variance = batch == graph, level**2 + 1.0
        inner = pos[own] / variance**0.5
        condition = sigma[graph].log().view(1, 1) / 4
        scalars, vectors = module.network(x[own] / variance**0.5, inner, condition=condition)
        moved = inner - vectors[:, 0]
        expected = pos[own] / variance + level / variance**0.5 * (moved - moved.mean(0))
        torch.testing.assert_close(denoised.pos[own], expected)
        torch.testing.assert_close(denoised.x[own], x[own] / variance + level / variance**0.5 * scalars)
    clean = module(pos, x, torch.full((2,), 1e-9, dtype=torch.float64), batch)
    torch.testing.assert_close(clean.pos, pos, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(clean.x, x, rtol=1e-6, atol=1e-6)


def test_loss_weighs_squared_errors(monkeypatch):
    module, batch = diffusion(double=True, type_scale=2.0), collate(molecules(2), torch.float64)
    seen = []
    monkeypatch.setattr(module, "forward", lambda *arguments: seen.append(arguments) or Denoised(*arguments[:2]))
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **options: logged.update({name: value}))
    module.validation_step({**batch, "pos": batch["pos"] + 5.0}, 3)
    (pos, x, sigma, graphs) = seen[0]
    clean = _centred(batch["pos"], graphs, 2)
    assert centres(pos, graphs).abs().max() < 1e-6
    weight = edm_loss_weight(sigma)[graphs][:, None]
    torch.testing.assert_close(logged["val/position_loss"], (weight * (pos - clean).square()).mean())
    torch.testing.assert_close(logged["val/type_loss"], (weight * (x - batch["x"] / 2.0).square()).mean())
    torch.testing.assert_close(logged["val/loss"], logged["val/position_loss"] + logged["val/type_loss"])
    state = torch.get_rng_state()
    module.validation_step(batch, 3)
    module.validation_step(batch, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seen[1][2], sigma)
    assert not torch.equal(seen[2][2], sigma)


def test_samples_of_a_perfect_denoiser_are_the_data(monkeypatch):
    module = diffusion(num_charges=1)
    data = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, -2.0, 0.0]])
    features = torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.25, -0.125]]).repeat(2, 1)
    monkeypatch.setattr(module, "forward", lambda pos, x, sigma, batch: Denoised(data, features))
    samples = module.sample([2, 2])
    torch.testing.assert_close(samples.pos, data, rtol=1e-4, atol=1e-4)
    assert samples.types.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(samples.charges, torch.tensor([[6.0], [-1.0]]).repeat(2, 1), rtol=1e-3, atol=1e-3)
    assert samples.batch.tolist() == [0, 0, 1, 1]


def test_samples_follow_their_generator():
    module = diffusion().train()
    module.network.random_grid = "always"
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (module.sample([3, 4], torch.Generator().manual_seed(5), steps=3) for _ in range(2))
    assert torch.equal(first.pos, second.pos)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert centres(first.pos, first.batch).abs().max() < 1e-5
    assert first.types.dtype == torch.int64
    assert first.charges.shape == (7, 0)
    assert not torch.equal(module.sample([3, 4], torch.Generator().manual_seed(6), steps=3).pos, first.pos)


def test_trains_resumes_and_generates(tmp_path):
    path = tmp_path / "middle.ckpt"
    trainer = fit(diffusion(steps=2), SaveAt("on_train_batch_end", 2, path), val=loader())
    resumed = fit(diffusion(steps=2), val=loader(), ckpt=path, seed=8)
    assert not differing(outcome(trainer), outcome(resumed))
    names = {"train/loss", "val/loss", "val/position_loss", "val/type_loss"}
    assert trainer.callback_metrics.keys() == names
    optimizer = trainer.optimizers[0]
    assert type(optimizer) is torch.optim.AdamW
    (first, *_) = make_trainer([]).predict(trainer.lightning_module, loader())
    assert isinstance(first, DiffusionSamples)
    assert torch.bincount(first.batch).tolist() == [3, 4]
    loaded = PonitaDiffusion.load_from_checkpoint(path, network=resumed.lightning_module.network, weights_only=True)
    assert loaded.steps == 2
    assert "test_time_rotations" not in loaded.hparams


def test_bad_input():
    for options, message in (
        ({"num_charges": -1}, "num_charges is -1"),
        ({"type_scale": 0}, "type_scale is 0"),
        ({"sigma_data": 0}, "sigma_data is 0"),
        ({"noise_std": -1}, "std is -1"),
        ({"sigma_min": 2.0}, "sigma_max is 1"),
        ({"steps": 0}, "steps is 0"),
        ({"churn": -1}, "churn is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            PonitaDiffusion(diffusion().network, **options)
    with pytest.raises(ValueError, match="conditioning_dim=0; allowed is 1"):
        PonitaDiffusion(net(out_scalars=2, out_vectors=1))
    with pytest.raises(ValueError, match="out_scalars=1; allowed is 2"):
        PonitaDiffusion(net(out_vectors=1, conditioning_dim=1))
    with pytest.raises(ValueError, match="no number in_scalars"):
        PonitaDiffusion(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="in_scalars of the network is 2"):
        PonitaDiffusion(diffusion().network, num_charges=2)
    with pytest.raises(ValueError, match=r"num_nodes\[1\] is 0"):
        diffusion().sample([2, 0])
    with pytest.raises(ValueError, match="num_nodes is 5; allowed is a list"):
        diffusion().sample(5)
    with pytest.raises(ValueError, match="without tensors x and pos"):
        diffusion().training_step({"pos": torch.zeros(2, 3)}, 0)
