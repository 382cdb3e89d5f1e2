"""A frozen backbone whose LoRA matrices a generator makes from a condition."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import check_number
from lightning_weights.functional.fingerprint import fingerprint
from lightning_weights.modules.adapted_layers import adapt_layers
from lightning_weights.modules.generated_linear import inject
from lightning_weights.modules.generated_lora import GeneratedLoRA

FROZEN = ("backbone.", "condition_encoder.")
BASE = "_extra_state"  # where a state dict says which backbone its generator was trained on

Change = Callable[[GeneratedLoRA], GeneratedLoRA]


class AdaptedBackbone(nn.Module):
    r"""Run a frozen backbone with LoRA matrices that a generator makes for every sample from its condition.

    $$y_n = f_{W_0 + \Delta W(g_\varphi(c_n))}(x_n)$$

    The linear layers that the generator has matrices for become `GeneratedLinear`. Only the generator is trained:
    backbone and encoder are frozen and stay in evaluation mode, so that dropout and running statistics in them stand
    still. The state dict holds the generator and a fingerprint of backbone and encoder; loading it beside others is
    refused.

    Args:
        backbone: Network.
        generator: Makes the matrices: a `WeightGenerator`, or any module with ``sizes``, inputs and outputs of linear
            layers of the backbone by name, which returns a `GeneratedLoRA` for a condition and its mask.
        condition_encoder: Turns what comes as condition into tokens (N, L, cond_dim), or into them and their mask. It
            runs without gradients. ``backbone``: the backbone itself, without matrices; its last ``hidden_states``,
            where it returns such. ``None``: the condition is tokens already.
        condition_dropout: Probability with which a sample's condition is replaced by zeros in training, drawn from the
            global generator.

    Raises:
        ValueError: If a layer is missing or doesn't fit, or an argument is out of range.

    Source: Wu et al. 2026, arXiv:2603.07236.

    Examples:
        >>> from lightning_weights.modules import WeightGenerator
        >>> model = AdaptedBackbone(nn.Sequential(nn.Linear(4, 3)), WeightGenerator({"0": (4, 3)}, 1, 5, prefix=""))
        >>> model(torch.randn(2, 6, 5), torch.randn(2, 4)).shape
        torch.Size([2, 3])
        >>> sum(name.startswith("backbone") for name in model.state_dict())
        0
    """

    def __init__(
        self,
        backbone: nn.Module,
        generator: nn.Module,
        condition_encoder: nn.Module | Literal["backbone"] | None = None,
        condition_dropout: float = 0.0,
    ) -> None:
        check_number("condition_dropout", condition_dropout, low=0.0, high=1.0)
        if isinstance(condition_encoder, str) and condition_encoder != "backbone":
            raise ValueError(f"condition_encoder is {condition_encoder!r}; allowed are a module, 'backbone' or None")
        check_sizes(backbone, generator)
        super().__init__()
        adapt_layers(backbone, generator.sizes)
        self.backbone = backbone.requires_grad_(False).eval()
        self.encodes_with_backbone = condition_encoder == "backbone"
        encoder = condition_encoder if isinstance(condition_encoder, nn.Module) else None
        self.condition_encoder = None if encoder is None else encoder.requires_grad_(False).eval()
        self.generator = generator
        self.condition_dropout = condition_dropout
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_pre_hook(_keep_frozen)

    def train(self, mode: bool = True) -> "AdaptedBackbone":
        """Set the mode of the generator; backbone and encoder stay in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        if self.condition_encoder is not None:
            self.condition_encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, condition: Any, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of a condition and which of them count.

        Args:
            condition: What the encoder takes: a tensor, or a mapping of its arguments by name.
            mask: Which tokens count (N, L), if the encoder doesn't tell. ``None``: all, or, for a mapping, its
                ``attention_mask``.
        """
        if mask is None and isinstance(condition, Mapping):
            mask = condition.get("attention_mask")
        encoder = self.backbone if self.encodes_with_backbone else self.condition_encoder
        found = condition if encoder is None else _call(encoder, condition, self.encodes_with_backbone)
        if isinstance(found, tuple):
            found, mask = found
        if hasattr(found, "last_hidden_state"):
            found = found.last_hidden_state
        elif getattr(found, "hidden_states", None) is not None:
            found = found.hidden_states[-1]
        if not isinstance(found, Tensor):
            raise ValueError(
                f"the condition is a {type(found).__name__} {'without' if encoder is None else 'behind'} an encoder; "
                f"allowed is a tensor (N, L, width)"
            )
        if self.training and self.condition_dropout:
            kept = torch.rand(len(found), 1, 1, device=found.device) >= self.condition_dropout
            found = torch.where(kept, found, 0.0)
        return found.detach(), None if mask is None else mask.bool()

    def adapters(self, condition: Any, mask: Tensor | None = None) -> GeneratedLoRA:
        """Return the matrices for every sample; arguments as of ``encode``."""
        return self.generator(*self.encode(condition, mask))

    @torch.compiler.disable(recursive=False)  # generator and backbone are compiled, what is between them is not
    def forward(
        self,
        condition: Any,
        *args: Any,
        condition_mask: Tensor | None = None,
        change: Change | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the backbone with the matrices of its condition.

        Args:
            condition: What the encoder takes, or finished matrices (`GeneratedLoRA`).
            args: Arguments of the backbone.
            condition_mask: Which tokens of the condition count.
            change: Changes the matrices before they are used.
            kwargs: More arguments of the backbone.
        """
        finished = isinstance(condition, GeneratedLoRA)
        adapters = condition if finished else self.adapters(condition, condition_mask)
        if change is not None:
            adapters = change(adapters)
        with inject(self.backbone, adapters):
            return self.backbone(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint of backbone and encoder as bytes, for the state dict."""
        named = dict(self.backbone.named_parameters(remove_duplicate=False))
        if self.condition_encoder is not None:
            named |= {f"{FROZEN[1]}{name}": param for name, param in self.condition_encoder.named_parameters()}
        text = fingerprint({name.replace("base_layer.", ""): param for name, param in named.items()})
        return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Check that a state dict belongs to this backbone and encoder.

        Raises:
            ValueError: If it belongs to others.
        """
        _check_base(state, self.get_extra_state())


def _check_base(saved: Tensor, here: Tensor) -> None:
    """Compare two fingerprints; empty ones, of networks without values, say nothing."""
    texts = [bytes(part.tolist()).hex() for part in (saved, here)]
    if all(texts) and texts[0] != texts[1]:
        raise ValueError(
            f"the generator belongs to another backbone or condition encoder: those here have the fingerprint "
            f"{texts[1]}, those it was trained with {texts[0]}; build the module with the same weights"
        )


def check_sizes(backbone: nn.Module, generator: nn.Module) -> None:
    """Check that a backbone has the layers which a generator makes matrices for.

    Args:
        backbone: Network.
        generator: The generator.

    Raises:
        ValueError: If layers are missing, or have other sizes; all of them are listed.
    """
    parts = dict(backbone.named_modules(remove_duplicate=False))
    wrong = []
    for name, (inputs, outputs) in generator.sizes.items():
        part = parts.get(name)
        own = getattr(part, "in_features", None), getattr(part, "out_features", None)
        if own != (inputs, outputs):
            wrong.append(f"{name} ({'missing' if part is None else f'{own[0]} to {own[1]}'})")
    if wrong:
        linear = [f"{name} {part.in_features} to {part.out_features}" for name, part in parts.items() if _linear(part)]
        raise ValueError(
            f"the generator's targets don't fit the backbone: {', '.join(wrong)}; linear layers are "
            f"{', '.join(linear) or 'none'}"
        )


def _linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)


def _call(module: nn.Module, condition: Any, hidden: bool) -> Any:
    if not isinstance(condition, Mapping):
        return module(condition)
    return module(**condition, **({"output_hidden_states": True} if hidden else {}))


def _drop_frozen(module: nn.Module, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
    starts = tuple(f"{prefix}{part}" for part in FROZEN)
    for key in [key for key in state_dict if key.startswith(starts)]:
        del state_dict[key]


def _keep_frozen(module: "AdaptedBackbone", state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
    if f"{prefix}{BASE}" in state_dict:  # before any weight has changed
        _check_base(state_dict[f"{prefix}{BASE}"], module.get_extra_state())
    for part in FROZEN:
        child = getattr(module, part[:-1])
        if child is not None:
            for name, value in child.state_dict(keep_vars=True).items():
                state_dict.setdefault(f"{prefix}{part}{name}", value)
