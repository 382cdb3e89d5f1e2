"""Units of networks, and which of them are selected."""

import pytest
import torch
from torch import nn

from lightning_weights.modules import CompactViT, ShallowSelector, WideResNet
from tests.modules.signature_cases import SmallResNet, small_vgg

VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def vgg16(normalised=False):
    """Return VGG-16 for images of 32 pixels, without values."""
    layers, channels = [], 3
    with torch.device("meta"):
        for width in VGG16:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), *[nn.BatchNorm2d(width)] * normalised, nn.ReLU()]
            channels = width
        return nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": nn.Linear(512, 10)})


def test_a_vgg_has_its_convolutions_with_their_biases():
    network = vgg16()
    assert len(ShallowSelector().units(network)) == 13
    convolutions = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    expected = [f"{name}.{leaf}" for name in convolutions[:7] for leaf in ("weight", "bias")]
    assert ShallowSelector().select(network) == expected
    assert ShallowSelector().select(network.state_dict()) == expected


def test_normalisations_belong_to_the_convolution_before():
    units = ShallowSelector().units(vgg16(normalised=True))
    assert len(units) == 13
    assert units["features.0"] == ["features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"]


def test_a_resnet_has_its_stem_and_its_blocks():
    network = SmallResNet()
    units = ShallowSelector(n_modules=None).units(network)
    assert list(units) == ["conv1", "layer1.0", "layer1.1", "layer2.0"]
    assert units["conv1"] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    inside = [f"layer2.0.{name}" for name, _ in network.layer2[0].named_parameters()]
    assert units["layer2.0"] == inside
    assert any("downsample.1" in name for name in inside)
    assert ShallowSelector(n_modules=2).select(network) == units["conv1"] + units["layer1.0"]


def test_ten_blocks_and_more_are_told_apart():
    network = nn.ModuleDict({"layer1": nn.Sequential(*[nn.Sequential(nn.Linear(1, 1)) for _ in range(12)])})
    network["head"] = nn.Linear(1, 1)
    assert len(ShallowSelector(n_modules=None).units(network)) == 12


@pytest.mark.parametrize("network", [WideResNet(image_size=8), CompactViT(depth=2, repeats=[1, 1])])
def test_classifiers_and_statistics_are_never_selected(network):
    selected = ShallowSelector(n_modules=None).select(network)
    parameters = dict(network.named_parameters())
    assert selected
    assert set(selected) <= parameters.keys()
    assert not any(name.startswith("head") for name in selected)


def test_classifiers_of_several_layers_are_left_out_whole():
    network = nn.ModuleDict({"features": nn.Sequential(nn.Conv2d(1, 1, 1)), "fc": nn.Linear(1, 2)})
    network["classifier"] = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert list(ShallowSelector().units(network)) == ["features.0"]


def test_wrappers_and_compilation_change_no_name():
    expected = ShallowSelector().select(small_vgg())
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"net": small_vgg()})})
    assert ShallowSelector().select(wrapped) == expected
    assert ShallowSelector().select(nn.ModuleDict({"_orig_mod": small_vgg()})) == expected
    assert ShallowSelector().select({"state_dict": wrapped.state_dict(), "epoch": 3}) == expected


def test_patterns():
    selector = ShallowSelector(n_modules=None, patterns=[r"layer1\..*"])
    assert {name.split(".conv")[0].split(".bn")[0] for name in selector.select(SmallResNet())} == {
        "layer1.0",
        "layer1.1",
    }
    assert ShallowSelector(1, patterns=["4", "2"]).select(small_vgg()) == ["2.weight", "2.bias"]


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 1.0])
def test_budgets(fraction):
    network = small_vgg()
    sizes = {name: param.numel() for name, param in network.named_parameters()}
    chosen = ShallowSelector(None, max_fraction=fraction)
    budget = fraction * sum(sizes.values())
    units = list(chosen.units(network).values())
    cumulative = [sum(sizes[name] for names in units[: count + 1] for name in names) for count in range(len(units))]
    fitting = sum(size <= budget for size in cumulative)
    if fitting == 0:
        with pytest.raises(ValueError, match=r"selects nothing; the units .* 0 \(40 weights\)"):
            chosen.select(network)
    else:
        assert chosen.select(network) == [name for names in units[:fitting] for name in names]


class Backwards(nn.Module):
    """Runs its layers against the order of their definition."""

    def __init__(self):
        super().__init__()
        self.late, self.early, self.unused, self.head = (nn.Linear(2, 2) for _ in range(4))

    def forward(self, x):
        return self.head(self.late(self.early(x)))


def test_order_of_execution():
    network, x = Backwards(), torch.zeros(1, 2)
    assert list(ShallowSelector().units(network)) == ["late", "early", "unused"]
    selector = ShallowSelector(order="forward")
    assert list(selector.units(network, x)) == ["early", "late", "unused"]
    assert ShallowSelector(1, order="forward").select(nn.ModuleDict({"net": network})["net"], x)[0] == "early.weight"
    assert list(selector.units(SmallResNet(), torch.zeros(2, 1, 4, 4))) == ["conv1", "layer1.0", "layer1.1", "layer2.0"]
    assert not any(part._forward_pre_hooks for part in network.modules())
    assert network.training
    for bad in ((network, None), (network.state_dict(), x)):
        with pytest.raises(ValueError, match="needs a module and an example_input"):
            selector.select(*bad)


def test_bad_arguments():
    bad = {"n_modules": 0, "max_fraction": 1.5, "order": "alphabet", "patterns": "conv"}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            ShallowSelector(**{name: value})
    with pytest.raises(ValueError, match="no regular expression"):
        ShallowSelector(patterns=["("])
    with pytest.raises(ValueError, match="selects nothing"):
        ShallowSelector(patterns=["conv9"]).select(small_vgg())
    with pytest.raises(ValueError, match=r"selects nothing.*are none"):
        ShallowSelector().select(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="a list is no network"):
        ShallowSelector().select([])
