"""Weights that are bounded functions of latent weights."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_weights.errors import check_choice
from lightning_weights.functional.weight_compander import compand_inverse, softplus_inverse
from lightning_weights.kernels.compand import FUNCTIONS, LIMITS, compand


class Compander(nn.Module):
    r"""Make a weight from a latent one by an odd, bounded function that is steepest at zero.

    $$w = a \arctan(v / b), \qquad a = \log(1 + e^{\rho_a}), \quad b = \log(1 + e^{\rho_b})$$

    It is a parametrization for ``torch.nn.utils.parametrize``: the optimizer holds v, the layer uses w. Assigning a
    weight, and registering on a layer that has one, sets v to the function's inverse, so that nothing changes but
    weights beyond the bound, which are clipped. Companding is computed in fp32 or wider. Whole networks are companded
    by [`compand_layers`][lightning_weights.modules.compand_layers].

    Scales and widths are saved as ρ, whether they are learned or not, so that a checkpoint fits both.

    Args:
        a: Scales a > 0: one number, or one per slice of the weight along dimension 0. Weights stay within ±aπ/2
            (arctan) or ±a.
        b: Widths b > 0, as many as ``a``. The gain at zero is a/b.
        function: ``arctan``, ``tanh``, which saturates faster, or ``softsign``, which saturates slower.
        learnable: Whether ρ are parameters; else they are buffers.

    Raises:
        ValueError: If a scale or a width is not positive and finite, there are different numbers of them, or the
            function is not allowed.

    Source: Cakaj, Mehnert & Yang 2023, arXiv:2306.16993. The functions are inferred from its abstract.

    Examples:
        >>> from torch.nn.utils import parametrize
        >>> layer = nn.Linear(3, 2)
        >>> before = layer.weight.detach().clone()
        >>> layer = parametrize.register_parametrization(layer, "weight", Compander(a=1.0, b=0.5))
        >>> torch.allclose(layer.weight, before)
        True
    """

    rho_a: Tensor
    rho_b: Tensor

    def __init__(
        self,
        a: Tensor | float,
        b: Tensor | float,
        function: Literal["arctan", "tanh", "softsign"] = "arctan",
        learnable: bool = False,
    ) -> None:
        check_choice("function", function, FUNCTIONS)
        scales = {name: torch.as_tensor(value).detach().float().reshape(-1) for name, value in (("a", a), ("b", b))}
        for name, value in scales.items():
            if not value.numel() or not bool(((value > 0) & value.isfinite()).all()):
                raise ValueError(f"{name} is {value.tolist()}; allowed are positive finite numbers, at least one")
        if len(scales["a"]) != len(scales["b"]):
            raise ValueError(f"a has {len(scales['a'])} numbers and b {len(scales['b'])}; allowed are equally many")
        super().__init__()
        self.function = function
        self.learnable = learnable
        self.rule: tuple[float, float] | None = None  # κ and β, where a and b follow from the weights' spread
        self.settings: dict[str, Any] = {}  # of the callback that made it; by hand there is none
        for name, value in scales.items():
            rho = softplus_inverse(value)
            if learnable:
                self.register_parameter(f"rho_{name}", nn.Parameter(rho))
            else:
                self.register_buffer(f"rho_{name}", rho)
        self.reuse(False)

    @property
    def a(self) -> Tensor:
        """Scales, positive whatever ρ is."""
        return softplus(self.rho_a)

    @property
    def b(self) -> Tensor:
        """Widths, positive whatever ρ is."""
        return softplus(self.rho_b)

    @property
    def bound(self) -> Tensor:
        """What no weight exceeds in magnitude, up to rounding; as many numbers as there are scales."""
        return LIMITS[self.function] * self.a

    def forward(self, latent: Tensor) -> Tensor:
        """Return the weight."""
        scales = self.a, self.b
        if not self._reuses or torch.compiler.is_compiling():
            return compand(latent, *scales, self.function)
        state = [(id(tensor), tensor._version) for tensor in (latent, self.rho_a, self.rho_b)]
        # what was computed in inference mode cannot take part in training
        usable = self._known is not None and (torch.is_inference_mode_enabled() or not self._known.is_inference())
        known = self._known if usable and state == self._state else None
        weight = compand(latent, *scales, self.function, known=known)
        self._known, self._state = weight.detach(), state
        return weight

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the latent weight of a weight, clipped 0.1 % within the bound."""
        self.reuse(False)
        return compand_inverse(weight, self.a, self.b, self.function)

    def reuse(self, on: bool) -> None:
        """Keep the weight for as long as latents, scales and widths are the same, or stop and forget it.

        Gradients are computed as ever; only equal values are not computed twice. Changes are noticed by the tensors'
        version counters, which edits of ``tensor.data`` pass by: keep weights only where nobody makes such.

        Args:
            on: Whether to keep it from now on; what is kept already stays.
        """
        self._reuses = on
        if not on:
            self._known: Tensor | None = None
            self._state: list[tuple[int, int]] = []

    def decay_gradient(self, latent: Tensor) -> Tensor:
        """Return the gradient of half the squared weight with respect to the latent one, for decay of the weight.

        Args:
            latent: Latent weight.
        """
        with torch.enable_grad():
            leaf = latent.detach().requires_grad_()
            weight = compand(leaf, self.a.detach(), self.b.detach(), self.function)
        return torch.autograd.grad(weight, leaf, weight.detach())[0]

    def extra_repr(self) -> str:
        return f"function={self.function!r}, scales={self.rho_a.numel()}, learnable={self.learnable}"

    def __getstate__(self) -> dict[str, Any]:
        # a copy must not go on with what its original keeps
        return {**super().__getstate__(), "_reuses": False, "_known": None, "_state": []}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any) -> None:
        self.reuse(False)
        super()._load_from_state_dict(state_dict, *arguments)
