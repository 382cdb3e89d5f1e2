"""Bone as a method of peft."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, MissingDependencyError, check_choice, check_number
from lightning_weights.functional.bone import (
    VARIANTS,
    as_grid,
    block_shape,
    bone_delta,
    bone_left,
    bone_miss,
    bone_row,
    bone_weight,
    unmerged_weight,
)
from lightning_weights.kernels.block_affine import block_affine_linear
from lightning_weights.modules.bone import check_adaptable_layer
from lightning_weights.modules.bone_files import PEFT_TYPE

try:
    from peft import PeftConfig, PeftType
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
    from peft.utils import TRANSFORMERS_MODELS_TO_MISS_TARGET_MODULES_MAPPING, register_peft_method
    from peft.utils.other import get_pattern_key
except ImportError as error:
    raise MissingDependencyError("peft", "peft", "lightning_weights.adapters") from error

MATERIALIZED = ("col", "free")


@dataclass
class BoneConfig(PeftConfig):
    """Configure Bone for peft's ``get_peft_model``, in all variants of ``BoneLinear``.

    Importing ``lightning_weights.adapters`` registers the type, which has to be done before ``from_pretrained``, too.

    Args:
        task_type: As in all configurations of peft.
        peft_type: Is set.
        auto_mapping: As in all configurations of peft.
        peft_version: Is set.
        base_model_name_or_path: As in all configurations of peft.
        revision: As in all configurations of peft.
        inference_mode: As in all configurations of peft.
        r: Size of the blocks, a divisor of the layers' sizes (``miss`` pads the inputs instead).
        variant: How blocks act: ``col`` (what peft calls "bat"), ``row``, ``left``, ``miss``, ``mini`` or ``free``.
        grid: Numbers of blocks along outputs and inputs, for ``free``.
        mini_r: Number of columns that ``mini`` repeats along the outputs.
        dropout: Dropout on the inputs of the blocks, for variants that do not build W'.
        target_modules: Layers to adapt, as peft matches names; ``all-linear`` for all but a language model's output.
            ``None``: those that peft has for MiSS and the architecture.
        exclude_modules: Layers to leave out.
        rank_pattern: Other block sizes for some layers, by name or regular expression.
        modules_to_save: Modules that are trained whole and saved.
        layers_to_transform: Indices of the blocks of layers to adapt.
        layers_pattern: Name of the list of these blocks of layers.
        bias: Which biases are trained: ``none``, ``all`` or ``lw_bone_only``, those of adapted layers.

    Raises:
        ValueError: If an argument is out of range.
        MissingDependencyError: If peft is not installed.

    Source: Kang 2024, arXiv:2409.15371v3. Differs from peft's MiSS: every adapter of a layer may have a variant of its
    own; gradients never make a whole dW'.

    Examples:
        >>> from peft import get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), BoneConfig(r=4, target_modules=["0"]))
        >>> [tuple(param.shape) for param in model.parameters() if param.requires_grad]
        [(1, 4, 4)]
    """

    r: int = 64
    variant: Literal["col", "row", "left", "miss", "mini", "free"] = "col"
    grid: tuple[int, int] | None = None
    mini_r: int = 1
    dropout: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("r", self.r, low=1, whole=True)
        check_choice("variant", self.variant, VARIANTS)
        check_number("mini_r", self.mini_r, low=1, whole=True)
        check_number("dropout", self.dropout, low=0.0, high=1.0)
        if self.dropout and self.variant in MATERIALIZED:
            raise ValueError(
                f"dropout is {self.dropout} with variant {self.variant!r}, which makes the adapted weight; allowed is "
                f"0. For dropout choose row, left, miss or mini"
            )
        check_choice("bias", self.bias, ("none", "all", "lw_bone_only"))
        for pattern, rank in self.rank_pattern.items():
            check_number(f"rank_pattern[{pattern!r}]", rank, low=1, whole=True)
        if isinstance(self.target_modules, str) and (self.layers_to_transform or self.layers_pattern) is not None:
            raise ValueError(
                f"target_modules is the pattern {self.target_modules!r}, with which layers_to_transform and "
                f"layers_pattern mean nothing; give a list of names"
            )
        self.peft_type = PeftType[PEFT_TYPE]
        self.grid = None if self.grid is None else tuple(self.grid)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))


class PeftBoneLinear(nn.Module, BaseTunerLayer):
    """A linear layer under Bone adapters of any number, of which those that are active act one after the other."""

    adapter_layer_names = ("lw_bone_block",)
    other_param_names = ("lw_bone_config",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.lw_bone_block = nn.ParameterDict({})
        self.lw_bone_config: dict[str, BoneConfig] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: BoneConfig, r: int) -> None:
        """Add an adapter."""
        sizes = {"grid": config.grid, "mini_r": config.mini_r}
        shape = block_shape(config.variant, self.out_features, self.in_features, r, **sizes)
        self.lw_bone_block[adapter_name] = nn.Parameter(torch.zeros(shape))
        self.lw_bone_config[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer with its active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        dtype = x.dtype
        if not torch.is_autocast_enabled(x.device.type):
            x = self._cast_input_dtype(x, self.weight.dtype)
        return self._adapted(x, self._present(self.active_adapters)).to(dtype)

    def _present(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.lw_bone_block]

    def _adapted(self, x: Tensor, names: Sequence[str]) -> Tensor:
        if not names:
            return self.base_layer(x)
        *earlier, last = names
        block, config = self.lw_bone_block[last], self.lw_bone_config[last]
        inner = partial(self._adapted, names=earlier)
        dropout = config.dropout if self.training else 0.0
        if config.variant == "row":
            return bone_row(x, inner, block, dropout=dropout)
        if config.variant == "left":
            return bone_left(x, inner, block, self.bias, dropout=dropout)
        if config.variant in ("miss", "mini"):
            return bone_miss(x, inner, block, dropout=dropout)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if earlier:
            return F.linear(x, bone_weight(self._weight_with(earlier), block, config.variant, dtype=x.dtype), bias)
        return block_affine_linear(x, self.weight.detach(), as_grid(block, config.variant), bias)

    def _weight_with(self, names: Sequence[str]) -> Tensor:
        weight = self.weight
        for name in names:
            weight = bone_weight(weight, self.lw_bone_block[name], self.lw_bone_config[name].variant)
        return weight

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put adapters into the weight, in their order.

        Args:
            safe_merge: Whether a merged weight with NaN or infinity is refused.
            adapter_names: Which adapters. ``None``: those that are active.

        Raises:
            ValueError: If the merged weight is refused.
        """
        names = self._present(check_adapters_to_merge(self, adapter_names) or [])
        merged = self._weight_with(names)
        if safe_merge and not bool(merged.isfinite().all()):
            raise ValueError(f"merging {', '.join(names)} gives NaN or infinity; the adapter is broken")
        self.get_base_layer().weight.data = merged
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take all merged adapters out of the weight, the last one first, by inverting I + B."""
        if not self.merged:
            warnings.warn("no adapter is merged; nothing to do", LightningWeightsWarning, stacklevel=2)
        weight = self.weight
        for name in reversed(self.merged_adapters):
            weight = unmerged_weight(weight, self.lw_bone_block[name], self.lw_bone_config[name].variant)
        self.get_base_layer().weight.data = weight
        self.merged_adapters.clear()

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return W' - W of one adapter on the weight as it is.

        Args:
            adapter: Name of the adapter.
        """
        return bone_delta(self.weight, self.lw_bone_block[adapter], self.lw_bone_config[adapter].variant)

    def scale_layer(self, scale: float) -> None:
        """Refuse any scale but 1: Bone has none.

        Args:
            scale: Factor.

        Raises:
            ValueError: If it is not 1.
        """
        if scale != 1:
            raise ValueError(f"scale is {scale}, but W(I + B) + B has no scale (alpha) that could be changed")

    def unscale_layer(self, scale: float | None = None) -> None:
        """Do nothing: the scale is always 1."""

    def __repr__(self) -> str:
        return f"lw_bone.{super().__repr__()}"


