"""A multilayer perceptron."""

from torch import Tensor, nn

from lightning_weights.errors import check_number


class MLP(nn.Module):
    """Classify flattened inputs with fully connected layers and ReLUs.

    The last layer is called ``head``, the ones before it ``body``.

    Args:
        in_features: Numbers per input, after flattening everything but the batch dimension.
        hidden: Widths of the hidden layers, first to last; none gives a linear classifier.
        num_classes: Number of outputs.
        dropout: Probability, from 0 up to but not including 1, of dropping a hidden activation in training.

    Raises:
        ValueError: If a width is not a whole number from 1, or ``dropout`` out of range.

    Examples:
        >>> import torch
        >>> MLP(in_features=64, hidden=(32,), num_classes=10)(torch.zeros(4, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self, in_features: int = 64, hidden: tuple[int, ...] = (128,), num_classes: int = 10, dropout: float = 0.0
    ) -> None:
        if not isinstance(hidden, (tuple, list)):
            raise ValueError(
                f"hidden is {hidden!r}; allowed is a tuple or list of widths; use () for a linear classifier"
            )
        widths = {"in_features": in_features, "num_classes": num_classes}
        for name, width in (*widths.items(), *((f"hidden[{i}]", width) for i, width in enumerate(hidden))):
            check_number(name, width, low=1, whole=True)
        check_number("dropout", dropout, low=0.0, high=1.0)
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(dropout)]
            in_features = width
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of inputs of shape (N, ...)."""
        return self.head(self.body(x))
