"""Plain convolutional networks in stages, with or without batch normalisation."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_weights.errors import check_number

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Classify images with stages of 3 x 3 convolutions between which maxima halve the image, and a linear layer.

    By default it is VGG-16 for small images: 13 convolutions with biases, the mean over what is left of the image, and
    one linear layer instead of three (Simonyan and Zisserman, 2015, arXiv:1409.1556). Convolutions begin with He's
    normal weights, so that activations keep their size through all of them. The last layer is called ``head``, the ones
    before it ``features``.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of outputs.
        stages: Channels of the convolutions of every stage.
        batch_norm: Whether batch normalisation stands between convolutions and their ReLUs.
        signals: Whether inputs are signals of shape (N, in_channels, L), for convolutions along one dimension.

    Raises:
        ValueError: If a number is not a whole number from 1, or a stage is not a list of them.

    Examples:
        >>> import torch
        >>> VGG(in_channels=1, stages=[[4, 4], [8]])(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        stages: Sequence[Sequence[int]] = VGG16,
        batch_norm: bool = False,
        signals: bool = False,
    ) -> None:
        check_number("in_channels", in_channels, low=1, whole=True)
        check_number("num_classes", num_classes, low=1, whole=True)
        if not stages or any(not isinstance(stage, Sequence) or not stage for stage in stages):
            raise ValueError(
                f"stages is {stages!r}; allowed is a list of lists of whole numbers, such as [[64], [128]]"
            )
        for number, stage in enumerate(stages):
            for layer, width in enumerate(stage):
                check_number(f"stages[{number}][{layer}]", width, low=1, whole=True)
        super().__init__()
        conv, norm, pool = nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d
        if signals:
            conv, norm, pool = nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d
        layers: list[nn.Module] = []
        for number, stage in enumerate(stages):
            layers += [pool(2)] if number else []
            for width in stage:
                layers.append(conv(in_channels, width, 3, padding=1))
                nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
                nn.init.zeros_(layers[-1].bias)
                layers += [norm(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
                in_channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of images of shape (N, in_channels, H, W), or signals."""
        return self.head(self.features(x).flatten(2).mean(2))
