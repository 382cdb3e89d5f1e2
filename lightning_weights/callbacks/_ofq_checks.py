"""What OFQ checks: optimizers, checkpoints, and networks that are quantized already."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules import FakeQuantAttention, FakeQuantized, StatsQuantizer, fake_quantized


def added_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return what the optimizer has to know: latent weights, learned scales and shifts, by name."""
    return {
        f"{name}.{key}": param
        for name, layer in fake_quantized(module).items()
        for key, param in layer.named_parameters()
        if param.requires_grad
    }


def remember(module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Note in every part that was quantized what was asked for.

    Args:
        module: The network.
        arguments: Arguments of OFQ that shape a network.
    """
    for part in module.modules():
        if isinstance(part, (FakeQuantized, FakeQuantAttention)):
            part.quantized_with = dict(arguments)  # type: ignore[assignment]


def check_same(module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Check that a network that is quantized already is what is asked for.

    Of layers that OFQ has not made, the quantizers and bits of weights are compared.

    Args:
        module: The network.
        arguments: What is asked for.

    Raises:
        ValueError: If it is something else.
    """
    layers = fake_quantized(module).values()
    statistical = {
        layer.weight_quantizer.bits for layer in layers if isinstance(layer.weight_quantizer, StatsQuantizer)
    }
    used = [used for part in module.modules() if (used := getattr(part, "quantized_with", None)) is not None]
    if not used:
        kind = "statsq" if statistical else "lsq"
        bits = statistical or {arguments["weight_bits"]}
        used = [{"weight_bits": found, "weight_quantizer": kind} for found in sorted(bits)]
    for theirs in used:
        if different := [name for name in theirs if theirs[name] != arguments[name]]:
            there, here = (", ".join(f"{name}={by[name]!r}" for name in different) for by in (theirs, arguments))
            raise ValueError(
                f"the network is quantized already, with {there}; asked for are {here}. Merge it first with "
                f"OFQ.merge(module), or give the same arguments"
            )


def described(module: nn.Module) -> dict[str, str]:
    """Return in words how every weight is quantized, by the name that the user knows."""
    return {
        plain_name(
            name
        ): f"{type(layer).__name__} {type(layer.weight_quantizer).__name__} {layer.weight_quantizer.bits}"
        for name, layer in fake_quantized(module).items()
    }


def check_layers(saved: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Check that a checkpoint has the same quantized weights.

    Args:
        saved: Descriptions of the checkpoint's.
        here: Descriptions of those that are to be loaded.

    Raises:
        ValueError: If it has others.
    """
    if different := [name for name in {**saved, **here} if saved.get(name) != here.get(name)]:
        name = different[0]
        raise ValueError(
            f"the checkpoint has other quantized weights: {', '.join(different)} ({name}: {saved.get(name)}, here "
            f"{here.get(name)}); give OFQ the arguments of the run that saved it"
        )


def check_settings(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that a checkpoint's network was quantized with the same settings.

    Args:
        saved: Settings in the checkpoint.
        here: Settings that are asked for.

    Raises:
        ValueError: If it was not.
    """
    if different := [name for name in here if saved.get(name) != here[name]]:
        name = different[0]
        raise ValueError(
            f"{name} is {here[name]!r}, but {saved.get(name)!r} in the checkpoint; give OFQ the arguments of the run "
            f"that saved it"
        )


def refuse_plain(checkpoint: Mapping[str, Any], stage: str) -> None:
    """Refuse to go on with the optimizer of a training without OFQ.

    Args:
        checkpoint: A checkpoint that knows nothing of OFQ.
        stage: What it is loaded for.

    Raises:
        ValueError: If a fit is resumed from it.
    """
    if stage == "fit" and checkpoint.get("optimizer_states"):
        raise ValueError(
            "the checkpoint is of a network without OFQ, and its optimizer's state belongs to another training; load "
            "its state_dict into the module before fit, and leave ckpt_path out"
        )
