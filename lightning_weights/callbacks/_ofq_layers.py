"""Which parts of a network OFQ quantizes, and to how many bits."""

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_weights.callbacks._injection import check_weights
from lightning_weights.callbacks._replacement import check_replaceable, replace_layers
from lightning_weights.callbacks._targets import is_inside, name_matches
from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import (
    FakeQuantConv2d,
    FakeQuantLinear,
    attention_obstacle,
    behind_gelu,
    is_attention,
    quantize_attention,
)

HEADS = ("head", "head_dist", "classifier", "*_classifier")  # of CompactViT, timm and transformers
WEIGHTED = (nn.Linear, nn.Conv2d)


class Parts(NamedTuple):
    """What is quantized, by name: attentions are replaced whole.

    Attributes:
        inner: Attentions and layers that get few bits.
        edges: Those that get more, with a learned scale: the patch embedding and the head.
        products: Names of the attentions whose query-key product is quantized.
    """

    inner: dict[str, nn.Module]
    edges: dict[str, nn.Module]
    products: set[str]


def parts_to_quantize(
    module: nn.Module, modules: Sequence[str] | None, skip: Sequence[str] | None, qkr: bool | Sequence[str]
) -> Parts:
    """Choose what is quantized, and check that it can be.

    Args:
        module: Where to look.
        modules: Patterns of what gets few bits; ``None`` for every attention and linear layer between the edges.
        skip: Patterns of edges; ``None`` for linear layers called ``head``, ``head_dist``, ``classifier`` or
            ``..._classifier``, or else the last one. The first layer is one, too, unless ``modules`` names it.
        qkr: Whether attentions quantize the product of query and key weights, or patterns of those that do.

    Raises:
        ValueError: If a pattern names nothing that can be quantized, or a layer cannot be quantized.
        MisconfigurationException: If nothing is left.
        ShardedParameterError: If a weight is sharded.
    """
    attentions = {name: part for name, part in module.named_modules() if _is_replaced_whole(part)}
    layers = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, WEIGHTED) and not any(is_inside(name, attention) for attention in attentions)
    }
    there = {name: part for name, part in module.named_modules() if name in attentions or name in layers}
    linear = [name for name, part in layers.items() if isinstance(part, nn.Linear)]
    first = [name for name in list(there)[:1] if name in layers]
    if skip is None:
        head = [name for name in linear if any(name_matches(name, known) for known in HEADS)] or linear[-1:]
    else:
        head = _named(module, there, skip, "skip")
    if modules is None:
        inner = [name for name in there if name in attentions or name in linear]
        inner = [name for name in inner if name not in (*first, *head)]
    else:
        inner = _named(module, there, modules, "modules")
        inner = [name for name in inner if skip is None or name not in head]
    if not inner:
        raise MisconfigurationException(
            f"OFQ has nothing to quantize: modules={modules} and skip={skip} leave no attention and no linear layer; "
            f"with weights there are {', '.join(there) or 'no Linear, Conv2d or attention layers'}, of which "
            f"{', '.join(dict.fromkeys([*first, *head])) or 'none'} would be edges. Name some in modules"
        )
    edges = [name for name in there if name in (*first, *head) and name not in inner]
    chosen = {name: there[name] for name in there if name in inner}
    parts = Parts(chosen, {name: there[name] for name in edges}, _reparametrized(module, chosen, qkr))
    _check_quantizable(module, parts)
    return parts


def _is_replaced_whole(part: nn.Module) -> bool:
    """Tell whether attention is known; of other kinds the linear layers are quantized one by one, if there are some."""
    return is_attention(part) and (isinstance(part, nn.MultiheadAttention) or attention_obstacle(part) is None)


def _named(module: nn.Module, there: Mapping[str, nn.Module], patterns: Sequence[str], argument: str) -> list[str]:
    """Return which of the parts the patterns name, themselves or something around them."""
    found: list[str] = []
    for pattern in patterns:
        around = [name for name, _ in module.named_modules() if name and name_matches(name, pattern)]
        inside = [part for part in there if any(is_inside(part, name) for name in around)]
        if not inside:
            raise ValueError(
                f"{argument} has {pattern!r}, which names no attention and no Linear or Conv2d layer that is not part "
                f"of one; there are {', '.join(there) or 'none'}"
            )
        found += inside
    return found


