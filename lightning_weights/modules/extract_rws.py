"""Take a signature out of three networks."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError, check_choice
from lightning_weights.functional.rws import project_out
from lightning_weights.modules._signature_tensors import architecture, body, differences, is_running, network_tensors
from lightning_weights.modules.robust_weight_signature import MODES, RobustWeightSignature
from lightning_weights.modules.shallow_selector import ShallowSelector

Network = nn.Module | Mapping[str, Tensor]
SHOWN = 5  # differences in a message


def extract_rws(
    pretrained: Network | None,
    standard: Network,
    robust: Network,
    select: ShallowSelector | Sequence[str] | None = None,
    levels: int | None = None,
    corruption: str = "unknown",
    severity: int | None = None,
    mode: Literal["projected", "difference"] = "projected",
    example_input: Any = None,
) -> RobustWeightSignature:
    r"""Take the weights of robustness out of three networks of one architecture, tensor by tensor.

    With $a = \theta_{std} - \theta_{pre}$ and $p = \theta_{rob} - \theta_{pre}$ it is the part of p orthogonal to a:

    $$\mathrm{RWS} = p - \frac{\langle a, p\rangle}{\langle a, a\rangle}\, a$$

    Args:
        pretrained: Network from which both trainings began: a module, its state dict, or a checkpoint.
        standard: Network trained on clean data.
        robust: Network trained alike on corrupted data.
        select: Which tensors, or their names. ``None``: `ShallowSelector`'s defaults.
        levels: Number of levels that values are rounded to, a power of two from 4 to 256. ``None``: fp32.
        corruption: Name of what the data was corrupted by.
        severity: How strongly it was, 1 to 5, if that has a number.
        mode: ``projected`` as above, or ``difference``, a baseline: robust minus standard, for which ``pretrained``
            may be None.
        example_input: A batch for a selector that goes by the order in which layers run.

    Raises:
        ValueError: If networks differ in names or shapes outside of the classifier, one is missing, or a tensor can't
            be part of a signature.
        ShardedParameterError: If a network is sharded.

    Warns:
        LightningWeightsWarning: If the networks don't seem to have begun at ``pretrained``.

    Source: Cai, Zhang, Wang 2023, arXiv:2302.12480.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))
        >>> other = {name: tensor + 0.1 for name, tensor in network.state_dict().items()}
        >>> signature = extract_rws(network, network, other, corruption="fog")
        >>> list(signature.shapes), signature.dequantize()["0.bias"]
        (['0.weight', '0.bias'], tensor([0.1000, 0.1000]))
    """
    check_choice("mode", mode, MODES)
    if pretrained is None and mode == "projected":
        raise ValueError(
            "pretrained is None; what training added can't be told without the network that it began with. Give it, or "
            "use mode='difference'"
        )
    given = {"standard": standard, "robust": robust, **({} if mode == "difference" else {"pretrained": pretrained})}
    networks = {name: network_tensors(network) for name, network in given.items()}
    clean = networks["standard"]
    for name, tensors in networks.items():
        if found := differences(body(clean), body(tensors)):
            raise ValueError(f"standard and {name} differ in {len(found)} tensors: {'; '.join(found[:SHOWN])}")
    select = ShallowSelector() if select is None else select
    names = select.select(standard, example_input) if isinstance(select, ShallowSelector) else list(select)
    if unknown := [name for name in names if name not in body(clean) and not is_running(name)]:
        raise ValueError(f"select has {', '.join(unknown)}; there are {', '.join(body(clean))}")
    values = {name: _value(name, {key: tensors[name] for key, tensors in networks.items()}) for name in names}
    if mode == "projected":
        _check_origin(networks, names)
    return RobustWeightSignature.from_tensors(
        values,
        levels,
        corruption=corruption,
        severity=severity,
        mode=mode,
        architecture=architecture(clean),
        num_weights=sum(tensor.numel() for name, tensor in clean.items() if not is_running(name)),
    )


def _value(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    for key, tensor in tensors.items():
        if hasattr(tensor, "placements"):
            raise ShardedParameterError(f"{name} is sharded in {key} (a DTensor); use a gathered state dict")
        if is_running(name) or not tensor.is_floating_point() or tensor.is_meta:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device} in {key}; allowed are weights of floating type, no "
                f"running statistics"
            )
    exact = {key: tensor.detach().cpu().double() for key, tensor in tensors.items()}
    if "pretrained" not in exact:
        return (exact["robust"] - exact["standard"]).float()
    start = exact["pretrained"]
    return project_out(exact["robust"] - start, exact["standard"] - start).float()


def _check_origin(networks: Mapping[str, Mapping[str, Tensor]], names: Sequence[str]) -> None:
    begin = torch.cat([networks["pretrained"][name].detach().cpu().double().flatten() for name in names])
    for key in ("standard", "robust"):
        end = torch.cat([networks[key][name].detach().cpu().double().flatten() for name in names])
        moved, start = float((end - begin).norm()), float(begin.norm())
        if moved > start:
            warnings.warn(
                f"{key} is farther from pretrained (distance {moved:.3g}) than pretrained is from zero ({start:.3g}): "
                f"it was hardly trained from there; give the network that both trainings began with",
                LightningWeightsWarning,
                stacklevel=3,
            )
