import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import GradientRewardWeights
from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.dynamic_reward import influence, update_reward_weights
from tests.helpers.toy_rl import OBJECTIVES, toy_fit, toy_module

NAMES = ["fit", "small"]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def losses(self, x):
        hidden = self.first(x)
        return {"fit": (self.second(hidden) - 1).square().mean(), "small": hidden.square().mean()}


def attached(callback, module, **trainer):
    group = [SimpleNamespace(param_groups=[{"lr": 0.5}])]
    defaults = {"world_size": 1, "optimizers": group, "precision_plugin": None, "log_every_n_steps": 1}
    callback.setup(SimpleNamespace(**{**defaults, **trainer}), module, "fit")
    return callback


def rows(losses, module):
    found = [
        torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True) for loss in losses
    ]
    return torch.stack([torch.cat([g.flatten() for g in row if g is not None]) for row in pad(found)])


def pad(found):
    shapes = [next((g for g in column if g is not None), None) for column in zip(*found, strict=True)]
    return [
        [torch.zeros_like(like) if g is None else g for g, like in zip(row, shapes, strict=True) if like is not None]
        for row in found
    ]


def test_a_module_of_ones_own():
    module, x = Two(), torch.randn(5, 3)
    callback = attached(GradientRewardWeights(NAMES, normalize="none"), module)
    callback.on_fit_start(None, module)
    losses = module.losses(x)
    weights = module.reward_weighting.update(losses)
    whole = rows(losses.values(), module)
    want = update_reward_weights(torch.tensor([0.5, 0.5]), influence(whole @ whole.T), 0.1)
    torch.testing.assert_close(weights, want)
    assert not weights.requires_grad
    sum(w * loss for w, loss in zip(weights, losses.values(), strict=True)).backward()  # the graph is still there
    assert all(p.grad is not None for p in module.first.parameters())
    callback.teardown(None, module, "fit")
    assert module.reward_weighting is None


@pytest.mark.parametrize("center", [False, True])
def test_what_is_common_is_added_or_left_out(center):
    module, x = Two(), torch.randn(5, 3)
    callback = attached(GradientRewardWeights(NAMES, normalize="none", center=center), module)
    losses, common = module.losses(x), module.first.weight.square().sum()
    weights = callback.update(losses, common=common)
    whole = rows([loss if center else loss + common for loss in losses.values()], module)
    torch.testing.assert_close(
        weights, update_reward_weights(torch.tensor([0.5, 0.5]), influence(whole @ whole.T), 0.1)
    )


def test_layers_and_a_step_that_follows_the_learning_rate():
    module, x = Two(), torch.randn(5, 3)
    options = {"layers": r"^first\.", "normalize": "none", "lr_coupled": True, "mu": 10.0}
    callback = attached(GradientRewardWeights(NAMES, **options), module)
    losses = module.losses(x)
    weights = callback.update(losses)
    part = rows(losses.values(), module.first)
    torch.testing.assert_close(weights, update_reward_weights(torch.tensor([0.5, 0.5]), influence(part @ part.T), 0.05))


def test_scaled_losses_are_unscaled():
    module, x = Two(), torch.randn(5, 3)
    scaler = SimpleNamespace(scale=lambda loss: 1024.0 * loss, get_scale=lambda: 1024.0)
    results = [
        attached(GradientRewardWeights(NAMES), module, precision_plugin=plugin).update(module.losses(x))
        for plugin in (None, SimpleNamespace(scaler=scaler))
    ]
    torch.testing.assert_close(*results)


def test_copies_are_lean_and_states_come_back():
    module, x = Two(), torch.randn(5, 3)
    callback = attached(GradientRewardWeights(NAMES, initial=(0.25, 0.75), accumulate=3), module)
    for _ in range(4):
        callback.update(module.losses(x))
    twin = copy.deepcopy(callback)
    assert twin.state_dict() == callback.state_dict()
    assert torch.equal(twin.weights, callback.weights)
    assert twin._module is None
    again = attached(GradientRewardWeights(NAMES, accumulate=3), module)
    again.load_state_dict(callback.state_dict())
    assert torch.equal(again.update(module.losses(x)), callback.update(module.losses(x)))
    attached(callback, module)
    assert callback.weights.tolist() == pytest.approx([0.25, 0.75]), "another fit begins anew"


def test_it_moves_the_weights_of_a_training():
    callback = GradientRewardWeights(OBJECTIVES, normalize="unit")
    trainer = toy_fit(toy_module(estimator="grpo"), [callback])
    logged = trainer.callback_metrics
    found = [float(logged[f"weights/dynamic_reward/weight_{name}"]) for name in OBJECTIVES]
    assert found == pytest.approx(callback.weights.tolist())
    assert sum(found) == pytest.approx(1.0)
    assert found != pytest.approx([1 / 3] * 3)
    assert "weights/dynamic_reward/influence_brevity" in logged


def test_it_begins_from_the_weights_of_the_module_unless_it_has_its_own():
    for initial, want in ((None, [0.5, 0.3, 0.2]), ([0.2, 0.2, 0.6], [0.2, 0.2, 0.6])):
        callback = GradientRewardWeights(OBJECTIVES, initial=initial)
        callback.setup(SimpleNamespace(), toy_module(weights=[0.5, 0.3, 0.2]), "fit")
        assert callback.weights.tolist() == pytest.approx(want)
        assert callback.state_dict()["log_weights"] == pytest.approx(torch.tensor(want).log().tolist())


def test_refusals():
    module = Two()
    callback = attached(GradientRewardWeights(NAMES), module)
    with pytest.raises(ValueError, match=r"losses are of \['small'\]; allowed are \['fit', 'small'\]"):
        callback.update({"small": torch.zeros(())})
    with pytest.raises(ValueError, match="rewards of MultiObjectiveRL are"):
        toy_fit(toy_module(), [GradientRewardWeights(NAMES)])
    callback = attached(GradientRewardWeights(NAMES, layers="third"), module)
    with pytest.raises(ValueError, match="layers is 'third', which is found in no name"):
        callback.on_fit_start(None, module)
    module.first.weight.placements = ()
    with pytest.raises(ShardedParameterError, match="use DDP"):
        attached(GradientRewardWeights(NAMES), module).on_fit_start(None, module)
    with pytest.raises(ValueError, match="objectives is 'fit'"):
        GradientRewardWeights("fit")
