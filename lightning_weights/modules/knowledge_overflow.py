"""Weights as if a network had been trained on more data, from the way in which it forgot."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.kernels import local_shards
from lightning_weights.modules._described_tensors import storage_of
from lightning_weights.modules.known_bank import KNOWNBank
from lightning_weights.modules.snapshots import check_forgetting
from lightning_weights.modules.weight_kinds import Kind, normalisation_layers, weight_kinds, whole_shapes

Norm = Literal["keep", "reset"]
ROWS = 1 << 20  # weights at a time: 20 MB of histories
CPU_ROWS = 1 << 14  # where more are no faster
EXACT = (torch.float32, torch.float64)
AT_THE_START = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


@torch.no_grad()
def predict_overflowed(
    snapshots: Sequence[Mapping[str, Tensor]],
    bank: KNOWNBank,
    recursions: int = 1,
    exclude: Sequence[str] | None = None,
    norm: Norm = "keep",
    cast: bool = False,
    samples: Sequence[int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Tensor]:
    r"""Predict the weights of a network trained on more data than there are, from snapshots of its forgetting.

    Each weight follows its own history w = [θ_{S-1}, …, θ_0], from the snapshot that has forgotten most to the network
    trained on all data, and each recursion appends its prediction to the history:

    $$\hat\theta_{-1} = \theta_0 + \delta(w), \qquad w \leftarrow [w_1, \dots, w_{S-1}, \hat\theta_{-1}]$$

    If a subset has the share r of the samples of the one before, n recursions stand for r^{-n} times as many samples.
    [`weight_kinds`][lightning_weights.modules.weight_kinds] says which tensors are predicted. All others, such as
    normalisation layers, embeddings and integers, are copies of the last snapshot's. Statistics of batch normalisation
    don't fit predicted weights: estimate them anew before the network is used without further training.

    Every weight is predicted by itself. So ``DTensor``s are predicted shard by shard, without communication, and every
    process of a distributed run computes the same.

    Args:
        snapshots: S state dicts or [`Snapshot`][lightning_weights.modules.Snapshot]s, most forgotten first. They are
            not changed.
        bank: Hyper-models for histories of S values.
        recursions: How often to predict; 0 returns copies of the last snapshot's tensors.
        exclude: Regular expressions of names that are left alone. ``None``: those of normalisation layers,
            embeddings, positions and tokens.
        norm: ``keep`` copies normalisation layers from the last snapshot. ``reset`` gives those with a bias or running
            statistics what they had before training, as the published script does.
        cast: Whether weights of less than 32 bits are predicted, as float32; their differences are mostly rounding.
        samples: How many samples each snapshot was trained on, if it does not say so, to check the order.
        shapes: Shapes of the whole tensors, for snapshots that hold plain, flat shards.
        device: Where to compute, such as ``cuda``. ``None``: where the tensors are.

    Returns:
        Tensors by name, with the devices of the last snapshot's; of tied tensors every name has the same.

    Raises:
        ValueError: If snapshots are too many or too few, in training order, of different networks, in low precision or
            not finite, if nothing can be predicted, or an argument is out of range.
        ShardedParameterError: If the shards of one tensor are laid out differently.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059.

    Differs from the published script, which predicts layers of exactly two tensors and leaves everything else as the
    network was built: here layers without a bias are predicted, too, and what is not predicted is kept.

    Examples:
        >>> import torch
        >>> from lightning_weights.modules import KNOWN
        >>> history = [{"0.weight": torch.full((2, 3), 0.1 * s), "1.running_mean": torch.ones(2)} for s in range(5)]
        >>> predicted = predict_overflowed(history, KNOWNBank(conv=KNOWN(), fc=KNOWN(), bias=KNOWN()), recursions=2)
        >>> predicted["0.weight"].shape, torch.equal(predicted["1.running_mean"], torch.ones(2))
        (torch.Size([2, 3]), True)
    """
    snapshots = list(snapshots)
    check_number("recursions", recursions, low=0, whole=True)
    check_choice("norm", norm, get_args(Norm))
    if len(snapshots) != bank.history:
        raise ValueError(
            f"there are {len(snapshots)} snapshots, and the bank's histories have {bank.history}; give as many as "
            f"these, those trained on most data, or a bank for histories of {len(snapshots)}"
        )
    check_forgetting(snapshots, samples)
    last = snapshots[-1]
    kinds = weight_kinds(last, bank.route, exclude, shapes)
    if not kinds:
        raise ValueError(f"nothing is predicted: none of {list(last)} is a weight or bias that exclude leaves")
    for name, tensor in last.items():
        _check_precision(name, tensor, name in kinds, cast)
    reset = _normalisers(last, shapes) if norm == "reset" else set()
    done: dict[object, Tensor] = {}
    if recursions:
        histories = {name: [snapshot[name] for snapshot in snapshots] for name in kinds}
        found = _predict(histories, kinds, bank, recursions, device)
        done = {storage_of(last[name]): tensor for name, tensor in found.items()}
    predicted = {}
    for name, tensor in last.items():
        place = storage_of(tensor)
        if place not in done:
            done[place] = _untouched(name, tensor, reset)
        predicted[name] = done[place]
    return predicted


def _predict(
    histories: Mapping[str, list[Tensor]],
    kinds: Mapping[str, Kind],
    bank: KNOWNBank,
    recursions: int,
    device: str | torch.device | None,
) -> dict[str, Tensor]:
    """Return the last predictions of tensors; of sharded ones, this process's shards."""
    shards, results = {}, {}
    groups: dict[tuple[Kind, torch.dtype, torch.device], list[str]] = {}
    for name, history in histories.items():
        shards[name] = [group[0] for group in local_shards(*([tensor.detach()] for tensor in history))]
        last = shards[name][-1]
        exact = last.dtype if last.dtype in EXACT else torch.float32
        results[name] = torch.empty(last.shape, dtype=exact, device=last.device)
        groups.setdefault((kinds[name], exact, last.device), []).append(name)
    for (kind, exact, place), names in groups.items():
        for piece in _pieces({name: shards[name] for name in names}, torch.device(device or place)):
            columns = torch.cat([part.columns for part in piece], dim=1).to(device or place, exact)
            values = bank.nowcast(columns.t(), kind, recursions)[:, -1]
            values = values.split([part.columns.shape[1] for part in piece])
            for part, found in zip(piece, values, strict=True):
                _check_finite(part, found, kind)
                results[part.name].view(-1)[part.start : part.start + len(found)] = found.to(place)
    return {name: _as_shard_of(histories[name][-1], result) for name, result in results.items()}


