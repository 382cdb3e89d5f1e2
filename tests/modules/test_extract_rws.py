"""Signatures out of networks."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.rws import project_out
from lightning_weights.modules import RobustWeightSignature, ShallowSelector, extract_rws, patched
from tests.modules.signature_cases import SmallResNet, moved, small_vgg


def three(network):
    return network, moved(network, 1), moved(network, 2)


@pytest.mark.parametrize("make", [small_vgg, SmallResNet])
def test_every_tensor_is_projected_by_itself(make):
    pre, standard, robust = three(make())
    signature = extract_rws(pre, standard, robust, ShallowSelector(None))
    start = pre.state_dict()
    assert list(signature.shapes) == ShallowSelector(None).select(pre)
    for name, value in signature.dequantize().items():
        a, p = standard[name] - start[name], robust[name] - start[name]
        torch.testing.assert_close(value, project_out(p, a), rtol=1e-4, atol=1e-7)
        assert abs((value.double() * a.double()).sum()) <= 1e-5 * value.double().norm() * a.double().norm()
    assert signature.num_weights == sum(param.numel() for param in pre.parameters())


def test_directions_that_leave_nothing_or_everything():
    pre, standard, robust = three(small_vgg())
    assert all(not value.any() for value in extract_rws(pre, standard, standard).dequantize().values())
    start = pre.state_dict()
    untouched = extract_rws(pre, pre, robust).dequantize()
    for name, value in untouched.items():
        torch.testing.assert_close(value, robust[name] - start[name])
    nearer = {name: start[name] + 0.5 * (standard[name] - start[name]) for name in start}
    for name, value in extract_rws(pre, nearer, robust).dequantize().items():
        torch.testing.assert_close(value, extract_rws(pre, standard, robust).dequantize()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pretrained", [None, small_vgg()])
def test_the_plain_difference_makes_the_robust_network(pretrained):
    standard, robust = small_vgg(seed=1), small_vgg(seed=2)
    signature = extract_rws(pretrained, standard, robust, ShallowSelector(None), mode="difference")
    with patched(standard, signature):
        for name in signature.shapes:
            torch.testing.assert_close(standard.state_dict()[name], robust.state_dict()[name], rtol=0, atol=1e-7)


def test_networks_in_any_wrapping_and_type_with_any_classifier():
    pre, standard, robust = three(small_vgg())
    expected = extract_rws(pre, standard, robust)
    wrapped = nn.ModuleDict({"module": small_vgg(classes=7)})
    wrapped["module"].load_state_dict({k: v for k, v in robust.items() if k[0] != "7"}, strict=False)
    checkpoint = {"state_dict": {f"net.{name}": tensor for name, tensor in standard.items()}, "epoch": 1}
    found = extract_rws(nn.ModuleDict({"_orig_mod": pre}), checkpoint, wrapped)
    assert found.digest == expected.digest
    assert found.architecture == expected.architecture
    half = [
        {name: tensor.half() for name, tensor in tensors.items()} for tensors in (pre.state_dict(), standard, robust)
    ]
    for name, value in extract_rws(*half).dequantize().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.dequantize()[name], rtol=0.05, atol=2e-3)


def test_what_it_is_given_stays_as_it_is():
    pre, standard, robust = three(SmallResNet())
    before = copy.deepcopy(standard)
    signature = extract_rws(pre, standard, robust, ["conv1.weight", "bn1.bias"], 16, "frost", 2)
    assert all(torch.equal(standard[name], before[name]) for name in before)
    assert (list(signature.shapes), signature.levels) == (["conv1.weight", "bn1.bias"], 16)
    assert (signature.name, signature.mode) == ("frost-2", "projected")


def test_the_order_of_execution_needs_an_input():
    select = ShallowSelector(1, order="forward")
    pre, standard, robust = three(small_vgg())
    with pytest.raises(ValueError, match="example_input"):
        extract_rws(pre, standard, robust, select)
    module = small_vgg()
    module.load_state_dict(standard)
    found = extract_rws(pre, module, robust, select, example_input=torch.zeros(1, 1, 4, 4))
    assert found.digest == extract_rws(pre, standard, robust, ShallowSelector(1)).digest


def test_other_architectures():
    pre, standard, robust = three(small_vgg())
    with pytest.raises(
        ValueError, match=r"standard and robust differ in \d tensors: 0.weight is \(4, 1, 3, 3\) and \(5,"
    ):
        extract_rws(pre, standard, small_vgg(width=5))
    renamed = {f"features.{name}": tensor for name, tensor in robust.items()}
    with pytest.raises(ValueError, match=r"0\.weight is not in the other"):
        extract_rws(pre, standard, renamed)
    del robust["2.bias"]
    with pytest.raises(ValueError, match=r"standard and robust differ in 1 tensors: 2\.bias is not in the other"):
        extract_rws(pre, standard, robust)
    extra = {"10.weight": torch.ones(2, 2), **pre.state_dict()}
    with pytest.raises(
        ValueError, match=r"standard and pretrained differ in 1 tensors: 10\.weight is in the other only"
    ):
        extract_rws(extra, standard, standard)


def test_a_pretrained_network_that_is_missing_or_another():
    pre, standard, robust = three(small_vgg())
    with pytest.raises(ValueError, match="pretrained is None; what training added"):
        extract_rws(None, standard, robust)
    with pytest.warns(LightningWeightsWarning, match="standard is farther from pretrained"):
        extract_rws(pre, small_vgg(seed=5), robust)
    with pytest.warns(LightningWeightsWarning, match="robust is farther from pretrained"):
        extract_rws(pre, standard, small_vgg(seed=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_rws(pre, standard, robust)


def test_tensors_that_cannot_be_selected():
    pre, standard, robust = three(SmallResNet())
    for name, message in {
        "bn1.running_mean": "bn1.running_mean is .* no running statistics",
        "bn1.num_batches_tracked": "num_batches_tracked is torch.int64",
        "fc.weight": "select has fc.weight; there are conv1.weight",
        "conv7.weight": "select has conv7.weight",
    }.items():
        with pytest.raises(ValueError, match=message):
            extract_rws(pre, standard, robust, [name])
    whole = {**pre.state_dict(), "conv1.weight": pre.conv1.weight.int()}
    with pytest.raises(ValueError, match=r"conv1.weight is torch.int32 on cpu in pretrained"):
        extract_rws(whole, standard, robust)
    robust["conv1.weight"] = robust["conv1.weight"].clone()
    robust["conv1.weight"][0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"conv1\.weight has entries that are not finite"):
        extract_rws(pre, standard, robust)
    with pytest.raises(ValueError, match="mode is 'sum'"):
        extract_rws(pre, standard, robust, mode="sum")
    with pytest.raises(ValueError, match="levels is 3"):
        extract_rws(pre, standard, moved(pre, 4), levels=3)
    assert isinstance(extract_rws(pre, standard, moved(pre, 4), levels=4), RobustWeightSignature)
