"""Choose the layers of a network that are fine-tuned."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lightning_weights.errors import name_list
from lightning_weights.functional.fingerprint import plain_name

ALL_LINEAR = "all-linear"


def target_names(target_modules: object) -> str | list[str]:
    """Return what a user gave as ``target_modules``, a list as a plain one.

    Args:
        target_modules: A pattern, ``all-linear`` or several patterns.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(target_modules, str) and target_modules:
        return target_modules
    return name_list("target_modules", target_modules, f", one name, or {ALL_LINEAR!r} for all linear layers")


def target_layers(
    module: nn.Module,
    target_modules: str | Sequence[str],
    exclude_modules: Sequence[str] = (),
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> dict[str, nn.Module]:
    """Return the linear layers that ``target_modules`` names and ``exclude_modules`` does not, in their order.

    A pattern names a layer by its full name or by the last parts of it (``q_proj`` finds
    ``model.layers.0.self_attn.q_proj``), and may hold ``*`` and ``?``; with them it takes the linear layers among what
    it fits. ``all-linear`` takes every linear layer but the output embedding of a language model and layers whose
    weight another module shares. What ``exclude_modules`` names is left out with all that is inside it.

    Args:
        module: Where to look.
        target_modules: ``all-linear``, a pattern or several.
        exclude_modules: Patterns of layers to leave out.
        kinds: What counts as a linear layer.

    Raises:
        ValueError: If a pattern names nothing or something else than a linear layer, or if no layer is left.
    """
    parts = dict(module.named_modules())
    linear = {name: part for name, part in parts.items() if isinstance(part, kinds)}
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


def check_excluded(module: nn.Module, exclude_modules: Sequence[str]) -> None:
    """Check that every pattern of ``exclude_modules`` names something.

    Args:
        module: Where to look.
        exclude_modules: The patterns.

    Raises:
        ValueError: If one names no module.
    """
    names = [name for name, _ in module.named_modules() if name]
    for pattern in exclude_modules:
        if not any(name_matches(name, pattern) for name in names):
            raise ValueError(f"exclude_modules has {pattern!r}, which names no module of {', '.join(names)}")


def check_same_targets(present: Collection[str], asked: Collection[str], target_modules: object, way_out: str) -> None:
    """Check that a network has been changed in the places that are asked for now.

    Args:
        present: Names of the layers that were changed before.
        asked: Names of the layers that are asked for.
        target_modules: What asks for them.
        way_out: What can be done about others.

    Raises:
        ValueError: If there are others.
    """
    if set(present) != set(asked):
        raise ValueError(
            f"target_modules={target_modules!r} asks for {', '.join(asked)}, but the network has been changed at "
            f"{', '.join(present)} before; {way_out}"
        )


def name_matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern names a module: its full name or the last parts of it, with ``*`` and ``?``."""
    forms = (name, plain_name(name))
    return any(fnmatchcase(form, pattern) or fnmatchcase(form, f"*.{pattern}") for form in forms)


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
