"""Which hyper-model predicts which tensor of a network, and which tensors are left alone."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor

from lightning_weights.errors import check_choice, name_list
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules._described_tensors import storage_of

Kind = Literal["conv", "fc", "bias"]
Route = Literal["paper", "shape3x3"]
KINDS, ROUTES = get_args(Kind), get_args(Route)
NOT_PREDICTED = (
    r"(?i)norm[^.]*\.[^.]+$",
    r"(^|[._])(bn|ln|gn)_?\d*\.[^.]+$",
    r"(?<!patch_)(?<!patch)emb(ed(ding)?s?)?(_tokens)?\d*(\.weight)?$",
    r"(^|[._])(wte|wpe)\.weight$",
    r"(^|[._])pos(_|ition|$)",
    r"(^|_|\.)(cls|class|dist|distillation|mask|register|reg)_tokens?$",
)


def kind_of_shape(shape: Sequence[int], route: Route = "paper") -> Kind | None:
    """Return which hyper-model serves a tensor of this shape.

    Args:
        shape: Shape of the whole tensor, as the network has it.
        route: ``paper``: more than two dimensions are ``conv`` and two ``fc``. ``shape3x3``: only kernels of 3 x 3 are
            ``conv`` and all others ``fc``, as the data of the published meta-training were sorted.

    Returns:
        ``conv``, ``fc``, ``bias``, or ``None`` for a scalar.

    Examples:
        >>> kind_of_shape((16, 8, 1, 1)), kind_of_shape((16, 8, 1, 1), "shape3x3"), kind_of_shape((10,))
        ('conv', 'fc', 'bias')
    """
    check_choice("route", route, ROUTES)
    if len(shape) < 2:
        return "bias" if len(shape) else None
    if route == "paper":
        return "conv" if len(shape) > 2 else "fc"
    return "conv" if len(shape) == 4 and tuple(shape[2:]) == (3, 3) else "fc"


def weight_kinds(
    tensors: Mapping[str, Tensor],
    route: Route = "paper",
    exclude: Sequence[str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Kind]:
    """Return the tensors of a network that are predicted, with the hyper-model that does it.

    Left alone are integers, scalars, normalisation layers (known by running statistics or a weight of one dimension),
    other vectors than biases, and what ``exclude`` names.

    Args:
        tensors: The network's tensors by name; of tied ones the first name is given, or none if one of their names is
            left alone.
        route: As in [`kind_of_shape`][lightning_weights.modules.kind_of_shape].
        exclude: Regular expressions, looked for anywhere in a name. ``None``: those of normalisation layers,
            embeddings, positions and tokens.
        shapes: Shapes of the whole tensors, where others are given: flat shards.

    Returns:
        ``conv``, ``fc`` or ``bias`` by name.

    Raises:
        ValueError: If an expression is none, or a shape is missing its tensor.

    Examples:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
        >>> weight_kinds(network.state_dict())
        {'0.weight': 'conv', '0.bias': 'bias', '2.weight': 'fc', '2.bias': 'bias'}
    """
    check_choice("route", route, ROUTES)
    patterns = _compiled(exclude)
    sizes = whole_shapes(tensors, shapes)
    norms = normalisation_layers(sizes)
    chosen: dict[str, Kind] = {}
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(storage_of(tensor), []).append(name)
    for names in groups.values():
        kinds = [_kind(name, tensors[name], sizes[name], route, norms, patterns) for name in names]
        if kinds[0] is not None and None not in kinds:
            chosen[names[0]] = kinds[0]
    return chosen


def normalisation_layers(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the names of the layers that have running statistics or a weight of one dimension.

    Args:
        shapes: Shapes of the network's tensors by name.

    Examples:
        >>> sorted(normalisation_layers({"0.weight": (4, 3), "1.weight": (4,), "1.bias": (4,), "2.running_mean": (4,)}))
        ['1', '2']
    """
    layers = set()
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in ("running_mean", "running_var") or (leaf == "weight" and len(shape) == 1):
            layers.add(layer)
    return layers


def whole_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]] | None) -> dict[str, Sequence[int]]:
    """Return the shape that every tensor has in the network.

    Args:
        tensors: The tensors.
        shapes: Shapes of those that are shards.

    Raises:
        ValueError: If a shape belongs to no tensor or to a smaller one.
    """
    shapes = shapes or {}
    if strange := sorted(shapes.keys() - tensors.keys()):
        raise ValueError(f"shapes has {strange}, which no snapshot has; allowed are the names of tensors")
    for name, shape in shapes.items():
        if tensors[name].numel() > math.prod(shape):
            raise ValueError(
                f"shapes[{name!r}] is {tuple(shape)}, too small for the {tensors[name].numel()} entries of the shard"
            )
    return {name: shapes.get(name, tensor.shape) for name, tensor in tensors.items()}


def _compiled(exclude: Sequence[str] | None) -> list[re.Pattern[str]]:
    patterns = []
    for pattern in name_list("exclude", NOT_PREDICTED if exclude is None else exclude, " or None"):
        try:
            patterns.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"exclude has {pattern!r}, which is no regular expression: {error}") from error
    return patterns


def _kind(
    name: str, tensor: Tensor, shape: Sequence[int], route: Route, norms: set[str], patterns: list[re.Pattern[str]]
) -> Kind | None:
    layer, _, leaf = name.rpartition(".")
    kind = kind_of_shape(shape, route)
    if not tensor.is_floating_point() or kind is None:
        return None
    if layer in norms or (kind == "bias" and "bias" not in leaf):
        return None
    return None if any(pattern.search(plain_name(name)) for pattern in patterns) else kind
