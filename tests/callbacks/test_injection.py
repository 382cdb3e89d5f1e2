"""Putting parts into networks: when, in which order, what is left behind, and what is refused."""

import copy
import importlib
import pickle
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn
from torch.distributed.tensor import distribute_tensor
from torch.nn.utils import parametrize

from lightning_weights.callbacks import BoneFinetuning, GradNormLoRP, WeightCompander
from lightning_weights.callbacks import _injection as injection
from lightning_weights.errors import ShardedParameterError
from tests.helpers.small_nets import classifier, loader
from tests.helpers.tasks import make_trainer, tiny_tasks
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker).*")


class Scale(nn.Module):
    """A parametrization with one number."""

    def __init__(self, value):
        super().__init__()
        self.start, self.value = value, nn.Parameter(torch.tensor(float(value)))

    def forward(self, weight):
        return weight * self.value


class ScaleHead(Callback):
    """Scales the last layer's weight by a parameter."""

    def __init__(self, value=2.0):
        self.value, self.calls = value, 0

    def setup(self, trainer, pl_module, stage):
        injection.inject_when_built(pl_module, self.inject)

    def inject(self, pl_module):
        self.calls += 1
        head = list(injection.weight_layers(pl_module).values())[-1]
        if not any(isinstance(part, Scale) and part.start == self.value for part in head.modules()):
            parametrize.register_parametrization(head, "weight", Scale(self.value))

    def on_exception(self, trainer, pl_module, exception):
        injection.release(pl_module)


def module(root=ROOTS[0], built_in="__init__", fails_in=None):
    """A module whose network is made in one of three places."""

    class Late(importlib.import_module(root).LightningModule):
        def __init__(self):
            super().__init__()
            self.build("__init__")

        def build(self, place):
            if place == fails_in:
                raise OSError("disk full")
            if place == built_in and not hasattr(self, "net"):
                torch.manual_seed(3)
                self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

        def setup(self, stage):
            self.build("setup")

        def configure_model(self):
            self.build("configure_model")

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Late()


def fit(model, callbacks, root=ROOTS[0], ckpt=None, epochs=1):
    trainer = make_trainer(callbacks, root, max_epochs=epochs)
    trainer.fit(model, datamodule=tiny_tasks(root), ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("built_in", ["__init__", "setup", "configure_model"])
def test_injects_wherever_the_network_is_built_and_the_optimizer_gets_it(root, built_in):
    scale, model = ScaleHead(), module(root, built_in)
    trainer = fit(model, [scale], root)
    value = model.net[2].parametrizations["weight"][0].value
    assert scale.calls == 1
    assert value.item() != 2.0
    injection.check_trained(trainer, {"value": value}, "ScaleHead")
    reference = module()
    fit(reference, [ScaleHead()])
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


def test_several_callbacks_inject_in_their_order_and_only_once_over_several_fits():
    callbacks, model = [ScaleHead(2.0), ScaleHead(3.0)], module()
    fit(model, callbacks)
    fit(model, callbacks)
    assert [callback.calls for callback in callbacks] == [2, 2]
    first, second = model.net[2].parametrizations["weight"]
    assert abs(first.value - 2.0) < 0.5 < abs(second.value - 2.0)


def test_a_module_is_as_it_was_after_the_injection():
    model = module()
    own = model.configure_model
    fit(model, [ScaleHead()])
    assert model.configure_model == own
    assert "configure_model" not in vars(model)
    assert "configure_model" not in vars(copy.deepcopy(model))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(model.net)
    model.configure_model = own = partial(model.configure_model)
    fit(model, [ScaleHead(), ScaleHead(3.0)])
    assert vars(model)["configure_model"] is own


@pytest.mark.parametrize("place", ["setup", "configure_model"])
def test_a_fit_that_fails_before_leaves_no_wrap(place):
    model = module(fails_in=place)
    with pytest.raises(OSError, match="disk full"):
        fit(model, [ScaleHead(), ScaleHead(3.0)])
    assert "configure_model" not in vars(model)


def test_checkpoints_of_the_run_load_since_injection_comes_first(tmp_path):
    model = module()
    trainer = fit(model, [ScaleHead()])
    trainer.save_checkpoint(tmp_path / "ckpt")
    names = torch.load(tmp_path / "ckpt", weights_only=True)["state_dict"]
    assert "net.2.parametrizations.weight.original" in names
    for root in ROOTS:
        other = module(root, "configure_model")
        validated = make_trainer([ScaleHead()], root).validate(
            other, datamodule=tiny_tasks(root), ckpt_path=tmp_path / "ckpt", verbose=False
        )
        assert torch.equal(model.net[2].weight, other.net[2].weight)
        assert validated


def test_layers_are_found_by_pattern_and_what_there_is_is_told():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(4, 4), nn.Embedding(3, 4), nn.Linear(4, 2))
    assert list(injection.weight_layers(net)) == ["0", "2", "4"]
    assert list(injection.named_layers(net, ["4", "[02]"], "layers")) == ["0", "2", "4"]
    with pytest.raises(ValueError, match=r"layers has 'head', which names no Linear or Conv layer; there are 0, 2, 4"):
        injection.named_layers(net, ["0", "head"], "layers")
    with pytest.raises(ValueError, match="there are none"):
        injection.named_layers(nn.ReLU(), ["*"], "layers")


