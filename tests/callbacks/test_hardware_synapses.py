"""HardwareSynapses: which layers get devices, what is logged, saved and refused."""

import warnings
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import ExactResume, HardwareSynapses
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.modules import Classifier, DeviceModel, SynapseConv2d, SynapseLinear
from lightning_weights.optimizers import PulseSGD

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|LeafSpec|logging interval|GPU|checkpoint).*")
DEVICE = {"kind": "soft", "n_states": 32, "d2d_states": 0.2}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def batches():
    x = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(24) % 3), batch_size=6)


def fit(callback, optimizer=PulseSGD, epochs=2, net=None, ckpt=None, extra=(), **options):
    module = Classifier(network() if net is None else net, 3, optimizer=partial(optimizer, **{"lr": 0.2, **options}))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[callback, *extra],
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, batches(), ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return module, trainer


class Save(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_layers_get_devices_and_learn():
    module, trainer = fit(HardwareSynapses(DEVICE))
    conv, _, norm, _, linear = module.network
    assert (type(conv), type(norm), type(linear)) == (SynapseConv2d, nn.BatchNorm2d, SynapseLinear)
    assert not torch.equal(norm.weight, torch.ones(2))
    assert not torch.equal(linear.weight_devices.plus_rate, conv.weight_devices.plus_rate.flatten()[:8].expand(3, 8))
    counts = [array.counts for layer in (conv, linear) for array in layer.arrays().values()]
    total = sum(counts)
    weights = 2 * 9 + 2 + 3 * 8 + 3
    logged = {name.rpartition("/")[2]: float(v) for name, v in trainer.callback_metrics.items() if "hw_syn" in name}
    assert logged["energy"] == int(total[0]) > 0
    assert logged["pulses"] == pytest.approx(int(total[0]) / weights)
    assert logged["refreshes"] == pytest.approx(int(total[2]) / weights)
    assert 0.0 <= logged["saturation"] < 1.0


def test_saturation_is_the_share_of_full_pairs():
    layer = SynapseLinear(2, 2, bias=False, w_scale=1.0)
    layer.program(weight=torch.tensor([[0.85, 0.1], [-0.95, 0.0]]))
    assert layer.weight_devices.saturated(0.9) == 0.5
    both = SynapseLinear(2, 2, bias=False, w_scale=1.0, mode="single")
    both.program(weight=torch.tensor([[0.45, -0.45], [0.1, 0.0]]))
    assert both.weight_devices.saturated(0.9) == 0.5


def test_only_the_layers_named():
    net = network()
    HardwareSynapses(modules=["*"], exclude=["0"]).attach(net)
    assert (type(net[0]), type(net[4])) == (nn.Conv2d, SynapseLinear)
    HardwareSynapses(modules=["*"], exclude=["0"]).attach(net)  # once more changes nothing
    assert type(net[4]) is SynapseLinear
    with pytest.raises(ValueError, match=r"4 has other devices: mode is 'single', was 'unidirectional'"):
        HardwareSynapses(mode="single", exclude=["0"]).attach(net)
    with pytest.raises(ValueError, match=r"other devices: w_scale is 3.0, was None; input_bits is 4, was None"):
        HardwareSynapses(w_scale=3.0, input_bits=4, exclude=["0"]).attach(net)


def test_the_network_computes_what_it_did():
    net, x = network().eval(), torch.randn(4, 1, 4, 4)
    before = net(x)
    HardwareSynapses(DeviceModel(n_states=16)).attach(net)
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    assert not net[0].training


@pytest.mark.parametrize("mode", ["unidirectional", "bidirectional", "single"])
def test_resuming_inside_an_epoch_changes_no_bit(mode, tmp_path):
    build = partial(HardwareSynapses, {**DEVICE, "c2c": 0.2}, mode=mode)
    straight, first = fit(build(), extra=[ExactResume(), Save(tmp_path / "ckpt", 3)])
    resumed, second = fit(build(seed=5), ckpt=tmp_path / "ckpt", extra=[ExactResume()])
    for name, value in straight.state_dict().items():
        other = resumed.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert first.callbacks[0].state_dict() == second.callbacks[0].state_dict()


def test_a_fit_can_end_with_plain_layers():
    module, trainer = fit(HardwareSynapses(DEVICE, read_out_on_end=True))
    assert (type(module.network[0]), type(module.network[4])) == (nn.Conv2d, nn.Linear)
    assert "network.4.weight" in module.state_dict()
    assert not any("devices" in name for name in module.state_dict())
    with pytest.raises(ValueError, match="no devices to read out"):
        trainer.callbacks[0].read_out(module)


def test_a_checkpoint_brings_its_devices_to_a_test(tmp_path):
    trained, _ = fit(HardwareSynapses(DEVICE), extra=[Save(tmp_path / "ckpt", 8)])
    module = Classifier(network(), 3)
    tester = lightning.Trainer(
        callbacks=[HardwareSynapses(DEVICE)], logger=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", enable_checkpointing=False,
    )  # fmt: skip
    tester.test(module, batches(), ckpt_path=tmp_path / "ckpt", weights_only=True, verbose=False)
    assert torch.equal(module.network[4].weight_devices.plus, trained.network[4].weight_devices.plus)
    plain = Classifier(network(), 3)
    tester.test(plain, batches(), verbose=False)
    assert type(plain.network[4]) is nn.Linear


def test_checkpoints_of_plain_runs_are_refused(tmp_path):
    module = Classifier(network(), 3, optimizer=partial(PulseSGD, lr=0.1))
    plain = lightning.Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
                              accelerator="cpu", enable_checkpointing=False)  # fmt: skip
    plain.fit(module, batches())
    plain.save_checkpoint(tmp_path / "ckpt")
    with pytest.raises(ValueError, match="saved without HardwareSynapses"):
        fit(HardwareSynapses(DEVICE), ckpt=tmp_path / "ckpt")


