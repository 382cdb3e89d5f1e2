"""Weights after every session of forgetting, and their files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_weights.errors import check_number
from lightning_weights.modules._described_tensors import read_tensors, write_tensors

KIND = "a snapshot"
NAMES = "session_*.safetensors"


@dataclass(frozen=True, eq=False)
class Snapshot(Mapping[str, Tensor]):
    """A network's tensors by name after one session of forgetting, and which session it was.

    Args:
        tensors: Tensors by name.
        session: Number of the session: 0 trained on all data, the last one on the smallest subset.
        sessions: How many sessions there are.
        samples: How many samples the session trained on.
        rate: Share of a session's samples that is left in the next one, in (0, 1).
        subset_seed: Seed of the shuffle whose prefixes the subsets are.
        about: What else is known of the run: numbers, strings, lists and dicts.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> import torch
        >>> snapshot = Snapshot({"weight": torch.ones(2)}, session=1, sessions=5, samples=600, rate=0.5, subset_seed=0)
        >>> list(snapshot), snapshot.samples
        (['weight'], 600)
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    session: int
    sessions: int
    samples: int
    rate: float
    subset_seed: int
    about: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_number("sessions", self.sessions, low=1, whole=True)
        check_number("session", self.session, low=0, high=self.sessions, whole=True)
        check_number("samples", self.samples, low=1, whole=True)
        check_number("rate", self.rate, low=0.0, low_allowed=False, high=1.0)
        check_number("subset_seed", self.subset_seed, low=0, whole=True)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    __eq__ = object.__eq__  # comparing tensors gives no truth value
    __hash__ = object.__hash__


