"""Batch normalisation of growing networks: a half for each member, side by side after growth."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_weights.errors import check_number
from lightning_weights.modules.mixture_part import MODES, MixturePart, half_of


class _MixtureBatchNorm(MixturePart):
    """Batch normalisation of any dimension."""

    _kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]
    _dimensions: tuple[int, ...]

    def _prepare(self, num_features: int, eps: float, momentum: float, affine: bool, track_running_stats: bool) -> None:
        half = half_of("num_features", num_features, split=True)
        check_number("eps", eps, low=0.0)
        check_number("momentum", momentum, low=0.0)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        # two parameters: those of an idle member have no gradient; its part of the statistics is never written
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(half)) for _ in range(2)) if affine else None
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(half)) for _ in range(2)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise inputs of shape (N, num_features, ...), half as many features for members."""
        if x.dim() not in self._dimensions:
            raise ValueError(
                f"{type(self).__name__} got an input of {x.dim()} dimensions; allowed are "
                f"{' or '.join(map(str, self._dimensions))}"
            )
        statistics = self._of_mode(self.running_mean), self._of_mode(self.running_var)
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        from_batch = self.training or not self.track_running_stats
        return F.batch_norm(
            x, *statistics, self._affine(self.weights), self._affine(self.biases), from_batch, self.momentum, self.eps
        )

    def _of_mode(self, statistics: Tensor | None) -> Tensor | None:
        if statistics is None or self._mode == "grown":
            return statistics
        return statistics[self._half(self.num_features)]

    def _affine(self, halves: nn.ParameterList | None) -> Tensor | None:
        if halves is None:
            return None
        return torch.cat(list(halves)) if self._mode == "grown" else halves[MODES.index(self._mode)]

    def plain(self) -> nn.Module:
        """Return a plain norm with copies of what the current mode normalises with."""
        features = self.num_features if self._mode == "grown" else self.num_features // 2
        norm = self._kind(features, self.eps, self.momentum, self.affine, self.track_running_stats, device="meta")
        for name, value in (("weight", self._affine(self.weights)), ("bias", self._affine(self.biases))):
            setattr(norm, name, None if value is None else nn.Parameter(value.detach().clone()))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            value = getattr(self, name)
            value = value if name == "num_batches_tracked" else self._of_mode(value)
            setattr(norm, name, None if value is None else value.clone())
        return norm.train(self.training)

    def extra_repr(self) -> str:
        """Describe the norm in one line."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, mode={self._mode!r}"


class MixtureBatchNorm1d(_MixtureBatchNorm):
    """Normalise batches of vectors or signals: half of the features for each member, all of them when grown.

    The halves have weights, biases and running statistics of their own, which growth puts side by side. Nothing is
    copied for it, so that optimizers keep their state.

    Args:
        num_features: Features of the grown network, an even number.
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics.
        affine: Whether there are weights and biases.
        track_running_stats: Whether there are running statistics.

    Raises:
        ValueError: If a number is out of range or odd.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251, whose code makes a new norm at growth.

    Examples:
        >>> norm = MixtureBatchNorm1d(6)
        >>> norm(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

    _kind, _dimensions = nn.BatchNorm1d, (2, 3)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self._prepare(num_features, eps, momentum, affine, track_running_stats)


class MixtureBatchNorm2d(_MixtureBatchNorm):
    """Normalise batches of images: half of the channels for each member, all of them when grown.

    The halves have weights, biases and running statistics of their own, which growth puts side by side. Nothing is
    copied for it, so that optimizers keep their state.

    Args:
        num_features: Channels of the grown network, an even number.
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics.
        affine: Whether there are weights and biases.
        track_running_stats: Whether there are running statistics.

    Raises:
        ValueError: If a number is out of range or odd.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251, whose code makes a new norm at growth.

    Examples:
        >>> norm = MixtureBatchNorm2d(6)
        >>> norm.mode = "grown"
        >>> norm(torch.zeros(2, 6, 4, 4)).shape
        torch.Size([2, 6, 4, 4])
    """

    _kind, _dimensions = nn.BatchNorm2d, (4,)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self._prepare(num_features, eps, momentum, affine, track_running_stats)