def test_shared_missing_and_sharded_weights_are_refused(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Embedding(4, 4), nn.Linear(4, 2))
    layers = injection.weight_layers(net)
    parametrize.register_parametrization(net[0], "weight", Scale(1.0))
    assert injection.raw_weights(net[0]) == [net[0].parametrizations["weight"].original]
    injection.check_weights(net, layers, "prune")
    net[1].weight = net[0].parametrizations["weight"].original
    with pytest.raises(ValueError, match=r"cannot prune 0: its weight is shared by 0 and 1"):
        injection.check_weights(net, layers, "prune")
    for empty in (nn.Linear(2, 2, device="meta"), nn.LazyLinear(2)):
        with pytest.raises(ValueError, match="cannot gate 0: its weight has no values yet"):
            injection.check_weights(nn.Sequential(empty), {"0": empty}, "gate")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        layer = nn.Linear(2, 2)
        layer.weight = nn.Parameter(
            distribute_tensor(layer.weight.detach(), torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        )
        with pytest.raises(ShardedParameterError, match="cannot prune 0: its weight is sharded"):
            injection.check_weights(nn.Sequential(layer), {"0": layer}, "prune")
    finally:
        torch.distributed.destroy_process_group()


def test_an_optimizer_made_before_is_refused():
    model = module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.configure_optimizers = lambda: optimizer
    trainer = fit(model, [ScaleHead()])
    parameters = {"net.2.scale": model.net[2].parametrizations["weight"][0].value}
    with pytest.raises(ValueError, match=r"ScaleHead put parameters .* that no optimizer has: net\.2\.scale"):
        injection.check_trained(trainer, parameters, "ScaleHead")


@pytest.mark.parametrize(
    "averaging",
    [WeightAveraging, partial(StochasticWeightAveraging, swa_lrs=1e-2, swa_epoch_start=1)],
    ids=["WeightAveraging", "StochasticWeightAveraging"],
)
@pytest.mark.parametrize(
    "make",
    [partial(BoneFinetuning, r=2, modules_to_save=["head"]), partial(GradNormLoRP, r=2), WeightCompander],
    ids=["bone", "gradnorm_lorp", "weight_compander"],
)
def test_lightnings_averages_know_parts_that_were_put_in_ahead_of_the_fit(make, averaging):
    """They copy the module in their own setup, which is earlier than any injection."""
    model, method = classifier(batch_norm=False), make()
    method.attach(model)
    before = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
    make_trainer([averaging(), method], max_epochs=2).fit(model, loader(), loader())
    after = dict(model.named_parameters())
    assert all(after[name].isfinite().all() for name in before)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
