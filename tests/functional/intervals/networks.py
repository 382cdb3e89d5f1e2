"""Small networks and boxes for the tests of interval propagation."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """Two residual blocks with everything that is not a layer: in-place sums, functions, methods."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(6)
        self.short = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        out = self.norm1(self.conv1(x))
        out += x
        x = out.relu()
        x = torch.relu(self.norm2(self.conv2(x)) + self.short(x))
        x = F.avg_pool2d(x, x.shape[-1])
        return self.head(x.view(x.size(0), -1))


def mlp(norm=True):
    layers = [nn.Flatten()]
    for width in (72, 16, 12):
        layers += [nn.Linear(width, 16 if width == 72 else 12), *([nn.BatchNorm1d(16 if width == 72 else 12)] * norm)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(12, 4))


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(54, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)),
    )


NETWORKS = {"mlp": mlp, "convolutional": convolutional, "residual": Residual}


def randomised(net, seed=0):
    """Give BatchNorm factors of both signs, offsets and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.2)
    return net


def make(name, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(NETWORKS[name](), seed)


def batch(size=6, seed=0):
    """Return images in [0, 1], many of them at the limits, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(size, 2, 6, 6, generator=generator) * 1.6 - 0.3).clamp(0, 1)
    return x, torch.randint(4, (size,), generator=generator)


def inside(lower, upper, points=10_000, seed=0):
    """Return points of one box: corners, and uniformly distributed ones."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(points, *lower.shape, generator=generator)
    shares[: points // 2] = shares[: points // 2].round()
    return lower + shares * (upper - lower)
