"""State dicts that know of how many bits a quantizer was."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def save_bits(quantizer: nn.Module) -> None:
    """Let state dicts say how many bits a quantizer has, and refuse those of other bits.

    The number is among the metadata that ``state_dict()`` returns along with the tensors, so that there is no key for
    it; where metadata got lost, nothing is checked.

    Args:
        quantizer: Has a number of ``bits``.
    """
    quantizer.register_state_dict_post_hook(_write)
    quantizer.register_load_state_dict_pre_hook(_check)


def _write(quantizer: Any, state_dict: Mapping[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    metadata["bits"] = quantizer.bits


def _check(quantizer: Any, state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any], *more: Any) -> None:
    saved = metadata.get("bits", quantizer.bits)
    if saved != quantizer.bits:
        more[-1].append(
            f"{prefix.rstrip('.')} is of {quantizer.bits} bits and the state dict of {saved}; quantize with {saved}"
        )
