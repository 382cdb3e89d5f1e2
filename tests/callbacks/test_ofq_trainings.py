"""OFQ in trainings of other kinds: manual, compiled, copied, pickled, and with the keys of state dicts."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.nn import functional as F

from lightning_weights.callbacks import OFQ
from lightning_weights.modules import Classifier
from tests.callbacks.ofq_cases import CLASSES, NOISE, fit, vit
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)
X = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


class Manual(Classifier):
    """Goes backward by itself."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        before = loss.detach().clone()
        self.manual_backward(loss)
        assert torch.equal(loss.detach(), before), "the loss of a manual step was changed"
        optimizer.step()


def test_manual_optimization_learns_from_the_teacher_too():
    models = vit(sgd, root=Manual), vit(sgd)
    trainers = [fit(model, [OFQ(act_bits=4)]) for model in models]
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    taught = [float(trainer.callback_metrics["weights/ofq/distillation"]) for trainer in trainers]
    assert taught[0] == pytest.approx(taught[1], rel=1e-4)


def test_manual_optimization_under_ddp_is_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, trainer = vit(root=Manual), make_trainer([])
        trainer.strategy.model = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match="OFQ cannot add the teacher's loss in manual optimization under DDP"):
            OFQ().on_fit_start(trainer, model)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_networks_are_quantized_and_taught():
    torch._dynamo.reset()
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        layers = [nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)]
        models.append(Classifier(nn.Sequential(nn.Flatten(), *layers), CLASSES, optimizer=sgd))
    models[0].network = torch.compile(models[0].network, backend="eager")
    for model in models:
        fit(model, [OFQ(act_bits=4, granularity="tensor", edge_bits=None)], epochs=1, limit_train_batches=2)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    torch._dynamo.reset()


class Behind(Classifier):
    """Has layers in front of the network that is taught."""

    def __init__(self, network, classes, optimizer):
        super().__init__(network, classes, optimizer=optimizer)
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(16, 16))

    def forward(self, x):
        return self.network(self.stem(x))


@pytest.mark.filterwarnings("ignore:latent weights of quantized layers stay in fp32")
@pytest.mark.parametrize(("precision", "bias"), [("bf16-true", True), ("bf16-true", False), ("bf16-mixed", True)])
def test_the_teacher_computes_as_its_student_does(precision, bias):
    taught = {}
    for name in ("32-true", precision):
        torch.manual_seed(0)
        network = nn.Sequential(*(nn.Linear(16, 16, bias) for _ in range(2)), nn.Linear(16, CLASSES, bias))
        model = Behind(network, CLASSES, optimizer=sgd)
        trainer = fit(model, [OFQ(network="network", skip=["network.2"])], 1, precision=name, limit_train_batches=1)
        taught[name] = float(trainer.callback_metrics["weights/ofq/distillation"])
    assert taught[precision] == pytest.approx(taught["32-true"], rel=0.02)
    assert taught[precision] != taught["32-true"]


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
@pytest.mark.parametrize("attached", [False, True])
def test_weights_are_averaged_by_lightnings_callback(attached):
    model, ofq, seen = vit(sgd), OFQ(act_bits=4, qkr=True), []
    average = WeightAveraging(avg_fn=lambda averaged, current, count: averaged + (current - averaged) / (count + 1))
    if attached:
        ofq.attach(model, [X])

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.network.blocks[0].mlp.fc1.weight.detach().clone())

    fit(model, [average, ofq, Look()] if attached else [ofq, average, Look()], epochs=1)
    found = model.network.blocks[0].mlp.fc1.weight
    torch.testing.assert_close(found, torch.stack(seen).mean(0))
    assert not torch.equal(found, seen[-1])


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_quantized_networks_can_be_copied_and_pickled(copier):
    network = vit().network
    OFQ(act_bits=4, qkr=True).attach(network, [X])
    twin = copier(network)
    assert torch.equal(twin(X), network(X))
    assert not any(param is other for param in twin.parameters() for other in network.parameters())


def test_keys_of_layers_stay_and_packed_attentions_are_cut():
    model = vit()
    plain = set(model.state_dict())
    OFQ().attach(model)
    gone = {name.removeprefix("network.blocks.0.attention.") for name in plain - set(model.state_dict())}
    new = {name.removeprefix("network.") for name in set(model.state_dict()) - plain}
    assert gone == {"qkv.weight", "qkv.bias"}
    cut = {f"blocks.0.attention.{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")}
    assert new == cut | {"patch_embed.weight_quantizer.step", "head.weight_quantizer.step"}
