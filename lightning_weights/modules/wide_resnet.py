"""Wide residual networks."""

from collections import OrderedDict

from torch import Tensor, nn

from lightning_weights.errors import check_number


class WideResNet(nn.Module):
    """Classify images with three groups of residual blocks of two 3 x 3 convolutions, wide ones.

    The groups have 16, 32 and 64 times ``widen`` channels; the second and the third halve height and width. By default
    it is the network called Wide-ResNet-8 in certified training (Shi et al., 2021, arXiv:2103.17268): one block per
    group, batch normalisation after every hidden layer, no pooling, and a hidden fully connected layer. With
    ``pre_activation=True, pool=True, linear_size=None`` it is the original (Zagoruyko and Komodakis, 2016,
    arXiv:1605.07146), WRN-28-10 with ``blocks=4, widen=10`` and WRN-40-4 with ``blocks=6, widen=4``: normalisation and
    ReLU stand before the convolutions, which have no biases.

    The first convolution of every block is ``groups.<group>.<block>.convolutions.conv1``, the last layer ``head``.

    Args:
        in_channels: Channels of an image.
        image_size: Height and width of an image in pixels.
        num_classes: Number of outputs.
        blocks: Residual blocks per group.
        widen: Factor of the numbers of channels.
        pre_activation: Whether normalisation and ReLU stand before a convolution instead of after it.
        pool: Whether each channel is averaged over the image before the fully connected layers.
        linear_size: Width of a hidden fully connected layer. ``None``: there is none.

    Raises:
        ValueError: If a number is not a whole number from 1.

    Examples:
        >>> import torch
        >>> WideResNet(in_channels=1, image_size=8, widen=1, linear_size=16)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> original = WideResNet(image_size=8, widen=1, pre_activation=True, pool=True, linear_size=None)
        >>> original(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 10,
        blocks: int = 1,
        widen: int = 8,
        pre_activation: bool = False,
        pool: bool = False,
        linear_size: int | None = 512,
    ) -> None:
        numbers = {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes}
        numbers |= {"blocks": blocks, "widen": widen, "linear_size": 1 if linear_size is None else linear_size}
        for name, number in numbers.items():
            check_number(name, number, low=1, whole=True)
        super().__init__()
        channels, pixels = 16, image_size
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=not pre_activation))
        if not pre_activation:
            self.stem.extend([nn.BatchNorm2d(channels), nn.ReLU()])
        groups = []
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            first = _Block(channels, width, stride, pre_activation)
            later = [_Block(width, width, 1, pre_activation) for _ in range(blocks - 1)]
            groups.append(nn.Sequential(first, *later))
            channels, pixels = width, -(-pixels // stride)
        self.groups = nn.Sequential(*groups)
        self.features = nn.Sequential()
        if pre_activation:
            self.features.extend([nn.BatchNorm2d(channels), nn.ReLU()])
        if pool:
            self.features.append(nn.AvgPool2d(pixels))
            pixels = 1
        self.features.append(nn.Flatten())
        width = channels * pixels**2
        if linear_size is not None:
            self.features.extend([nn.Linear(width, linear_size), nn.BatchNorm1d(linear_size), nn.ReLU()])
            width = linear_size
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of images of shape (N, in_channels, image_size, image_size)."""
        return self.head(self.features(self.groups(self.stem(x))))


class _Block(nn.Module):
    """Two convolutions and a connection around them, which is a convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, pre_activation: bool) -> None:
        super().__init__()
        bias = not pre_activation
        after = [] if pre_activation else [nn.BatchNorm2d(channels)]
        convolutions = [
            ("conv1", nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=bias)),
            ("norm1", nn.BatchNorm2d(channels)),
            ("relu", nn.ReLU()),
            ("conv2", nn.Conv2d(channels, channels, 3, padding=1, bias=bias)),
            *(("norm2", norm) for norm in after),
        ]
        self.enter = nn.Sequential(*([nn.BatchNorm2d(in_channels), nn.ReLU()] if pre_activation else []))
        self.convolutions = nn.Sequential(OrderedDict(convolutions))
        self.shape_changes = stride != 1 or in_channels != channels
        self.shortcut = nn.Sequential()
        if self.shape_changes:
            self.shortcut.append(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=bias))
            self.shortcut.extend([] if pre_activation else [nn.BatchNorm2d(channels)])
        self.leave = nn.Sequential(*([] if pre_activation else [nn.ReLU()]))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        around = self.shortcut(entered) if self.shape_changes else x
        return self.leave(self.convolutions(entered) + around)