def _reparametrized(module: nn.Module, inner: Mapping[str, nn.Module], qkr: bool | Sequence[str]) -> set[str]:
    attentions = [name for name, part in inner.items() if _is_replaced_whole(part)]
    if isinstance(qkr, bool):
        others = {
            f"{name} ({type(part).__name__})": attention_obstacle(part) if is_attention(part) else None
            for name, part in module.named_modules()
            if ("attention" in type(part).__name__.lower() or is_attention(part))
            and not any(is_inside(name, attention) or is_inside(attention, name) for attention in attentions)
        }
        if qkr and (others or not attentions):
            reasons = ". ".join(f"{other}: {reason}" for other, reason in others.items() if reason)
            raise ValueError(
                f"qkr=True, but the product of query and key weights can be quantized only in nn.MultiheadAttention, "
                f"the attention of transformers' ViT and DeiT, CompactViT's, and what computes the same, and not in "
                f"{', '.join(others) or 'a network without attention'}: with rotary or relative positions, or fewer "
                f"heads for keys than for queries, there is no such product. {reasons or 'It has no known form'}. Name "
                f"the attentions in qkr, or use qkr=False"
            )
        return set(attentions) if qkr else set()
    chosen: set[str] = set()
    for pattern in qkr:
        named = [name for name, _ in module.named_modules() if name and name_matches(name, pattern)]
        if not named or any(name not in attentions for name in named):
            raise ValueError(
                f"qkr has {pattern!r}, which names {', '.join(named) or 'nothing'}; allowed are the attentions that "
                f"OFQ quantizes: {', '.join(attentions) or 'none'}"
            )
        chosen |= set(named)
    return chosen


def _check_quantizable(module: nn.Module, parts: Parts) -> None:
    chosen = {**parts.inner, **parts.edges}
    try:
        check_weights(module, dict(_weights(chosen)), "quantize")
    except ShardedParameterError as error:
        raise ShardedParameterError(f"{error}; or call attach in configure_model, before fully_shard") from error
    linear = {name: part for name, part in chosen.items() if isinstance(part, nn.Linear)}
    check_replaceable(module, linear, "modules")
    for name, part in chosen.items():
        if isinstance(part, nn.Conv2d) and (type(part).forward is not nn.Conv2d.forward or is_parametrized(part)):
            raise ValueError(
                f"{name} is a {type(part).__name__} that does not compute what nn.Conv2d does, or whose weight "
                f"something else computes; make it plain first, or leave it out with modules, or edge_bits=None"
            )
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
            raise ValueError(
                f"{name} belongs to a TransformerEncoderLayer, which reads its weights in evaluation instead of "
                f"calling it; call torch.backends.mha.set_fastpath_enabled(False) before, or leave it out of modules"
            )


def _weights(chosen: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    """Yield what has a weight; the joint one of nn.MultiheadAttention has another name."""
    for name, part in chosen.items():
        for inner, layer in part.named_modules():
            if isinstance(layer, WEIGHTED):
                yield f"{name}.{inner}".rstrip("."), layer
        if getattr(part, "in_proj_weight", None) is not None:
            yield f"{name}.in_proj", SimpleNamespace(weight=part.in_proj_weight)


def quantize_parts(
    module: nn.Module,
    parts: Parts,
    *,
    weight_bits: int,
    act_bits: int | None,
    edge_bits: int | None,
    weight_quantizer: str,
    granularity: str,
    keep_query_bias: bool,
    force: bool,
) -> None:
    """Put quantized parts in the place of plain ones, all or none; they hold the same parameters.

    Args:
        module: The network.
        parts: What is quantized.
        weight_bits: Bits of inner weights.
        act_bits: Bits of inner inputs; ``None`` leaves them.
        edge_bits: Bits of the edges, and of their inputs if inner inputs are quantized; ``None`` leaves them plain.
        weight_quantizer: Of inner weights.
        granularity: Of inner inputs.
        keep_query_bias: As of ``quantize_attention``.
        force: As of ``quantize_attention``.

    Raises:
        ValueError: If one of them cannot be quantized.
    """
    unsigned = behind_gelu(module)
    inner = {"weight_bits": weight_bits, "act_bits": act_bits, "weight_quantizer": weight_quantizer}
    edge = {"weight_bits": edge_bits, "act_bits": None if act_bits is None else edge_bits, "weight_quantizer": "lsq"}
    made: dict[nn.Module, nn.Module] = {}
    for name, part in parts.inner.items():
        if isinstance(part, WEIGHTED):
            made[part] = _kind(part).from_layer(
                part, **inner, granularity=_granularity(part, granularity), signed=name not in unsigned
            )
        else:
            options = {**inner, "granularity": granularity, "keep_query_bias": keep_query_bias, "force": force}
            made[part] = quantize_attention(part, qkr=name in parts.products, name=name, **options)
    for name, part in parts.edges.items() if edge_bits is not None else ():
        if isinstance(part, WEIGHTED):
            made[part] = _kind(part).from_layer(
                part, **edge, granularity=_granularity(part, "tensor"), signed=name not in unsigned
            )
        else:
            made[part] = quantize_attention(part, **edge, granularity=granularity, name=name)
    replace_layers(module, made)


def _granularity(layer: nn.Module, wanted: str) -> str:
    """Return whose inputs share a step: a convolution knows no tokens, and its channels differ."""
    return wanted if isinstance(layer, nn.Linear) else "channel"


def _kind(layer: nn.Module) -> type[FakeQuantLinear] | type[FakeQuantConv2d]:
    return FakeQuantLinear if isinstance(layer, nn.Linear) else FakeQuantConv2d
