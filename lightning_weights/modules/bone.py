"""A linear layer with a block-affine adapter."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError, check_choice, check_number
from lightning_weights.functional.bone import (
    BoneVariant,
    as_grid,
    block_shape,
    bone_delta,
    bone_left,
    bone_miss,
    bone_row,
    bone_weight,
    grid_sizes,
    unmerged_weight,
)
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.block_affine import block_affine_linear, built_weight

FACTORIZED = ("row", "left", "miss", "mini")
BUILT_BY_KERNEL = ("col", "row", "free")
HALF = (torch.bfloat16, torch.float16)


class BoneLinear(nn.Module):
    r"""Adapt a frozen linear layer through one small block tensor, which starts at zero and acts on the weight itself.

    $$W'_{ab} = W_{ab} (I + B_a) + B_a, \qquad y = x W'^\top + c$$

    That is variant ``col``; [`block_shape`][lightning_weights.functional.bone.block_shape] lists all. With B = 0 the
    outputs are the layer's own in every bit. There is no scale (alpha): the learning rate plays its role.

    The layer takes over the tensors of the one it replaces, so that a plain checkpoint still fits: ``weight`` and
    ``bias`` are frozen, ``bone_block`` is trained. The block stays in fp32 where the layer is converted to half
    precision, and is cast only after I + B.

    Args:
        base: Layer to adapt. It must not be used any more.
        r: Size of the blocks; for all variants but ``miss`` and ``mini`` a divisor of inputs and outputs.
        variant: How blocks are shared and applied. ``col`` is the paper's; ``row``, ``left``, ``miss`` and ``mini``
            never make the adapted weight.
        grid: Blocks (g_o, g_i) of variant ``free``.
        mini_r: Columns of the block of variant ``mini``.
        dropout: Probability with which what the block multiplies is dropped in training; needs a factorised variant.
        pad: Whether ``miss`` and ``mini`` fill up inputs that r doesn't divide.
        impl: ``materialize`` makes the adapted weight, ``factorized`` never does, ``triton`` makes it and insists on
            the Triton kernel. ``auto`` is factorised where the variant can be.
        keep: How long an adapted weight is kept: until the ``backward`` pass, ``never`` (it is made again there), or
            until the block changes (``step``), which saves time with accumulated gradients and in evaluation. Changes
            behind autograd's back, through ``.data`` or FSDP, need ``forget()`` then.

    Raises:
        ValueError: If an argument is out of range or doesn't fit the layer, or the layer can't be adapted.
        ShardedParameterError: If the layer's weight is sharded.

    Source: Kang 2024, arXiv:2409.15371; ``miss`` and ``mini``: Kang & Yin 2025, v6 of the same.

    Examples:
        >>> base = nn.Linear(8, 12)
        >>> layer, x = BoneLinear(base, r=4), torch.randn(2, 8)
        >>> layer.bone_block.shape, torch.equal(layer(x), base(x))
        (torch.Size([3, 4, 4]), True)
        >>> layer.merge()
        Linear(in_features=8, out_features=12, bias=True)
    """

    _original: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        r: int = 64,
        variant: BoneVariant = "col",
        grid: Sequence[int] | None = None,
        mini_r: int = 1,
        dropout: float = 0.0,
        pad: bool = True,
        impl: Literal["auto", "materialize", "factorized", "triton"] = "auto",
        keep: Literal["never", "backward", "step"] = "backward",
    ) -> None:
        check_adaptable_layer(base)
        grid = None if grid is None else grid_sizes(grid)
        shape = block_shape(variant, base.out_features, base.in_features, r, grid=grid, mini_r=mini_r, pad=pad)
        factorized = _is_factorized(variant, impl)
        check_number("dropout", dropout, low=0.0, high=1.0)
        check_choice("keep", keep, ("never", "backward", "step"))
        if dropout > 0.0 and not factorized:
            raise ValueError(
                f"dropout is {dropout} with variant {variant!r} and impl {impl!r}, which make the adapted weight; "
                f"allowed is 0. For dropout choose one of {', '.join(map(repr, FACTORIZED))} and impl 'auto'"
            )
        if keep != "backward" and (factorized or variant not in BUILT_BY_KERNEL):
            raise ValueError(
                f"keep is {keep!r} with variant {variant!r} and impl {impl!r}, which have no weight to keep; allowed "
                f"is 'backward'"
            )
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.r, self.variant, self.grid, self.mini_r = r, variant, grid, mini_r
        self.dropout, self.pad, self.impl, self.keep = dropout, pad, impl, keep
        self.factorized, self.merged = factorized, False
        self.weight = base.weight.requires_grad_(False)
        self.register_parameter("bias", None if base.bias is None else base.bias.requires_grad_(False))
        dtype = torch.float32 if base.weight.dtype in HALF else base.weight.dtype
        self.bone_block = nn.Parameter(torch.zeros(shape, dtype=dtype, device=base.weight.device))
        self.register_buffer("_original", None, persistent=False)
        self._built: tuple[tuple[Any, ...], Tensor] | None = None
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the adapted layer."""
        if self.merged:
            return F.linear(x, self.weight, self.bias)
        if self.factorized:
            return self._factorized(x)
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.variant not in BUILT_BY_KERNEL:
            return F.linear(x, bone_weight(self.weight, self.bone_block, self.variant, dtype=x.dtype), self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.impl != "triton":
            return self._materialized(x, bias)
        with use_kernels("triton"):
            return self._materialized(x, bias)

    def _factorized(self, x: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if self.variant == "row":
            return bone_row(x, self._base, self.bone_block, dropout=dropout)
        if self.variant == "left":
            return bone_left(x, self._base, self.bone_block, self.bias, dropout=dropout)
        return bone_miss(x, self._base, self.bone_block, dropout=dropout)

    def _base(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def _materialized(self, x: Tensor, bias: Tensor | None) -> Tensor:
        block = as_grid(self.bone_block, self.variant)
        built = None if self.keep == "never" else self._adapted_weight(block, x.dtype)
        return block_affine_linear(x, self.weight, block, bias, built=built)

    def _adapted_weight(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        if self.keep == "backward" or torch.compiler.is_compiling():
            return built_weight(self.weight, block, dtype=dtype)
        sources = (self.weight, self.bone_block)
        key = (dtype, *((id(source), source.data_ptr(), source._version) for source in sources))
        if self._built is None or self._built[0] != key:
            self._built = None  # freed before the next one is made
            with torch.inference_mode(False):
                self._built = key, built_weight(self.weight, block.detach(), dtype=dtype)
        return self._built[1]

    def forget(self) -> None:
        """Drop the adapted weight that ``keep="step"`` holds; due when tensors changed behind autograd's back."""
        self._built = None

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """Return W' - W in fp32 or wider.

        Raises:
            ValueError: If the adapter is merged.
        """
        if self.merged:
            raise ValueError("the adapter is merged, so that its update can't be told from the weight; unmerge() first")
        return bone_delta(self.weight, self.bone_block, self.variant)

    @torch.no_grad()
    def merge(self, keep_original: bool = False) -> nn.Linear:
        """Put the adapter into the weight, for as long as ``unmerge`` isn't called.

        The weight becomes a new tensor: whoever shares the old one keeps it. A state dict of the merged layer has the
        merged weight and a zero block, which load to the same outputs.

        Args:
            keep_original: Whether to keep the old weight, so that ``unmerge`` is exact.

        Returns:
            A plain layer that shares weight and bias with this one.

        Raises:
            ValueError: If the merged weight isn't finite; nothing has changed then.
        """
        if not self.merged:
            merged = bone_weight(self.weight, self.bone_block, self.variant)
            if not bool(merged.isfinite().all()):
                raise ValueError(
                    "the merged weight holds NaN or infinity, so nothing was merged: has training diverged?"
                )
            self._original = self.weight.detach() if keep_original else None
            self._replace_weight(merged, merged_now=True)
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the adapter out of the weight again: exact with a kept original, else by inverting I + B in fp32.

        Raises:
            ValueError: If nothing is merged, or I + B is singular and no original was kept.
        """
        if not self.merged:
            raise ValueError("nothing is merged; call merge() first")
        original = self._original
        if original is None:
            original = unmerged_weight(self.weight, self.bone_block, self.variant)
        self._original = None
        self._replace_weight(original, merged_now=False)

    def _replace_weight(self, weight: Tensor, merged_now: bool) -> None:
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.merged = merged_now
        self.forget()

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"r={self.r}, variant={self.variant}" + ", merged" * self.merged
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert all tensors, but leave the block its precision."""
        self.forget()
        own = {id(self.bone_block), id(self.bone_block.grad)}

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if id(tensor) in own and converted.dtype in HALF:
                return tensor.to(converted.device)
            return converted  # type: ignore[no-any-return]

        return super()._apply(convert, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            destination[f"{prefix}bone_block"] = torch.zeros_like(self.bone_block)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        if self.merged and f"{prefix}weight" in state_dict:
            self._original, self.merged = None, False
        elif self.merged and f"{prefix}bone_block" in state_dict:
            arguments[-1].append(f"{prefix}bone_block can't be loaded while the old one is merged; unmerge() first")
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": None}


def _is_factorized(variant: str, impl: str) -> bool:
    check_choice("impl", impl, ("auto", "materialize", "factorized", "triton"))
    if impl == "factorized" and variant not in FACTORIZED:
        raise ValueError(
            f"impl is 'factorized' with variant {variant!r}, whose adapted weight has to be made; allowed is it for "
            f"{', '.join(map(repr, FACTORIZED))}"
        )
    if impl == "triton" and variant not in BUILT_BY_KERNEL:
        raise ValueError(
            f"impl is 'triton' with variant {variant!r}, which has no kernel; allowed is it for "
            f"{', '.join(map(repr, BUILT_BY_KERNEL))}"
        )
    return impl == "factorized" or (impl == "auto" and variant in FACTORIZED)


def check_adaptable_layer(base: nn.Module) -> None:
    """Check that a layer is ``nn.Linear`` with a plain weight that its forward reads.

    Raises:
        ValueError: If it is something else, or its weight is computed or quantized.
        ShardedParameterError: If its weight is sharded.
    """
    kind = type(base).__name__
    if not isinstance(base, nn.Linear) or type(base).forward is not nn.Linear.forward:
        raise ValueError(f"base is a {kind}; allowed is nn.Linear, whose weight is plain and not quantized or computed")
    if isinstance(base, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ValueError(f"base is a {kind}, whose weight nn.MultiheadAttention reads past the layer; leave it out")
    if not {"weight", "bias"} <= base._parameters.keys():
        raise ValueError(
            "base has a weight or bias that something else computes (a parametrization, weight_norm, pruning); make it "
            "permanent first"
        )
    if hasattr(base.weight, "placements"):
        raise ShardedParameterError("base has a sharded weight; put adapters in before fully_shard")
    if not base.weight.is_floating_point():
        raise ValueError(f"base has a weight of {base.weight.dtype}; allowed are floating-point weights")
