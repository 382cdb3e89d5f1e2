"""Choose the layers of a network that are fine-tuned."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

ALL_LINEAR = "all-linear"


def target_layers(
    module: nn.Module, target_modules: str | Sequence[str], exclude_modules: Sequence[str] = ()
) -> dict[str, nn.Linear]:
    """Return the linear layers that ``target_modules`` names and ``exclude_modules`` does not, in their order.

    A pattern names a layer by its full name or by the last parts of it (``q_proj`` finds
    ``model.layers.0.self_attn.q_proj``), and may hold ``*`` and ``?``; with them it takes the linear layers among what
    it fits. ``all-linear`` takes every linear layer but the output embedding of a language model and layers whose
    weight another module shares. What ``exclude_modules`` names is left out with all that is inside it.

    Args:
        module: Where to look.
        target_modules: ``all-linear``, a pattern or several.
        exclude_modules: Patterns of layers to leave out.

    Raises:
        ValueError: If a pattern names nothing or something else than a linear layer, or if no layer is left.
    """
    parts = dict(module.named_modules())
    linear = {name: part for name, part in parts.items() if isinstance(part, nn.Linear)}
    found = ", ".join(linear) or "none"
    if target_modules == ALL_LINEAR:
        unwanted = _output_embeddings(module) | _shared(module)
        chosen = {name: layer for name, layer in linear.items() if id(layer) not in unwanted}
    else:
        patterns = [target_modules] if isinstance(target_modules, str) else list(target_modules)
        for pattern in patterns:
            named = [name for name in parts if name_matches(name, pattern)]
            if not named:
                raise ValueError(f"target_modules has {pattern!r}, which names no module; linear layers are: {found}")
            other = [name for name in named if name not in linear]
            if other and (len(other) == len(named) or not set("*?[") & set(pattern)):
                raise ValueError(
                    f"target_modules has {pattern!r}, which names {other[0]}, a {type(parts[other[0]]).__name__}; only "
                    f"nn.Linear layers can be targets: {found}"
                )
        chosen = {name: layer for name, layer in linear.items() if any(name_matches(name, p) for p in patterns)}
    left_out = [name for name in parts if any(name_matches(name, pattern) for pattern in exclude_modules)]
    chosen = {name: layer for name, layer in chosen.items() if not any(is_inside(name, part) for part in left_out)}
    if not chosen:
        raise ValueError(
            f"target_modules={target_modules!r} without exclude_modules={list(exclude_modules)} leaves no layer; "
            f"nn.Linear layers are: {found}"
        )
    return chosen


def name_matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern names a module: its full name or the last parts of it, with ``*`` and ``?``."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def is_inside(name: str, module: str) -> bool:
    """Tell whether something with this name is a module or belongs to it."""
    return name == module or name.startswith(f"{module}.")


def _output_embeddings(module: nn.Module) -> set[int]:
    getters = [getattr(part, "get_output_embeddings", None) for part in module.modules()]
    return {id(getter()) for getter in getters if callable(getter)}


def _shared(module: nn.Module) -> set[int]:
    owners: dict[int, list[int]] = {}
    for part in module.modules():
        for param in part.parameters(recurse=False):
            owners.setdefault(id(param), []).append(id(part))
    return {owner for several in owners.values() if len(several) > 1 for owner in several}
