"""Signatures on a network, with scales that change."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.kernels import use_kernels
from lightning_weights.modules import RobustWeightSignature, RWSController, patched, rws_controller
from lightning_weights.modules._signature_sums import write_sums
from tests.modules.signature_cases import SmallResNet, bits, same_bits, signature_of, small_vgg

LEVELS = [None, 16, "mixed"]


def three_signatures(network, levels):
    rounded = [None, 16, 8] if levels == "mixed" else [levels] * 3
    kinds = zip(("fog", "frost", "snow"), rounded, (2, 3, 1), strict=True)
    return [signature_of(network, seed, kind, name, units) for seed, (name, kind, units) in enumerate(kinds)]


def controlled(network, signatures, scales=(1.0, 1.0, 1.0), **options):
    controller = RWSController(network, **options)
    for signature, scale in zip(signatures, scales, strict=False):
        controller.add(signature, scale)
    controller.apply()
    return controller


@pytest.mark.parametrize("levels", LEVELS)
def test_weights_are_clean_ones_plus_signatures(levels):
    network = small_vgg()
    before, signatures = bits(network), three_signatures(network, levels)
    controller = controlled(network, signatures, (0.5, -1.0, 2.0))
    for name, tensor in network.state_dict().items():
        parts = zip(signatures, (0.5, -1.0, 2.0), strict=True)
        added = sum(scale * s.dequantize()[name] for s, scale in parts if name in s.shapes)
        torch.testing.assert_close(tensor, before[name] + added, rtol=1e-6, atol=1e-6)
        if name not in signatures[1].shapes:
            assert torch.equal(tensor, before[name])
    assert controller.scales == {"fog": 0.5, "frost": -1.0, "snow": 2.0}
    controller.restore()
    assert same_bits(network, before)


@pytest.mark.parametrize("levels", LEVELS)
def test_order_and_former_scales_leave_no_trace(levels):
    fresh = small_vgg()
    signatures = three_signatures(fresh, levels)
    controlled(fresh, signatures, (0.25, 1.5, -0.5))
    expected = bits(fresh)
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        network = small_vgg()
        controller = controlled(network, [signatures[i] for i in order], (1.0, 7.0, 0.0))
        for name, scale in zip(("fog", "frost", "snow"), (0.25, 1.5, -0.5), strict=True):
            controller.set_scale(name, 3.0)
            controller.set_scale(name, scale)
        assert same_bits(network, expected)
    controller.remove("frost")
    assert not same_bits(network, expected)
    controller.add(signatures[1], 1.5)
    assert same_bits(network, expected)


@pytest.mark.parametrize("levels", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_scale_of_zero_changes_no_bit(dtype, levels):
    network = small_vgg().to(dtype)
    with torch.no_grad():
        network[0].bias.fill_(-0.0)
    before = bits(network)
    controlled(network, three_signatures(small_vgg(), levels), (0.0, 0.0, 0.0))
    assert same_bits(network, before)
    assert torch.signbit(network[0].bias).all()


def test_eager_operators_give_the_same_bits():
    auto, eager = small_vgg(), small_vgg()
    signatures = three_signatures(auto, 16)
    controlled(auto, signatures)
    with use_kernels("eager"):
        controlled(eager, signatures)
    assert same_bits(eager, bits(auto))


def test_own_scales_and_weightings():
    network = small_vgg()
    signatures = three_signatures(network, None)
    halves = small_vgg()
    controlled(halves, [0.5 * signature for signature in signatures], (2.0, 2.0, 2.0))
    controlled(network, signatures)
    assert same_bits(network, bits(halves))
    published, expected = small_vgg(), small_vgg()
    controlled(published, signatures[:2], (1.0, 0.5), weighting="published")
    controlled(expected, signatures[:2], (0.25, 0.0625))
    assert same_bits(published, bits(expected))


def test_networks_inside_of_others_and_in_other_layouts():
    network = SmallResNet().to(memory_format=torch.channels_last)
    signature = signature_of(SmallResNet(classes=8), levels=16)
    module = nn.ModuleDict({"net": nn.ModuleDict({"_orig_mod": network}), "loss": nn.Linear(2, 2)})
    plain = SmallResNet()
    with patched(module, signature), patched(plain, signature):
        assert same_bits(network, plain.state_dict())
        assert network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(module.state_dict()) == list(nn.ModuleDict(dict(module.items())).state_dict())


def test_changing_what_is_not_there():
    network = small_vgg()
    fog, *_ = three_signatures(network, None)
    controller = RWSController(network)
    with pytest.raises(ValueError, match="'fog' was never added; there are none"):
        controller.remove("fog")
    controller.add(fog)
    with pytest.raises(ValueError, match="'snow' was never added; there are 'fog'"):
        controller.set_scale("snow", 1.0)
    with pytest.raises(ValueError, match="no signature is applied"):
        controller.restore()
    with pytest.raises(ValueError, match="scale is nan"):
        controller.set_scale("fog", float("nan"))
    controller.apply()
    with pytest.raises(ValueError, match="applied already"):
        controller.apply()
    with pytest.raises(ValueError, match="weighting is 'mean'"):
        RWSController(network, weighting="mean")


@pytest.mark.parametrize("levels", [None, 16])
def test_the_same_signature_twice(levels):
    network = small_vgg()
    fog, frost, _ = three_signatures(network, levels)
    controller = controlled(network, [fog])
    patched_once = bits(network)
    with pytest.raises(ValueError, match="there is a signature 'fog' already"):
        controller.add(frost, name="fog")
    with pytest.raises(ValueError, match="'again' is there already under another name"):
        controller.add(2.0 * fog, name="again")
    other = RWSController(network)
    other.add(fog)
    with pytest.raises(ValueError, match="fog patched this network already"):
        other.apply()
    other = controlled(network, [frost])
    with pytest.raises(ValueError, match="fog patched this network already"):
        other.add(fog)
    assert other.scales == {"frost": 1.0}
    assert other.applied
    other.restore()
    assert same_bits(network, patched_once)


def test_other_architectures_are_refused():
    network = small_vgg()
    fog = signature_of(network)
    deeper = nn.Sequential(*network[:5], nn.Conv2d(4, 4, 3), *network[5:])
    for other, message in {
        small_vgg(width=5): r"0\.weight is \(5, 1, 3, 3\), not \(4, 1, 3, 3\)",
        SmallResNet(): "fog doesn't fit this network: .*there is no weight",
        deeper: "fog comes from another architecture",
        nn.ModuleDict({"a": small_vgg(), "b": small_vgg()}): "fog fits a and b; give the part that is meant",
    }.items():
        before = bits(other)
        with pytest.raises(ValueError, match=message), patched(other, fog):
            pass
        assert same_bits(other, before)
    with patched(small_vgg(classes=100), fog):
        pass


def test_weights_that_cannot_be_patched():
    values = {"0.weight": torch.ones(2, 2)}
    signature = RobustWeightSignature.from_tensors(values)

    def network(weight):
        part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        part[0].weight = weight
        return part

    whole = torch.ones(2, 2)
    tied = network(nn.Parameter(whole))
    tied[1].weight = tied[0].weight
    bad = {
        "quantized weights can't be patched": network(nn.Parameter(whole.to(torch.uint8), requires_grad=False)),
        "has no values yet": network(nn.Parameter(whole.to("meta"))),
        r"0\.weight and 1\.weight are one tensor": tied,
        "Packed: quantized weights": network(nn.Parameter(whole.as_subclass(Packed), requires_grad=False)),
    }
    for message, module in bad.items():
        with pytest.raises(ValueError, match=message):
            RWSController(module).add(signature)


class Packed(torch.Tensor):
    """Stands for the tensors of quantization libraries, which claim to be floats."""


def test_sharded_weights_are_refused(monkeypatch):
    network = small_vgg()
    signature = signature_of(network)
    wrapped = nn.ModuleDict({"_fsdp_wrapped_module": network})
    with pytest.raises(ShardedParameterError, match="sharded by FSDP; use"):
        RWSController(wrapped).add(signature)
    assert hasattr(DTensor, "placements")
    network[0].weight.placements = ()
    with pytest.raises(ShardedParameterError, match=r"0\.weight is sharded \(a DTensor, FSDP2\)"):
        RWSController(network).add(signature)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_signatures_that_are_lost_in_rounding(dtype, recwarn):
    network = small_vgg().to(dtype)
    small = 1e-6 * signature_of(small_vgg())
    with pytest.warns(LightningWeightsWarning, match=rf"fog is mostly lost in the rounding of 0\.weight \({dtype}\)"):
        RWSController(network).add(small)
    recwarn.clear()
    RWSController(network).add(1e6 * small)
    RWSController(small_vgg()).add(small)
    RWSController(network).add(small, scale=0.0)
    assert not recwarn


def test_statistics_are_reestimated_and_given_back():
    network = SmallResNet()
    signature = signature_of(network, levels=16)
    batches = [torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    network(batches[0])
    network.eval()
    before = bits(network)
    controller = RWSController(network)
    controller.add(signature)
    with pytest.raises(ValueError, match="no signature is applied"):
        controller.reestimate(batches)
    controller.apply()
    assert controller.reestimate([(x, None) for x in batches], max_batches=2) == 2
    with torch.no_grad():
        means = [network.conv1(x).mean((0, 2, 3)) for x in batches[:2]]
    torch.testing.assert_close(network.bn1.running_mean, (means[0] + means[1]) / 2, rtol=1e-5, atol=1e-6)
    after = bits(network)
    controller.restore()
    assert same_bits(network, before)
    controller.apply()
    assert same_bits(network, after)
    controller.set_scale("fog", 0.5)
    assert torch.equal(network.bn1.running_mean, before["bn1.running_mean"])
    controller.reestimate(batches[:1])
    with torch.no_grad():
        mixed = (before["bn1.running_mean"] + network.conv1(batches[0]).mean((0, 2, 3))) / 2
    torch.testing.assert_close(network.bn1.running_mean, mixed, rtol=1e-5, atol=1e-6)
    controller.set_scale("fog", 0.5)
    assert torch.equal(network.bn1.running_var, before["bn1.running_var"])
    controller.restore()
    assert same_bits(network, before)


def test_statistics_of_several_processes_are_averaged():
    network = SmallResNet().eval()
    controller = controlled(network, [signature_of(network)])
    controller.reestimate([torch.ones(2, 1, 4, 4)], reduce=lambda tensor: tensor + 1.0)
    alone = SmallResNet().eval()
    controlled(alone, [signature_of(alone)]).reestimate([torch.ones(2, 1, 4, 4)])
    torch.testing.assert_close(network.bn1.running_mean, alone.bn1.running_mean + 1.0)
    assert torch.equal(network.bn1.num_batches_tracked, alone.bn1.num_batches_tracked)


def test_how_much_is_added():
    network = small_vgg()
    fog = signature_of(network)
    clean = torch.cat([network.state_dict()[name].flatten() for name in fog.shapes])
    added = torch.cat([value.flatten() for value in fog.dequantize().values()])
    controller = controlled(network, [fog], [3.0])
    assert controller.relative_change() == pytest.approx(float(3.0 * added.norm() / clean.norm()), rel=1e-5)
    controller.restore()
    assert controller.relative_change() == 0.0


def test_controllers_that_were_forgotten_are_in_nobodys_way():
    network = small_vgg()
    controlled(network, [signature_of(network)])
    with patched(network, signature_of(network)):
        pass


@pytest.mark.parametrize("levels", LEVELS)
def test_an_interruption_while_weights_are_written(monkeypatch, levels):
    network = small_vgg()
    before = bits(network)
    controller = RWSController(network)
    for signature in three_signatures(network, levels):
        controller.add(signature)

    def interrupted(*arguments):
        write_sums(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(rws_controller, "write_sums", interrupted)
    with pytest.raises(KeyboardInterrupt):
        controller.apply()
    assert same_bits(network, before)
    assert not controller.applied
    monkeypatch.undo()
    with controller:
        assert not same_bits(network, before)


def test_autocast_does_not_go_on_with_weights_of_before():
    network, x = small_vgg(), torch.rand(2, 1, 4, 4)
    signature = 5.0 * signature_of(network)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            clean = network(x)
        with patched(network, signature), torch.autocast("cpu", torch.bfloat16):
            expected = network(x)
        assert not torch.equal(clean, expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network(x), clean)
            with patched(network, signature):
                assert torch.equal(network(x), expected)
            assert torch.equal(network(x), clean)


def test_modules_that_change_their_state_dict():
    network = small_vgg()
    other = small_vgg()
    network.register_state_dict_post_hook(lambda part, state, *_: state.update(other.state_dict()))
    network[0].register_state_dict_pre_hook(lambda *_: pytest.fail("weights are taken from the network"))
    network.register_buffer("scratch", torch.zeros(1), persistent=False)
    before = network[0].weight.clone()
    with patched(network, signature_of(small_vgg())):
        assert not torch.equal(network[0].weight, before)


def test_changes_that_are_lost_are_told(recwarn):
    network = small_vgg()
    fog, frost = signature_of(network, levels=16), signature_of(network, 2, corruption="frost")
    before = bits(network)
    controller = controlled(network, [fog])
    network.eval()  # in which the training is not noticed
    optimizer = torch.optim.SGD(network[0].parameters(), lr=0.1)
    network(torch.rand(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    with pytest.warns(LightningWeightsWarning, match="2 patched tensors were changed"):
        controller.restore()
    assert same_bits(network, before)
    recwarn.clear()
    with patched(network, fog) as outer:
        with patched(network, frost, 0.5) as inner:
            inner.set_scale("frost", 2.0)
        outer.set_scale("fog", 0.1)
    assert not recwarn
    controller.apply()
    with torch.no_grad():
        network[0].bias.zero_()
    with patched(network, frost):
        pass
    with pytest.warns(LightningWeightsWarning, match="1 patched tensors were changed"):
        controller.restore()
    assert same_bits(network, before)


def test_own_scales_count_for_statistics():
    networks = [SmallResNet().eval(), SmallResNet().eval()]
    signature, batch = signature_of(networks[0]), torch.rand(4, 1, 4, 4)
    for network, (factor, scale) in zip(networks, ((0.5, 1.0), (1.0, 0.5)), strict=True):
        controlled(network, [factor * signature], [scale]).reestimate([batch])
    assert same_bits(networks[0], bits(networks[1]))