class _Part(NamedTuple):
    """Histories of some weights of a tensor, from the one at ``start`` on, as columns."""

    name: str
    start: int
    columns: Tensor


def _pieces(shards: Mapping[str, list[Tensor]], device: torch.device) -> Iterator[list[_Part]]:
    """Yield the histories of so many weights at a time: parts of a large tensor, or small ones together."""
    most = CPU_ROWS if device.type == "cpu" else ROWS
    piece: list[_Part] = []
    room = most
    for name, history in shards.items():
        flat = [shard.reshape(-1) for shard in history]
        start = 0
        while start < len(flat[-1]):
            columns = torch.stack([values[start : start + room] for values in flat])
            piece.append(_Part(name, start, columns))
            start, room = start + columns.shape[1], room - columns.shape[1]
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def _check_finite(part: _Part, found: Tensor, kind: Kind) -> None:
    if not part.columns.isfinite().all():
        raise ValueError(
            f"{part.name} has values that are not finite in its history; look for the session that diverged"
        )
    if not found.isfinite().all():
        raise ValueError(f"the bank's prediction of {part.name} is not finite; its {kind} hyper-model can't be used")


def _as_shard_of(last: Any, shard: Tensor) -> Tensor:
    if not hasattr(last, "placements"):
        return shard
    return type(last).from_local(
        shard, last.device_mesh, last.placements, run_check=False, shape=last.shape, stride=last.stride()
    )


def _normalisers(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]] | None) -> set[str]:
    """Return the normalisation layers whose first values are known: a lone vector can be anything, such as slopes."""
    layers = normalisation_layers(whole_shapes(tensors, shapes))
    return {layer for layer in layers if tensors.keys() & {f"{layer}.running_mean", f"{layer}.bias"}}


def _untouched(name: str, tensor: Tensor, reset: set[str]) -> Tensor:
    """Return a copy, or what a normalisation layer has before training."""
    layer, _, leaf = name.rpartition(".")
    if layer in reset and leaf in AT_THE_START:
        return torch.full_like(tensor, AT_THE_START[leaf])
    return tensor.detach().clone()


def _check_precision(name: str, tensor: Tensor, predicted: bool, cast: bool) -> None:
    exact = tensor.dtype in EXACT
    codes = not tensor.is_floating_point() and tensor.dim() > 1 and name.rpartition(".")[2] == "weight"
    if not cast and ((predicted and not exact) or codes):
        raise ValueError(
            f"{name} is of {tensor.dtype}: the differences of its snapshots are rounding more than training. Take the "
            f"snapshots from float32 weights, or give cast=True to predict floating weights all the same, as float32"
        )
