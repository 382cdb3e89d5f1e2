"""The convolutional network with seven layers of the certified-training literature."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_weights.errors import check_number


class CNN7(nn.Module):
    """Classify images with five 3 x 3 convolutions and two fully connected layers, the network called CNN-7.

    The convolutions have ``width``, ``width`` and three times ``2 * width`` channels. Batch normalisation stands
    between every layer but the last and its ReLU. The last layer is called ``head``, the ones before it ``body``.

    Source: Shi, Wang, Zhang, Yi, Hsieh, 2021, arXiv:2103.17268.

    Args:
        in_channels: Channels of an image.
        image_size: Height and width of an image in pixels.
        num_classes: Number of outputs.
        width: Channels of the first convolution.
        linear_size: Width of the hidden fully connected layer.
        batch_norm: Whether batch normalisation stands between hidden layers and their ReLUs.
        strides: Strides of the five convolutions; the paper's TinyImageNet network has (1, 1, 2, 1, 2).

    Raises:
        ValueError: If a number is not a whole number from 1, or ``strides`` not five of them.

    Examples:
        >>> import torch
        >>> CNN7(in_channels=1, image_size=8, width=4, linear_size=16)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 10,
        width: int = 64,
        linear_size: int = 512,
        batch_norm: bool = True,
        strides: tuple[int, ...] = (1, 1, 2, 1, 1),
    ) -> None:
        if not isinstance(strides, Sequence) or len(strides) != 5:
            raise ValueError(f"strides is {strides!r}; allowed are five whole numbers, one per convolution")
        numbers = {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes, "width": width}
        numbers |= {"linear_size": linear_size, **{f"strides[{i}]": stride for i, stride in enumerate(strides)}}
        for name, number in numbers.items():
            check_number(name, number, low=1, whole=True)
        super().__init__()
        layers: list[nn.Module] = []
        for factor, stride in zip((1, 1, 2, 2, 2), strides, strict=True):
            channels = factor * width
            layers.append(nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if batch_norm else [nn.ReLU()]
            in_channels, image_size = channels, -(-image_size // stride)
        layers += [nn.Flatten(), nn.Linear(in_channels * image_size**2, linear_size)]
        layers += [nn.BatchNorm1d(linear_size), nn.ReLU()] if batch_norm else [nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(linear_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of images of shape (N, in_channels, image_size, image_size)."""
        return self.head(self.body(x))