def test_only_pulses_may_train_devices():
    with pytest.raises(ValueError, match=r"optimizer of synapses is SGD.*not gradient-trainable; use .*PulseSGD"):
        fit(HardwareSynapses(DEVICE), optimizer=torch.optim.SGD)


def test_an_optimizer_without_the_weights_is_told():
    stranger = nn.Linear(1, 1)

    class Other(PulseSGD):
        def __init__(self, params, lr):
            super().__init__(stranger.parameters(), lr)

    with pytest.raises(ValueError, match="parameters into the network that no optimizer has"):
        fit(HardwareSynapses(DEVICE), optimizer=Other)


def test_parameters_that_something_has_replaced_are_told():
    class Replace(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.network[4].weight = nn.Parameter(pl_module.network[4].weight.detach().clone())

    net = network()
    HardwareSynapses(DEVICE).attach(net)
    with pytest.raises(ShardedParameterError, match=r"network.4.weight is no longer .* use DDP"):
        fit(HardwareSynapses(DEVICE), net=net, extra=[Replace()])


def test_rates_that_are_too_high_or_too_low_are_told():
    with pytest.warns(LightningWeightsWarning, match=r"% of the changes were cut off at max_pulses: lower the rate"):
        fit(HardwareSynapses(DEVICE), lr=50.0, epochs=1)
    with pytest.warns(LightningWeightsWarning, match=r"0 of 47 weights got a pulse: raise the rate"):
        fit(HardwareSynapses(DEVICE), lr=1e-6, rounding="nearest", epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        fit(HardwareSynapses(DEVICE), lr=0.05, epochs=1)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1)), {"modules": ["1"]}, r"modules names 1 \(Conv1d\)"),
        (nn.Sequential(nn.Linear(2, 2)), {"modules": ["9"]}, "modules has '9'"),
        (nn.Sequential(nn.Linear(2, 2)), {"exclude": ["0"]}, "leaves no nn.Linear or nn.Conv2d whose weight"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), {}, "0.out_proj belongs to a MultiheadAttention"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), {}, "something else computes"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1))), {}, "something else computes"),
    ],
)
def test_layers_that_cannot_have_devices(net, options, message):
    with pytest.raises(ValueError, match=message):
        HardwareSynapses(**options).attach(net)
    assert not any(isinstance(part, SynapseLinear) for part in net.modules())


@pytest.mark.parametrize("spoil", ["nan", "bfloat16"])
def test_nothing_is_programmed_if_one_layer_cannot_be(spoil):
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(100)  # devices would clip it
        net[4].weight[0, 0] = torch.nan if spoil == "nan" else 0.0
    if spoil == "bfloat16":
        net[4].bfloat16()
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match="4.weight that devices are to hold is not" if spoil == "nan" else "bfloat16"):
        HardwareSynapses().attach(net)
    assert type(net[0]) is nn.Conv2d
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "triple"}, "mode is 'triple'"),
        ({"device": {"kind": "cubic"}}, "kind is 'cubic'"),
        ({"device": 3}, "device is 3"),
        ({"modules": "net"}, "modules is 'net'"),
        ({"exclude": 1}, "exclude is 1"),
        ({"input_bits": 0}, "input_bits is 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HardwareSynapses(**arguments)
