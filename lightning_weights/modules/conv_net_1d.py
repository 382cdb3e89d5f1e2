"""A convolutional network for short signals."""

from torch import Tensor, nn

from lightning_weights.errors import check_number


class ConvNet1d(nn.Module):
    """Classify signals with convolutions of stride 2, each followed by a ReLU, and a layer of features.

    The first convolution spans five values, the others three; each halves the length, rounding up. By default it is a
    backbone: the features come out after their ReLU, and ``head`` is the identity. Except for a wider border at the
    first convolution, and for the features, it is the network that MNIST-1D was published with (Greydanus and Kobak,
    2024, arXiv:2011.14439).

    Args:
        in_channels: Channels of a signal.
        channels: Channels of every convolution.
        layers: Number of convolutions.
        features: Width of the last hidden layer.
        num_classes: Number of outputs. ``None``: the features are the output.
        length: Values per channel of a signal.

    Raises:
        ValueError: If a number is not a whole number from 1.

    Examples:
        >>> import torch
        >>> ConvNet1d()(torch.zeros(2, 1, 40)).shape
        torch.Size([2, 64])
        >>> ConvNet1d(num_classes=10)(torch.zeros(2, 1, 40)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 25,
        layers: int = 3,
        features: int = 64,
        num_classes: int | None = None,
        length: int = 40,
    ) -> None:
        numbers = {"in_channels": in_channels, "channels": channels, "layers": layers, "features": features}
        numbers |= {"num_classes": 1 if num_classes is None else num_classes, "length": length}
        for name, number in numbers.items():
            check_number(name, number, low=1, whole=True)
        super().__init__()
        body: list[nn.Module] = []
        for layer in range(layers):
            border = 2 if layer == 0 else 1
            body += [nn.Conv1d(in_channels, channels, 2 * border + 1, stride=2, padding=border), nn.ReLU()]
            in_channels, length = channels, -(-length // 2)
        self.body = nn.Sequential(*body, nn.Flatten(), nn.Linear(channels * length, features), nn.ReLU())
        self.head = nn.Identity() if num_classes is None else nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (N, num_classes), or features, of signals of shape (N, in_channels, length)."""
        return self.head(self.body(x))
