"""EWC and SI are honest baselines only if they compute what their papers say."""

import io

import pytest
import torch
from _baselines import EWC, SI, squared_gradients
from _harness import quiet_trainer
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.modules import MLP, Classifier


def small_classifier() -> Classifier:
    return Classifier(MLP(4, (5,), 3), num_classes=3)


def test_fisher_equals_a_loop_over_samples() -> None:
    model, inputs, labels = small_classifier(), torch.randn(260, 4), torch.randint(3, (260,))
    fisher = squared_gradients(model, inputs, labels)
    expected = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    for x, label in zip(inputs, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), label[None]).backward()
        for name, param in model.named_parameters():
            expected[name] += param.grad.square() / 260
    assert fisher.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(fisher[name], value, rtol=1e-4, atol=1e-7)


def test_fisher_of_a_linear_softmax_model_has_its_closed_form() -> None:
    model, inputs = Classifier(MLP(4, (), 3), num_classes=3), torch.randn(20_000, 4)
    ewc = EWC(strength=1.0, epochs_per_task=1)
    ewc.consolidate(model, inputs)
    probability = model(inputs).softmax(dim=1)
    variance = probability * (1 - probability)
    expected = (variance[:, :, None] * inputs.square()[:, None, :]).mean(dim=0)
    torch.testing.assert_close(ewc.fisher["network.head.weight"], expected, rtol=0.1, atol=0.0)
    torch.testing.assert_close(ewc.fisher["network.head.bias"], variance.mean(dim=0), rtol=0.1, atol=0.0)


def test_ewc_sums_over_tasks_and_keeps_the_last_weights() -> None:
    model, ewc = small_classifier(), EWC(strength=1.0, epochs_per_task=1)
    ewc.consolidate(model, torch.randn(50, 4))
    first = {name: value.clone() for name, value in ewc.fisher.items()}
    nn.init.normal_(model.network.head.weight)
    ewc.consolidate(model, 100 * torch.randn(50, 4))
    assert all((ewc.fisher[name] >= first[name]).all() for name in first)
    assert torch.equal(ewc.anchor["network.head.weight"], model.network.head.weight)
    assert model.training


@pytest.mark.parametrize("method", ["EWC", "SI"])
def test_added_gradient_is_that_of_the_penalty(method: str) -> None:
    model = small_classifier()
    callback = {"EWC": EWC, "SI": SI}[method](strength=0.7, epochs_per_task=1)
    weights = {name: torch.rand_like(param) for name, param in model.named_parameters()}
    anchors = {name: torch.randn_like(param) for name, param in model.named_parameters()}
    callback.anchor = anchors
    setattr(callback, {"EWC": "fisher", "SI": "importance"}[method], weights)
    scale = {"EWC": 0.7 / 2, "SI": 0.7}[method]
    penalty = scale * sum((weights[n] * (p - anchors[n]).square()).sum() for n, p in model.named_parameters())
    expected = torch.autograd.grad(penalty, list(model.parameters()))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    callback.on_before_optimizer_step(None, model, None)
    for param, pull in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, 1 + pull)


class Quadratic(LightningModule):
    """Minimises 1/2 Σ a (w - c)² with plain SGD."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.lr = lr

    def loss(self) -> Tensor:
        return 0.5 * torch.tensor([1.0, 0.5, 2.0]) @ (self.weight - torch.tensor([0.0, 1.0, 0.5])).square()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def test_path_integral_is_the_drop_of_the_loss() -> None:
    model, si = Quadratic(lr=0.01), SI(strength=1.0, epochs_per_task=2, damping=0.1)
    start, loss = model.weight.detach().clone(), model.loss().item()
    quiet_trainer(max_epochs=1, callbacks=[si]).fit(model, DataLoader(torch.zeros(80, 1)))
    assert si.path["weight"].sum().item() == pytest.approx(loss - model.loss().item(), rel=0.02)
    assert si.path["weight"][2] == 0  # it starts in its minimum

    si = SI(strength=1.0, epochs_per_task=1, damping=0.1)
    model = Quadratic(lr=0.01)
    quiet_trainer(max_epochs=1, callbacks=[si]).fit(model, DataLoader(torch.zeros(80, 1)))
    collected = si.importance["weight"] * ((model.weight - start).square() + 0.1)
    assert collected.sum().item() == pytest.approx(loss - model.loss().item(), rel=0.02)
    assert torch.equal(si.anchor["weight"], model.weight)
    assert not si.path["weight"].any()


def test_path_integral_leaves_the_penalty_out() -> None:
    model, si = Quadratic(lr=0.1), SI(strength=5.0, epochs_per_task=1)
    si.anchor, si.importance = {"weight": torch.zeros(3)}, {"weight": torch.ones(3)}
    si.path = {"weight": torch.zeros(3)}
    before, gradient = model.weight.detach().clone(), torch.autograd.grad(model.loss(), model.weight)[0]
    model.weight.grad = gradient.clone()
    si.on_before_optimizer_step(None, model, None)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    si.on_train_batch_end(None, model)
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * (gradient + 10 * before))
    torch.testing.assert_close(si.path["weight"], -gradient * (model.weight.detach() - before))


@pytest.mark.parametrize("method", [EWC, SI])
def test_without_strength_training_is_unchanged(method: type) -> None:
    weights, generators = [], []
    for callbacks in ([], [method(strength=0.0, epochs_per_task=1)]):
        seed_everything(3, verbose=False)
        model = small_classifier()
        order = torch.Generator().manual_seed(5)
        data = TensorDataset(torch.randn(24, 4), torch.randint(3, (24,)))
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=order)
        quiet_trainer(max_epochs=3, callbacks=callbacks).fit(model, loader)
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
        generators.append(torch.get_rng_state())
    assert torch.equal(*weights)
    assert torch.equal(*generators)


@pytest.mark.parametrize("method", [EWC, SI])
def test_state_survives_a_safe_load(method: type) -> None:
    model, trained = small_classifier(), method(strength=1.0, epochs_per_task=1)
    data = TensorDataset(torch.randn(8, 4), torch.randint(3, (8,)))
    quiet_trainer(max_epochs=1, callbacks=[trained]).fit(model, DataLoader(data, batch_size=8))
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    restored = method(strength=1.0, epochs_per_task=1)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for model_with_gradients, callback in ((model, trained), (model, restored)):
        for param in model_with_gradients.parameters():
            param.grad = torch.ones_like(param)
        with torch.no_grad():
            model.network.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        callback.on_before_optimizer_step(None, model, None)
        if callback is trained:
            expected = [param.grad.clone() for param in model.parameters()]
    assert all(torch.equal(param.grad, grad) for param, grad in zip(model.parameters(), expected, strict=True))
