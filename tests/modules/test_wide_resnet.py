"""Wide residual networks against functional torch, published sizes, and what can be traced."""

import re

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from lightning_weights.modules import WideResNet

ORIGINAL = {"pre_activation": True, "pool": True, "linear_size": None}


def normalised(x):
    return functional.batch_norm(x, None, None, training=True)


def convolved(x, convolution):
    return functional.conv2d(x, convolution.weight, convolution.bias, convolution.stride, convolution.padding)


def after(x, block):
    """Return what a block with normalisation after its convolutions makes of x."""
    inner = normalised(convolved(x, block.convolutions.conv1)).relu()
    inner = normalised(convolved(inner, block.convolutions.conv2))
    around = normalised(convolved(x, block.shortcut[0])) if len(block.shortcut) else x
    return (inner + around).relu()


def before(x, block):
    """Return what a block with normalisation before its convolutions makes of x."""
    entered = normalised(x).relu()
    inner = normalised(convolved(entered, block.convolutions.conv1)).relu()
    around = convolved(entered, block.shortcut[0]) if len(block.shortcut) else x
    return convolved(inner, block.convolutions.conv2) + around


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("linear_size", [None, 6])
def test_forward_is_the_composition(pre_activation, pool, linear_size):
    model = WideResNet(2, 7, 3, 2, 1, pre_activation, pool, linear_size).double()
    x = torch.randn(5, 2, 7, 7, dtype=torch.float64)
    expected = convolved(x, model.stem[0])
    expected = expected if pre_activation else normalised(expected).relu()
    for group in model.groups:
        assert len(group) == 2
        for block in group:
            expected = (before if pre_activation else after)(expected, block)
    expected = normalised(expected).relu() if pre_activation else expected
    expected = expected.mean((2, 3)) if pool else expected.flatten(1)
    if linear_size is not None:
        (layer,) = [module for module in model.features if isinstance(module, nn.Linear)]
        expected = normalised(expected @ layer.weight.T + layer.bias).relu()
    torch.testing.assert_close(model(x), expected @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize(("blocks", "widen", "count"), [(4, 10, 36_479_194), (6, 4, 8_949_210)])
def test_sizes_of_the_original_networks(blocks, widen, count):
    """WRN-28-10 has 36.5 and WRN-40-4 8.9 million parameters: published numbers, for 10 classes."""
    with torch.device("meta"):
        model = WideResNet(blocks=blocks, widen=widen, **ORIGINAL)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_default_is_the_network_of_certified_training():
    with torch.device("meta"):
        model = WideResNet()
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert shapes == [
        (16, 3, 3, 3),
        *((128, 16, 3, 3), (128, 128, 3, 3), (128, 16, 1, 1)),
        *((256, 128, 3, 3), (256, 256, 3, 3), (256, 128, 1, 1)),
        *((512, 256, 3, 3), (512, 512, 3, 3), (512, 256, 1, 1)),
        (512, 512 * 8 * 8),
        (10, 512),
    ]
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d))]
    assert len(norms) == len(shapes) - 1


@pytest.mark.parametrize("arguments", [{}, {"pool": True}, ORIGINAL])
def test_the_graph_consists_of_plain_layers_and_additions(arguments):
    model = WideResNet(1, 8, widen=1, blocks=2, **arguments)
    graph = fx.symbolic_trace(model)
    layers = {type(graph.get_submodule(node.target)) for node in graph.graph.nodes if node.op == "call_module"}
    plain = {nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.ReLU, nn.Flatten, nn.Linear}
    assert layers - {nn.AvgPool2d} <= plain
    functions = [node.target.__name__ for node in graph.graph.nodes if node.op.startswith("call_f")]
    assert functions == ["add"] * 6
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(graph.eval()(x), model.eval()(x))


def test_the_first_convolution_of_a_block_has_the_documented_name():
    names = [name for name, _ in WideResNet(1, 8, widen=1, blocks=2).named_modules() if name.endswith("conv1")]
    assert names == [f"groups.{group}.{block}.convolutions.conv1" for group in range(3) for block in range(2)]


@pytest.mark.parametrize("name", ["in_channels", "image_size", "num_classes", "blocks", "widen", "linear_size"])
@pytest.mark.parametrize("value", [0, 1.5, "3"])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; allowed is a whole number in [1, inf)")):
        WideResNet(**{name: value})
