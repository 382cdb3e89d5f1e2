"""SynapseLinear: read-outs, programming, variation, copies, checkpoints and what is refused."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import DeviceModel, SynapseLinear, SynapseSettings
from lightning_weights.modules.synapse_array import devices_of
from lightning_weights.optimizers import PulseSGD

WAYS = [
    {"mode": "unidirectional"},
    {"mode": "unidirectional", "branch": "ltd"},
    {"mode": "bidirectional"},
    {"mode": "single"},
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))
VARIED = {"kind": "soft", "d2d_nu": 0.3, "d2d_states": 0.3, "d2d_range": 0.2, "c2c": 0.1, "stuck": 0.1}


def trained(layer, steps=3):
    optimizer = PulseSGD(layer.parameters(), lr=0.3)
    for step in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    return layer


@every_way
def test_the_layer_computes_with_what_its_devices_hold(way):
    layer = trained(SynapseLinear(6, 4, w_scale=2.0, **way))
    for name, array in layer.arrays().items():
        low = 0.5 if array.minus is None else array.minus
        assert torch.equal(getattr(layer, name), 2.0 * (array.plus - low))
        assert array.counts[0] > 0
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    plain = layer.plain()
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=0)


@every_way
def test_a_trained_layer_keeps_what_it_computes(way):
    plain = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    before = plain(x)
    layer = SynapseLinear.from_layer(plain, SynapseSettings(w_scale=2.0, **way))
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-6)
    assert layer.weight is plain.weight


def test_weights_beyond_the_range_are_clipped_with_a_warning():
    plain = nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(-1, 0.8, 10)[None])
    with pytest.warns(LightningWeightsWarning, match=r"30.00% of the weight .* w_scale=0.75"):
        layer = SynapseLinear.from_layer(plain, SynapseSettings(w_scale=0.75))
    assert layer.weight.abs().max() <= 0.75
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SynapseLinear(10, 1)


def test_fresh_weights_are_within_half_of_the_range():
    layer = SynapseLinear(64, 512, w_scale=0.4)
    assert layer.weight.abs().max() <= 0.2 + 1e-6
    assert layer.weight.std() > 0.05


def test_devices_are_the_same_wherever_new_tensors_are_made():
    settings, plain = SynapseSettings(DeviceModel(**VARIED), seed=3), nn.Linear(6, 4)
    wanted = SynapseLinear.from_layer(copy.deepcopy(plain), settings).state_dict()
    with torch.device("meta"):  # stands for a GPU, which configure_model makes the default
        found = SynapseLinear.from_layer(copy.deepcopy(plain), settings).state_dict()
    tensors = {name: value for name, value in wanted.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 10
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_no_variation_no_maps_and_the_same_seed_the_same_devices():
    assert set(dict(SynapseLinear(6, 4).named_buffers())) == {
        f"{name}_devices.{kind}" for name in ("weight", "bias") for kind in ("plus", "minus", "counts")
    }
    one, same, other = (SynapseLinear(6, 4, device=VARIED, seed=seed) for seed in (1, 1, 2))
    maps = [layer.weight_devices.maps() for layer in (one, same, other)]
    assert all(torch.equal(a, b) for kind in range(3) for a, b in zip(maps[0][kind], maps[1][kind], strict=True))
    assert not torch.equal(maps[0].rates[0], maps[2].rates[0])
    assert not torch.equal(maps[0].rates[0], maps[0].rates[1])


@pytest.mark.parametrize("branch", ["ltp", "ltd"])
def test_discrete_devices_stay_on_their_curve(branch):
    device = DeviceModel(kind="soft", n_states=16, nu_ltp=2.0, discrete=True)
    layer = SynapseLinear(6, 4, device=device, w_scale=2.0, branch=branch)
    up = branch == "ltp"
    reached = device.pulse(torch.full((17,), 0.0 if up else 1.0), torch.arange(17.0), up)
    optimizer = PulseSGD(layer.parameters(), lr=0.3, refresh="pulsed", refresh_threshold=0.7)
    for step in range(6):
        for x in layer.weight_devices.states:
            assert (x[..., None] - reached).abs().min(-1).values.max() < 1e-5, step
        optimizer.zero_grad()
        layer(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
    assert layer.weight_devices.counts[2] > 0


def test_spreads_are_those_asked_for():
    device = {"kind": "soft", "d2d_nu": 0.3, "d2d_states": 0.2, "d2d_range": 0.1, "stuck": 0.05}
    maps = SynapseLinear(200, 200, device=device).weight_devices.maps()
    for number in range(2):
        alive = maps.rates[number] > 0
        assert maps.nus[number].log().std().item() == pytest.approx(0.3, rel=0.02)
        assert maps.rates[number][alive].log().std().item() == pytest.approx(0.2, rel=0.02)
        assert maps.ranges[number].std().item() == pytest.approx(0.1, rel=0.02)
        assert alive.float().mean().item() == pytest.approx(0.95, abs=0.005)
    wild = SynapseLinear(50, 50, device={"kind": "linear", "d2d_range": 3.0}).weight_devices.maps().ranges[0]
    assert (wild.min().item(), wild.max().item()) == (0.5, 1.5)


@pytest.mark.parametrize("kind", ["soft", "exp"])
def test_states_are_finite_however_much_devices_differ(kind):
    layer = SynapseLinear(20, 20, device={"kind": kind, "nu_ltp": 5.0, "d2d_nu": 8.0, "c2c": 1.0}, w_scale=2.0)
    optimizer = PulseSGD(layer.parameters(), lr=0.5, refresh="pulsed")
    for _ in range(10):
        optimizer.zero_grad()
        layer(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
    assert all(bool(((x >= 0) & (x <= 1)).all()) for x in layer.weight_devices.states)
    assert all((5.0 * nu).max() <= 50 for nu in layer.weight_devices.maps().nus)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_weights_that_no_device_can_hold_are_refused():
    with pytest.raises(ValueError, match=r"weight that devices are to hold is of the shape \(0, 4\)"):
        SynapseLinear(4, 0)
    layer = SynapseLinear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match="bias that devices are to hold is not finite everywhere"):
        layer.program(weight=torch.zeros(2, 2), bias=torch.tensor([0.0, torch.nan]))
    assert torch.equal(layer.weight, before)


def test_programming_new_weights_leaves_stuck_devices_alone():
    layer = SynapseLinear(30, 30, device={"kind": "soft", "stuck": 0.2}, w_scale=2.0)
    array = layer.weight_devices
    stuck, before = array.plus_rate == 0, array.plus.clone()
    wanted = 0.3 * torch.randn(30, 30)
    layer.program(weight=wanted)
    assert torch.equal(array.plus[stuck], before[stuck])
    alive = ~stuck & (array.minus_rate != 0)
    torch.testing.assert_close(layer.weight[alive], wanted[alive], rtol=1e-5, atol=1e-6)
    assert torch.equal(layer.weight, array.read())


def test_nothing_but_pulses_may_change_the_weights():
    layer = SynapseLinear(6, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"not gradient-trainable.*Use PulseSGD"):
        layer(torch.ones(2, 6))
    layer.program()
    layer(torch.ones(2, 6))
    assert torch.equal(layer.weight, layer.weight_devices.read())


def test_averaged_weights_are_for_evaluation_until_they_are_programmed():
    layer = trained(SynapseLinear(6, 4))
    average = torch.optim.swa_utils.AveragedModel(layer)
    average.update_parameters(trained(layer))
    average.update_parameters(trained(layer, 6))
    twin, x = average.module.eval(), torch.ones(2, 6)
    assert not torch.equal(twin.weight, twin.weight_devices.read())
    before = twin(x)
    with pytest.raises(RuntimeError, match="not what their devices read out to"):
        twin.train()(x)
    twin.program()
    torch.testing.assert_close(twin(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_have_devices_of_their_own(copier):
    layer = trained(SynapseLinear(6, 4, device=VARIED))
    twin = copier(layer)
    assert devices_of(twin.weight) is twin.weight_devices
    before = layer.weight.clone()
    trained(twin)
    assert torch.equal(layer.weight, before)
    assert not torch.equal(twin.weight, before)
    assert torch.equal(trained(layer).weight, twin.weight)


@every_way
def test_checkpoints_hold_states_maps_and_counts(way):
    device = {**VARIED, "d2d_range": 0.0} if way["mode"] == "single" else VARIED
    layer = trained(SynapseLinear(6, 4, device=device, seed=1, **way))
    other = SynapseLinear(6, 4, device=device, seed=2, **way)
    other.load_state_dict(layer.state_dict())
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name]), name
    assert torch.equal(trained(other).weight, trained(layer).weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": {"kind": "exp", "nu_ltp": 5.0}}, "device.kind is 'exp', was 'soft'; device.nu_ltp is 5.0, was 2.0"),
        ({"mode": "bidirectional"}, "mode is 'bidirectional', was 'unidirectional'"),
        ({"branch": "ltd"}, "branch is 'ltd', was 'ltp'"),
        ({"w_scale": 3.0}, "w_scale is 3.0, was 1.5"),
    ],
)
def test_other_devices_are_told_and_nothing_is_loaded(changes, message):
    saved = trained(SynapseLinear(6, 4, w_scale=1.5)).state_dict()
    other = SynapseLinear(6, 4, **{"w_scale": 1.5, **changes})
    before = other.weight.clone()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved)
    assert torch.equal(other.weight, before)


def test_signals_of_few_bits():
    exact, coarse = (SynapseLinear(6, 4, w_scale=2.0, input_bits=bits, error_bits=bits) for bits in (None, 3))
    coarse.load_state_dict(exact.state_dict())
    x = torch.randn(5, 6)
    levels = x.abs().max() / 3
    torch.testing.assert_close(coarse(x), exact((x / levels).round() * levels))
    coarse(x).square().sum().backward()
    exact(x).square().sum().backward()
    assert not torch.allclose(coarse.weight.grad, exact.weight.grad)


def test_compiles_without_graph_breaks():
    layer = SynapseLinear(6, 4, input_bits=4)
    x = torch.randn(3, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_autocast_reads_out_in_16_bits_and_16_bit_layers_are_refused():
    layer = SynapseLinear(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 6)).dtype == torch.bfloat16
    assert layer.weight_devices.plus.dtype == torch.float32
    with pytest.raises(ValueError, match=r"torch.bfloat16; allowed are float32 and float64"):
        SynapseLinear.from_layer(nn.Linear(6, 4, dtype=torch.bfloat16), SynapseSettings())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "triple"}, "mode is 'triple'"),
        ({"w_scale": 0.0}, "w_scale is 0.0"),
        ({"branch": "up"}, "branch is 'up'"),
        ({"mode": "single", "branch": "ltd"}, "branch is 'ltd', but mode='single'"),
        ({"split": True}, "split is True, but mode='unidirectional'"),
        ({"input_bits": 1}, "input_bits is 1"),
        ({"error_bits": 2.5}, "error_bits is 2.5"),
        ({"seed": -1}, "seed is -1"),
        ({"device": DeviceModel}, "device is"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SynapseLinear(6, 4, **arguments)
