"""A linear layer with a magnitude per output and a direction, of which a low-rank part is trained."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.gradnorm_lorp import effective_weight, weight_normed_linear

MODES = ("lowrank", "full")


class GradNormLoRPLinear(nn.Module):
    r"""Apply a linear layer whose weight is a magnitude per row times a direction.

    $$y = x W^\top + c, \qquad W_a = M_a \frac{V_a}{\|V_a\|}, \qquad V = W_0 + \tfrac{\alpha}{r}\, I J$$

    Neither V nor W is built in training: products with I and J give the output, and the norms of V's rows come from W₀
    J^T and the norms of W₀. At first I is zero and M the norms of W₀'s rows, so that the layer computes what it did.

    The layer takes over the tensors of the one that it replaces as its own ``weight`` (W₀) and ``bias``, under the same
    names in state dicts. In the mode ``lowrank`` the weight is frozen, and ``magnitude`` (M), ``factor_i`` (I) and
    ``factor_j`` (J) are trained; in the mode ``full`` it is trained, and is V itself.

    A row of zeros stays a row of zeros.

    Args:
        base: The layer to replace.
        r: Rank of the update, for ``lowrank``.
        alpha: α, which scales the update, for ``lowrank``.
        dropout: Probability of dropping an input of the update in training, for ``lowrank``.
        mode: ``lowrank`` for fine-tuning, ``full`` for training from scratch.
        detach_norm: Whether ‖V_a‖ counts as a constant in the gradient, as in DoRA. Without, the gradient of a row of V
            is orthogonal to the row.

    Raises:
        ValueError: If ``base`` is not a linear layer with values, an argument is out of range, or ``dropout`` is given
            in the mode ``full``.

    Source: Huang, Shen, Zhu, Rudinac, Kanoulas, 2025, arXiv:2412.19616. ``full`` is our reading of its pre-training.

    Examples:
        >>> base = nn.Linear(6, 4)
        >>> layer, x = GradNormLoRPLinear(base, r=2), torch.randn(3, 6)
        >>> torch.allclose(layer(x), base(x), atol=1e-6)
        True
        >>> sorted(name for name, param in layer.named_parameters() if param.requires_grad)
        ['bias', 'factor_i', 'factor_j', 'magnitude']
    """

    def __init__(
        self,
        base: nn.Linear,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        mode: Literal["lowrank", "full"] = "lowrank",
        detach_norm: bool = True,
    ) -> None:
        check_arguments(r, alpha, dropout, mode)
        if not isinstance(base, nn.Linear) or "weight" not in base._parameters or base.weight.is_meta:
            raise ValueError(
                f"base is {base!r}; allowed is a layer of the class nn.Linear whose weight is a parameter with values"
            )
        super().__init__()
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.r = r
        self.alpha = alpha
        self.mode = mode
        self.detach_norm = detach_norm
        self.dropout = nn.Dropout(dropout)
        self.weight = base.weight
        self.bias = base.bias
        self._was_trained = base.weight.requires_grad
        weight = base.weight.detach()
        self.magnitude = nn.Parameter(_norm_sq(weight).sqrt().to(weight.dtype))
        if mode == "lowrank":
            self.weight.requires_grad_(False)
            self.factor_i = nn.Parameter(weight.new_zeros(self.out_features, r))
            self.factor_j = nn.Parameter(weight.new_empty(r, self.in_features))
            nn.init.kaiming_uniform_(self.factor_j, a=math.sqrt(5))
            self.register_buffer("weight_norm_sq", _norm_sq(weight), persistent=False)
            self.register_load_state_dict_post_hook(_measure_again)
        else:
            self.register_parameter("factor_i", None)
            self.register_parameter("factor_j", None)
            self.weight_norm_sq = None

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by, α/r."""
        return self.alpha / self.r

    def projected_parameters(self) -> list[nn.Parameter]:
        """Return the trained matrices, whose gradients an optimizer may project: both factors, or the weight."""
        return [self.weight] if self.mode == "full" else [self.factor_i, self.factor_j]

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (..., out_features) of inputs of shape (..., in_features)."""
        dropped = self.dropout(x) if self.dropout.p and self.training else None
        return weight_normed_linear(
            x,
            self.weight,
            self.bias,
            self.magnitude,
            self.factor_i,
            self.factor_j,
            self.scale,
            self.detach_norm,
            self.weight_norm_sq,
            dropped,
        )

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """Return W, shape (out_features, in_features), in the dtype of the weight."""
        return self._normalised(self.magnitude)

    def _normalised(self, magnitude: Tensor) -> Tensor:
        return effective_weight(self.weight, magnitude, self.factor_i, self.factor_j, self.scale)

    @torch.no_grad()
    def update_size(self) -> Tensor:
        """Return the Frobenius norm of the update over that of the weight, 0 in the mode ``full``."""
        if self.mode == "full":
            return self.magnitude.new_zeros(())
        i, j = self.factor_i.float(), self.factor_j.float()
        square = ((i.T @ i) * (j @ j.T)).sum().clamp(min=0.0)  # ‖IJ‖² without IJ
        return self.scale * (square / self.weight_norm_sq.sum().clamp(min=1e-30)).sqrt()

    @torch.no_grad()
    def fold(self, generator: torch.Generator | None = None) -> None:
        """Move the update into the weight and start new factors; outputs stay the same but for rounding.

        The weight becomes ``|M_a| V_a/‖V_a‖``, I zero, and J is drawn anew. The magnitude stays as it is.

        Args:
            generator: A CPU generator to draw from. ``None``: the global one.

        Raises:
            ValueError: In the mode ``full``, which has no factors.
        """
        if self.mode == "full":
            raise ValueError("mode is 'full', where nothing is to be folded; allowed is 'lowrank'")
        lengths = torch.where(self.magnitude == 0, self.weight_norm_sq.sqrt().to(self.magnitude), self.magnitude.abs())
        self.weight.copy_(self._normalised(lengths))
        self.factor_i.zero_()
        drawn = torch.empty(self.factor_j.shape, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.factor_j.copy_(drawn)
        _measure_again(self)

    def merge(self) -> nn.Linear:
        """Return a plain linear layer that computes the same; its weight is trained as that of ``base`` was."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.effective_weight(), requires_grad=self._was_trained)
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        rank = f", r={self.r}, alpha={self.alpha}" if self.mode == "lowrank" else ""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, mode={self.mode!r}{rank}, detach_norm={self.detach_norm}"

    def _apply(self, fn: Any, recurse: bool = True) -> "GradNormLoRPLinear":
        super()._apply(fn, recurse)
        _measure_again(self)  # a buffer would take the dtype of a half-precision network
        return self


def check_arguments(r: Any, alpha: Any, dropout: Any, mode: Any) -> None:
    """Check the arguments that the layer and the callback share.

    Raises:
        ValueError: If one is out of range, or ``dropout`` is given in the mode ``full``.
    """
    check_number("r", r, low=1, whole=True)
    check_number("alpha", alpha, low=0.0, low_allowed=False)
    check_number("dropout", dropout, low=0.0, high=1.0)
    check_choice("mode", mode, MODES)
    if mode == "full" and dropout:
        raise ValueError(f"dropout is {dropout!r}, which mode='full' has no update for; use 0, or mode='lowrank'")


def _norm_sq(weight: Tensor) -> Tensor:
    return weight.float().square().sum(dim=1) if weight.dtype != torch.float64 else weight.square().sum(dim=1)


def _measure_again(layer: GradNormLoRPLinear, *unused: Any) -> None:
    """Compute the norms of the weight's rows anew; a function, so that copies of a layer measure themselves."""
    if layer.mode == "lowrank" and not layer.weight.is_meta:
        layer.weight_norm_sq = _norm_sq(layer.weight.detach())
