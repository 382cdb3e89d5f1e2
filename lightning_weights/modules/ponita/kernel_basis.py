"""The network that turns invariants into the basis of all layers' kernels."""

from torch import Tensor, nn

from lightning_weights.functional.ponita import kernel_basis, num_polynomial_features


class KernelBasis(nn.Module):
    r"""Turn invariants of pairs into basis functions, from which every layer mixes its kernels.

    $$\phi(a) = w \; \mathrm{GELU}(V_2 \, \mathrm{GELU}(V_1 \, p(a) + c_1) + c_2)$$

    Args:
        num_attributes: Number q of invariants.
        hidden_dim: Width H of the network.
        basis_dim: Number B of basis functions.
        degree: Largest degree of the monomials p.

    Raises:
        ValueError: If a size is below 1.

    Source: Bekkers et al. 2024, arXiv:2310.02970.

    Examples:
        >>> import torch
        >>> KernelBasis(2, 16, 8)(torch.zeros(5, 4, 2)).shape
        torch.Size([5, 4, 8])
    """

    def __init__(self, num_attributes: int, hidden_dim: int, basis_dim: int, degree: int = 3) -> None:
        super().__init__()
        self.degree = degree
        self.linear_1 = nn.Linear(num_polynomial_features(num_attributes, degree), hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, basis_dim)

    def forward(self, attributes: Tensor, window: Tensor | None = None) -> Tensor:
        """Compute φ of shape (..., B) from invariants (..., q) and, if there is one, a window (..., 1)."""
        layers = (self.linear_1, self.linear_2)
        parameters = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        return kernel_basis(attributes, parameters, degree=self.degree, window=window)

    def extra_repr(self) -> str:
        """Return the degree."""
        return f"degree={self.degree}"