def write_snapshot(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    session: int,
    sessions: int,
    samples: int,
    rate: float,
    subset_seed: int,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Write a network's tensors after one session to ``session_<number>.safetensors``, whole or not at all.

    Args:
        folder: Folder of the run, which is made if it is not there.
        tensors: Whole tensors by name, such as a state dict; their types are kept, and tied ones are stored once.
        session: Number of the session: 0 trained on all data, the last one on the smallest subset.
        sessions: How many sessions there will be.
        samples: How many samples the session trained on.
        rate: Share of a session's samples that is left in the next one, in (0, 1).
        subset_seed: Seed of the shuffle whose prefixes the subsets are.
        about: What else is known of the run: numbers, strings, lists and dicts.

    Returns:
        The path of the file.

    Raises:
        ValueError: If a number is out of range, something is no tensor, or ``about`` can't be written as JSON.
        ShardedParameterError: If a tensor is sharded.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> import tempfile, torch
        >>> folder, about = tempfile.mkdtemp(), {"sessions": 2, "rate": 0.5, "subset_seed": 0}
        >>> for session, samples in enumerate([600, 300]):
        ...     _ = write_snapshot(folder, {"weight": torch.ones(2)}, session=session, samples=samples, **about)
        >>> [(snapshot.session, snapshot.samples) for snapshot in read_snapshots(folder)]
        [(1, 300), (0, 600)]
    """
    numbers = {"session": session, "sessions": sessions, "samples": samples, "rate": rate, "subset_seed": subset_seed}
    Snapshot(tensors, **numbers, about=about)  # checks them
    path = Path(folder) / NAMES.replace("*", f"{session:02d}")
    write_tensors(path, tensors, KIND, {**numbers, "about": dict(about or {})})
    return str(path)


def read_snapshots(source: str | Path | Sequence[str | Path], last: int | None = None) -> list[Snapshot]:
    """Read a run's snapshots, the one that has forgotten most first.

    Args:
        source: Folder that [`write_snapshot`][lightning_weights.modules.write_snapshot] has filled, or its files in
            any order.
        last: How many to give, those trained on most data. ``None``: all.

    Returns:
        Snapshots with descending session numbers.

    Raises:
        ValueError: If sessions are missing or come from different runs, or the order of the subsets is not clear.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> read_snapshots("nowhere")
        Traceback (most recent call last):
        ValueError: nowhere holds no session_*.safetensors; give a folder that write_snapshot has filled
    """
    paths = _files(source)
    snapshots = [Snapshot(tensors, **about) for tensors, about in (read_tensors(path, KIND) for path in paths)]
    if last is not None:
        check_number("last", last, low=1, high=snapshots[0].sessions + 1, whole=True)
    wanted = range(snapshots[0].sessions if last is None else last)
    numbers = [snapshot.session for snapshot in snapshots]
    missing = sorted(set(wanted) - set(numbers))
    doubled = sorted({number for number in numbers if numbers.count(number) > 1})
    if missing or doubled:
        raise ValueError(
            f"{source} lacks the sessions {missing} and has {doubled} more than once; needed is each of "
            f"{list(wanted)} once"
        )
    chosen = sorted((s for s in snapshots if s.session in wanted), key=lambda snapshot: -snapshot.session)
    check_forgetting(chosen)
    return chosen


def check_forgetting(snapshots: Sequence[Mapping[str, Tensor]], samples: Sequence[int] | None = None) -> None:
    """Check that a history is of one network and begins with the snapshot that has forgotten most.

    What is known decides: sessions and samples of a [`Snapshot`][lightning_weights.modules.Snapshot], nothing of a
    plain dict.

    Args:
        snapshots: The history.
        samples: How many samples each was trained on, if snapshots don't say so.

    Raises:
        ValueError: If the order is another or not clear, snapshots come from different runs, or their tensors differ
            in name, shape or type.

    Examples:
        >>> import torch
        >>> history = [{"weight": torch.zeros(2)}, {"weight": torch.ones(2)}]
        >>> check_forgetting(history, samples=[300, 600])
        >>> check_forgetting(history, samples=[600, 300])
        Traceback (most recent call last):
        ValueError: the snapshots were trained on [600, 300] samples; most forgotten comes first, so that ...
    """
    known = [snapshot for snapshot in snapshots if isinstance(snapshot, Snapshot)]
    for name in ("rate", "subset_seed", "sessions"):
        if len(values := {getattr(snapshot, name) for snapshot in known}) > 1:
            raise ValueError(f"the snapshots come from different runs: {name} is {sorted(values)}")
    sessions = [snapshot.session for snapshot in known]
    if len(known) == len(snapshots) and len({a - b for a, b in pairwise(sessions)}) > 1:
        raise ValueError(f"the snapshots are those of sessions {sessions}; allowed are sessions at equal distances")
    if samples is None:
        samples = [snapshot.samples for snapshot in known]
    elif len(samples) != len(snapshots):
        raise ValueError(f"samples has {len(samples)} numbers for {len(snapshots)} snapshots; give one for each")
    _check_ascending(list(samples), f"trained on {list(samples)} samples", "samples ascend")
    _check_ascending([-session for session in sessions], f"taken after the sessions {sessions}", "sessions descend")
    _check_alike(snapshots)


def _check_ascending(values: list[int], described: str, rule: str) -> None:
    if all(a < b for a, b in pairwise(values)):
        return
    remedy = "reverse the list" if values == sorted(values, reverse=True) else "sort the list"
    if len(set(values)) < len(values):
        remedy = "equal numbers leave the order open, so leave the snapshots that have them out"
    raise ValueError(f"the snapshots were {described}; most forgotten comes first, so that {rule}: {remedy}")


def _check_alike(snapshots: Sequence[Mapping[str, Tensor]]) -> None:
    last = snapshots[-1]
    for place, snapshot in enumerate(snapshots):
        if odd := sorted(snapshot.keys() ^ last.keys()):
            raise ValueError(f"snapshot {place} and the last one differ in the names {odd}; give those of one network")
        for name, tensor in snapshot.items():
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name} is a {type(tensor).__name__} in snapshot {place}; allowed are tensors")
            if (tensor.shape, tensor.dtype) != (last[name].shape, last[name].dtype):
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} of {tensor.dtype} in snapshot {place} and "
                    f"{tuple(last[name].shape)} of {last[name].dtype} in the last one; give those of one network"
                )


def _files(source: Any) -> list[Path]:
    if isinstance(source, Sequence) and not isinstance(source, str):
        if not source:
            raise ValueError("source is an empty list; give the files of a run, or its folder")
        return [Path(path) for path in source]
    paths = sorted(Path(source).glob(NAMES))
    if not paths:
        raise ValueError(f"{source} holds no {NAMES}; give a folder that write_snapshot has filled")
    return paths
