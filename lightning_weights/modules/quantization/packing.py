"""Put layers with packed codes into a network, and make room for those that a state dict has."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_weights.modules.quantization.marks import mark
from lightning_weights.modules.quantized_linear import QuantizedLinear

SIGN = ".code_bits"  # end of a key that only packed layers have


def replace_modules(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put new layers wherever the old ones stand.

    Args:
        module: Network.
        replacements: New layers by old ones.
    """
    places = {name: part for name, part in module.named_modules(remove_duplicate=False) if part in replacements}
    for name, part in places.items():
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, replacements[part])


def make_room(module: nn.Module, state_dict: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Put an empty ``QuantizedLinear`` wherever a state dict has one and the network a linear layer.

    Args:
        module: Network that the state dict is about to be loaded into.
        state_dict: The state dict.
        prefix: What its keys start with before the network's own names.

    Returns:
        Names of the layers that were replaced.

    Examples:
        >>> saved = nn.Sequential(QuantizedLinear(64, 8, bits=3, groups=2)).state_dict()
        >>> network = nn.Sequential(nn.Linear(64, 8))
        >>> make_room(network, saved)
        ['0']
        >>> network.load_state_dict(saved)
        <All keys matched successfully>
    """
    ends = [key.removesuffix(SIGN) for key in state_dict if key.startswith(prefix) and key.endswith(SIGN)]
    parts = dict(module.named_modules())
    replaced = []
    for end in ends:
        old = parts.get(end.removeprefix(prefix))
        if isinstance(old, nn.Linear):
            new = QuantizedLinear.for_state(state_dict, f"{end}.").to(old.weight.device)
            new.train(old.training)
            mark(new, "the run that saved it")
            replace_modules(module, {old: new})
            replaced.append(end.removeprefix(prefix))
    return replaced
