"""Second-order statistics of a linear layer's inputs."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_weights.errors import LightningWeightsWarning, check_number
from lightning_weights.functional.full_precision import full_precision

PANEL = 256  # columns


class InputStatistics:
    r"""Sums over the inputs of a linear layer, from which its weights can be quantized.

    $$H = \tfrac{2}{N} \sum X X^T, \qquad D = \tfrac{2}{N} \sum (\tilde X - X) X^T$$

    X are inputs in the network whose earlier layers are quantized, X̃ those in the full-precision network. N counts
    samples: elements of the batch dimension, not tokens. How samples are cut into batches, or spread over processes,
    makes no difference.

    Args:
        in_features: Input features of the layer.
        asymmetric: Whether D is collected.
        dtype: Of the sums: float32, or float64.

    Raises:
        ValueError: If an argument is not allowed.

    Examples:
        >>> statistics = InputStatistics(2)
        >>> statistics.update(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]))
        >>> statistics.samples, statistics.hessian
        (2, tensor([[10.,  2.],
                [ 2.,  4.]]))
    """

    def __init__(self, in_features: int, asymmetric: bool = False, dtype: torch.dtype = torch.float32) -> None:
        check_number("in_features", in_features, low=1, whole=True)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; allowed are torch.float32 and torch.float64")
        self.in_features = in_features
        self.asymmetric = asymmetric
        self.dtype = dtype
        self.samples = 0
        self.tokens = 0
        self._products: Tensor | None = None
        self._differences: Tensor | None = None

    @torch.no_grad()
    def update(self, x_q: Tensor, x_fp: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Add a batch of inputs.

        Args:
            x_q: Inputs in the quantized stream, (batch, ..., in_features); two dimensions are one sample.
            x_fp: The same tokens' inputs in the full-precision stream, if the statistics are asymmetric.
            mask: Which tokens count, of the inputs' shape without the last dimension; padding does not.

        Raises:
            ValueError: If a shape is not allowed, or the second stream is missing or not asked for.
        """
        self._check(x_q, x_fp, mask)
        x = self._tokens(x_q, mask)
        if self._products is None:
            self._products = x.new_zeros(self.in_features, self.in_features)
            self._differences = torch.zeros_like(self._products) if self.asymmetric else None
        with torch.autocast(x.device.type, enabled=False), full_precision():
            for start in range(0, self.in_features, PANEL):  # the lower half of a symmetric matrix is left out
                stop = start + PANEL
                self._products[:stop, start:stop].addmm_(x[:, :stop].T, x[:, start:stop])
            if x_fp is not None and self._differences is not None:
                self._differences.addmm_((self._tokens(x_fp, mask) - x).T, x)
        self.samples += len(x_q) if x_q.dim() > 2 else 1
        self.tokens += len(x)

    def _tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x.detach().reshape(-1, self.in_features)
        if mask is not None:
            x = x[mask.reshape(-1).to(x.device, torch.bool)]
        return x.to(self.dtype)

    def _check(self, x_q: Tensor, x_fp: Tensor | None, mask: Tensor | None) -> None:
        if x_q.dim() < 2 or x_q.shape[-1] != self.in_features:
            raise ValueError(f"x_q has shape {tuple(x_q.shape)}; allowed is (batch, ..., {self.in_features})")
        if (x_fp is not None) != self.asymmetric:
            raise ValueError(
                f"x_fp is {'missing' if x_fp is None else 'given'}, but asymmetric is {self.asymmetric}: inputs of the "
                f"full-precision stream are needed exactly if it is True"
            )
        if x_fp is not None and x_fp.shape != x_q.shape:
            raise ValueError(
                f"x_fp has shape {tuple(x_fp.shape)}, x_q {tuple(x_q.shape)}; both streams must see the same tokens in "
                f"the same order: the calibration dataloader must not shuffle between streams"
            )
        if mask is not None and mask.shape != x_q.shape[:-1]:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; allowed is {tuple(x_q.shape[:-1])}")

    @property
    def hessian(self) -> Tensor:
        """H, (in_features, in_features)."""
        upper = self._sum(self._products).triu_()
        return upper + upper.triu(1).T

    @property
    def asymmetry(self) -> Tensor | None:
        """D, of the same shape; None if it is not collected."""
        return self._sum(self._differences) if self.asymmetric else None

    def _sum(self, total: Tensor | None) -> Tensor:
        if total is None:
            raise ValueError("no batch has been seen; allowed is to call update first")
        return total * (2.0 / self.samples)

    def check(self, name: str) -> None:
        """See whether a layer can be quantized from these statistics.

        Args:
            name: The layer, for messages.

        Raises:
            ValueError: If there was no input, or one that was not finite.

        Warns:
            LightningWeightsWarning: If there were fewer tokens than input features.
        """
        if self._products is None or self.tokens == 0:
            raise ValueError(f"{name} got no calibration inputs: it was never reached, or every token was masked out")
        if not all(bool(t.isfinite().all()) for t in (self._products, self._differences) if t is not None):
            raise ValueError(f"the calibration inputs of {name} hold NaN or infinity; allowed are finite ones")
        if self.tokens < self.in_features:
            warnings.warn(
                f"{name} has {self.in_features} input features and saw {self.tokens} tokens, "
                f"{self.tokens / self.in_features:.2f} per feature: its weights will fit these tokens rather than "
                f"others. Take more calibration data, or a larger damp or beta",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def merge(self, other: InputStatistics) -> None:
        """Add another part of the calibration data, such as another process's.

        Args:
            other: Statistics of the same layer.

        Raises:
            ValueError: If they are of another kind.
        """
        mine, theirs = (self.in_features, self.asymmetric), (other.in_features, other.asymmetric)
        if mine != theirs:
            raise ValueError(f"other has (in_features, asymmetric) {theirs}; allowed is {mine}")
        if other._products is not None:
            self._products = _added(self._products, other._products)
            if other._differences is not None:
                self._differences = _added(self._differences, other._differences)
        self.samples += other.samples
        self.tokens += other.tokens

    def all_reduce(self, device: torch.device | str = "cpu", group: dist.ProcessGroup | None = None) -> None:
        """Add up all processes' parts, so that each has the whole; also those that saw no batch must call it.

        Args:
            device: Where the sums are, and are made if there are none yet: what the process group can send.
            group: The processes; None: all of them.
        """
        shape = (self.in_features, self.in_features)
        counts = torch.tensor([self.samples, self.tokens], dtype=torch.int64, device=device)
        totals = []
        for part in (self._products, self._differences) if self.asymmetric else (self._products,):
            total = torch.zeros(shape, dtype=self.dtype, device=device) if part is None else part.to(device)
            dist.all_reduce(total, group=group)
            totals.append(total)
        dist.all_reduce(counts, group=group)
        self.samples, self.tokens = (int(count) for count in counts.tolist())
        self._products = totals[0]
        self._differences = totals[1] if self.asymmetric else None

    def state_dict(self) -> dict[str, Tensor | int | None]:
        """Return the sums and counts."""
        return {
            "products": self._products,
            "differences": self._differences,
            "samples": self.samples,
            "tokens": self.tokens,
        }

    def load_state_dict(self, state: dict[str, Tensor | int | None]) -> None:
        """Go on from sums and counts.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If they are of another layer.
        """
        products, differences = state["products"], state["differences"]
        shape = (self.in_features, self.in_features)
        if isinstance(products, Tensor) and (
            tuple(products.shape) != shape or isinstance(differences, Tensor) != self.asymmetric
        ):
            raise ValueError(
                f"state has sums of shape {tuple(products.shape)}, asymmetric: {differences is not None}; allowed is "
                f"{shape}, asymmetric: {self.asymmetric}"
            )
        self._products = products.to(self.dtype).clone() if isinstance(products, Tensor) else None
        self._differences = differences.to(self.dtype).clone() if isinstance(differences, Tensor) else None
        self.samples, self.tokens = int(state["samples"] or 0), int(state["tokens"] or 0)


def _added(mine: Tensor | None, theirs: Tensor) -> Tensor:
    return theirs.clone() if mine is None else mine + theirs.to(mine.device, mine.dtype)
