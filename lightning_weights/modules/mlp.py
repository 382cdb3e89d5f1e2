"""A multilayer perceptron."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_weights.errors import check_number


class MLP(nn.Module):
    """Classify flattened inputs with fully connected layers and ReLUs.

    The last layer is called ``head``, the ones before it ``body``. Without classes it is a backbone: the features of
    the last hidden layer after its ReLU come out, and ``head`` is the identity.

    Args:
        in_features: Numbers per input, after flattening everything but the batch dimension.
        hidden: Widths of the hidden layers, first to last; none gives a linear classifier.
        num_classes: Number of outputs. ``None``: the last hidden layer's features are the output.
        dropout: Probability, from 0 up to but not including 1, of dropping a hidden activation in training.
        batch_norm: Whether batch normalisation stands between each hidden linear layer and its ReLU.

    Raises:
        ValueError: If a width is not a whole number from 1, ``dropout`` out of range, or neither a hidden layer nor
            ``num_classes`` given.

    Examples:
        >>> import torch
        >>> MLP(in_features=64, hidden=(32,), num_classes=10)(torch.zeros(4, 8, 8)).shape
        torch.Size([4, 10])
        >>> MLP(in_features=64, hidden=(32, 16), num_classes=None)(torch.zeros(4, 8, 8)).shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        in_features: int = 64,
        hidden: tuple[int, ...] = (128,),
        num_classes: int | None = 10,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        if not isinstance(hidden, Sequence) or isinstance(hidden, str):
            raise ValueError(
                f"hidden is {hidden!r}; allowed is a tuple or list of widths; use () for a linear classifier"
            )
        if num_classes is None and len(hidden) == 0:
            raise ValueError(f"hidden is {hidden!r}; allowed is at least one width where num_classes is None")
        widths = {"in_features": in_features, "num_classes": 1 if num_classes is None else num_classes}
        for name, width in (*widths.items(), *((f"hidden[{i}]", width) for i, width in enumerate(hidden))):
            check_number(name, width, low=1, whole=True)
        check_number("dropout", dropout, low=0.0, high=1.0)
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(nn.Linear(in_features, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers += [nn.ReLU(), nn.Dropout(dropout)]
            in_features = width
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Identity() if num_classes is None else nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (N, num_classes), or features, of inputs of shape (N, ...)."""
        return self.head(self.body(x))
