"""The convolution over positions, then over orientations, and its data-dependent scale."""

import warnings

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError, check_number
from lightning_weights.kernels.fiber_conv import SortedEdges, fiber_conv


class SeparableFiberConv(nn.Module):
    r"""Convolve features over positions and then over orientations.

    $$f^{(1)}_{io} = \sum_{j \to i} (W_K \phi_{ij,o}) \odot f_{jo}, \qquad
    f'_{ip} = \frac{1}{O} \sum_o (W_F \psi_{op}) \, f^{(1)}_{io} + b$$

    Depthwise, both kernels have one number per channel, and mixing channels is left to what follows. Otherwise W_F ψ is
    a matrix of channels. Without orientations only the first sum is there.

    Args:
        in_channels: Channels C of the input.
        basis_dim: Number B of basis functions φ and ψ.
        out_channels: Channels of the output; ``None`` for C, the only choice of a depthwise convolution.
        depthwise: Whether channels stay apart.
        orientations: Whether there is a second sum.

    Raises:
        ValueError: If a size is below 1, or channels would have to be mixed.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> from lightning_weights.kernels.fiber_conv import sort_edges
        >>> edges = sort_edges(torch.tensor([[0, 1], [0, 0]]), 2)
        >>> layer = SeparableFiberConv(3, 5)
        >>> layer(torch.ones(2, 4, 3), torch.ones(2, 4, 5), torch.ones(4, 4, 5), edges).shape
        torch.Size([2, 4, 3])
    """

    calibrated: Tensor

    def __init__(
        self,
        in_channels: int,
        basis_dim: int,
        out_channels: int | None = None,
        depthwise: bool = True,
        orientations: bool = True,
    ) -> None:
        super().__init__()
        check_number("in_channels", in_channels, low=1, whole=True)
        check_number("basis_dim", basis_dim, low=1, whole=True)
        out_channels = in_channels if out_channels is None else out_channels
        check_number("out_channels", out_channels, low=1, whole=True)
        if out_channels != in_channels and (depthwise or not orientations):
            raise ValueError(
                f"out_channels is {out_channels} for {in_channels} in_channels; allowed are equal numbers, or "
                f"depthwise=False with orientations, which mixes channels"
            )
        self.in_channels, self.out_channels, self.depthwise = in_channels, out_channels, depthwise
        self.kernel = nn.Linear(basis_dim, in_channels, bias=False)
        per_pair = in_channels if depthwise else in_channels * out_channels
        self.fiber_kernel = nn.Linear(basis_dim, per_pair, bias=False) if orientations else None
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("calibrated", torch.tensor(False))

    def forward(self, features: Tensor, basis: Tensor, fiber_basis: Tensor | None, edges: SortedEdges) -> Tensor:
        """Convolve.

        Args:
            features: f of shape (N, O, C).
            basis: φ of shape (E, O, B), in the order of the edges.
            fiber_basis: ψ of shape (O, O, B), or ``None`` without orientations.
            edges: The sorted graph.

        Returns:
            f' of shape (N, O, out_channels).
        """
        fiber = self._fiber(fiber_basis)
        if fiber is None or self.depthwise:
            return fiber_conv(features, basis, self.kernel.weight, fiber, self.bias, edges=edges)
        sums = fiber_conv(features, basis, self.kernel.weight, edges=edges)
        return self._mix(fiber, sums) + self.bias

    def _fiber(self, fiber_basis: Tensor | None) -> Tensor | None:
        if (fiber_basis is None) != (self.fiber_kernel is None):
            raise ValueError(
                f"fiber_basis is {'missing' if fiber_basis is None else 'given'} for a convolution "
                f"{'without' if self.fiber_kernel is None else 'with'} orientations; allowed is ψ (O, O, B) for one "
                f"with them, None for one without"
            )
        return None if self.fiber_kernel is None else self.fiber_kernel(fiber_basis)

    def _mix(self, fiber: Tensor, sums: Tensor) -> Tensor:
        matrices = fiber.unflatten(-1, (self.out_channels, self.in_channels)).to(sums.dtype)
        return torch.einsum("opdc,noc->npd", matrices, sums) / sums.shape[1]

    @torch.no_grad()
    def calibrate(self, features: Tensor, basis: Tensor, fiber_basis: Tensor | None, edges: SortedEdges) -> None:
        r"""Rescale both kernels so that the output, before the bias, has the input's standard deviation on these data.

        $$W_K \leftarrow W_K \frac{\mathrm{std}(f)}{\mathrm{std}(f^{(1)})}, \qquad
        W_F \leftarrow W_F \frac{\mathrm{std}(f^{(1)})}{\mathrm{std}(f^{(2)})}$$

        A layer that has been calibrated once stays as it is.

        Args:
            features: f of shape (N, O, C).
            basis: φ of shape (E, O, B).
            fiber_basis: ψ of shape (O, O, B), or ``None`` without orientations.
            edges: The sorted graph.

        Raises:
            ShardedParameterError: If the weights are sharded.

        Warns:
            LightningWeightsWarning: If all sums are equal, so that they have no scale; that kernel stays as it is.
        """
        if bool(self.calibrated):
            return
        if hasattr(self.kernel.weight, "placements"):
            raise ShardedParameterError(
                "calibration needs whole weights, but they are sharded: call network.calibrate(...) before the Trainer "
                "shards them, or leave the callback out"
            )
        fiber = self._fiber(fiber_basis)
        sums = fiber_conv(features, basis, self.kernel.weight, edges=edges)
        self.kernel.weight *= _scale(features, sums)
        if self.fiber_kernel is not None and fiber is not None:
            if self.depthwise:
                result = fiber_conv(features, basis, self.kernel.weight, fiber, edges=edges)
            else:
                result = self._mix(fiber, fiber_conv(features, basis, self.kernel.weight, edges=edges))
            self.fiber_kernel.weight *= _scale(features, result)
        self.calibrated.fill_(True)

    def extra_repr(self) -> str:
        """Return channels and kind."""
        return f"{self.in_channels}, {self.out_channels}, depthwise={self.depthwise}"


def _scale(wanted: Tensor, found: Tensor) -> float:
    """Return the quotient of standard deviations."""
    quotient = float(wanted.double().std() / found.double().std())
    if 0.0 < quotient < float("inf"):
        return quotient
    warnings.warn(
        "calibration found data without a scale: features or sums over edges are all equal. The kernel stays as it was "
        "initialised; give a batch with different points",
        LightningWeightsWarning,
        stacklevel=4,
    )
    return 1.0
