"""Small networks with something to patch, and signatures for them."""

import torch
from torch import nn

from lightning_weights.modules import RobustWeightSignature, ShallowSelector, extract_rws


def small_vgg(classes=3, seed=0, width=4):
    """Return a network of three convolutions and a classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


class Block(nn.Module):
    """A residual block with batch normalisation."""

    def __init__(self, channels, out_channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        shortcut = [nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.downsample = nn.Sequential(*shortcut) if channels != out_channels else nn.Sequential()

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.downsample(x)).relu()


class SmallResNet(nn.Module):
    """A residual network: a stem, three blocks, a classifier."""

    def __init__(self, classes=3, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4), Block(4, 4))
        self.layer2 = nn.Sequential(Block(4, 6))
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def moved(network, seed, by=0.1):
    """Return a state dict whose weights lie somewhere around those of a network."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + by * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }


def signature_of(network, seed=1, levels=None, corruption="fog", units=2, **options) -> RobustWeightSignature:
    """Return a signature that fits a network."""
    select = ShallowSelector(n_modules=units)
    standard, robust = moved(network, seed), moved(network, seed + 100)
    return extract_rws(network, standard, robust, select, levels, corruption, **options)


def bits(network):
    """Return copies of all tensors of a network."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same_bits(network, before):
    """Tell whether all tensors of a network are as they were."""
    return all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