class BoneModel(BaseTuner):
    """What ``get_peft_model`` wraps a network in for a ``BoneConfig``."""

    prefix = "lw_bone_"
    tuner_layer_cls = PeftBoneLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_MISS_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        bone_config: BoneConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional: Any,
    ) -> None:
        r = bone_config.rank_pattern.get(get_pattern_key(bone_config.rank_pattern, current_key), bone_config.r)
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if type(base).forward is not nn.Linear.forward:
            raise TypeError(f"{current_key} is a {type(base).__name__}; only nn.Linear can be adapted")
        if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
            raise ValueError(
                f"cannot adapt {current_key}: its TransformerEncoderLayer reads the weight in evaluation and never "
                f"calls it; call torch.backends.mha.set_fastpath_enabled(False) before, or leave the layer out"
            )
        try:
            check_adaptable_layer(base)
            layer = target if isinstance(target, PeftBoneLinear) else PeftBoneLinear(target)
            layer.update_layer(adapter_name, bone_config, r)
        except ValueError as error:
            raise ValueError(f"cannot adapt {current_key}: {error}") from error
        if layer is not target:
            layer.set_adapter(self.active_adapters, inference_mode=bone_config.inference_mode)
            self._replace_module(parent, target_name, layer, target)


def _register() -> None:
    """Make the type known to peft, whose enumeration of types is closed."""
    if PEFT_TYPE in PeftType.__members__:
        return
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_ = member._value_ = PEFT_TYPE
    type.__setattr__(PeftType, PEFT_TYPE, member)
    PeftType._member_names_.append(PEFT_TYPE)
    PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=BoneConfig, model_cls=BoneModel)


_register()
