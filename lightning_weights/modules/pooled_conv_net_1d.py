"""A convolutional network for short signals, with batch normalisation and no layer that knows their length."""

from torch import Tensor, nn

from lightning_weights.errors import check_number


class PooledConvNet1d(nn.Module):
    """Classify signals with normalised convolutions of one width, the mean over time and a head without bias.

    The first convolution spans five values, the others three; every second of them halves the length. It has no biases
    but those of its norms, and only ``width`` decides how many channels there are.

    Args:
        in_channels: Channels of a signal.
        width: Channels of every convolution.
        layers: Convolutions after the first.
        num_classes: Number of outputs.

    Raises:
        ValueError: If a number is not a whole number from 1.

    Examples:
        >>> import torch
        >>> PooledConvNet1d(width=8)(torch.zeros(2, 1, 40)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, width: int = 16, layers: int = 4, num_classes: int = 10) -> None:
        numbers = {"in_channels": in_channels, "width": width, "layers": layers, "num_classes": num_classes}
        for name, number in numbers.items():
            check_number(name, number, low=1, whole=True)
        super().__init__()
        body: list[nn.Module] = [nn.Conv1d(in_channels, width, 5, padding=2, bias=False)]
        for layer in range(layers):
            body += [nn.BatchNorm1d(width), nn.ReLU()]
            body.append(nn.Conv1d(width, width, 3, stride=1 + layer % 2, padding=1, bias=False))
        self.body = nn.Sequential(*body, nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (N, num_classes) of signals of shape (N, in_channels, length)."""
        return self.head(self.body(x).mean(-1))
