"""Histories of weights from folders of snapshots: windows, kinds, the runs that are held out, and refusals."""

import pytest
import torch
from torch import nn

from lightning_weights.data import TrajectoryDataModule
from lightning_weights.data.trajectories import run_folders, weight_histories
from lightning_weights.modules import write_snapshot

SESSIONS = 7


def network():
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 3))


def record(folder, seed=0, sessions=SESSIONS):
    """Write a run whose weights are numbers that tell the run, the session and the place."""
    states = []
    for session in range(sessions):
        generator = torch.Generator().manual_seed(100 * seed + session)
        state = {name: torch.rand(value.shape, generator=generator) for name, value in network().state_dict().items()}
        write_snapshot(
            folder, state, session=session, sessions=sessions, samples=1000 - session, rate=0.5, subset_seed=0
        )
        states.append(state)
    return states[::-1]  # the most forgotten first


def expected(states, names):
    return torch.stack([torch.cat([state[name].flatten() for name in names]) for state in states], dim=1)


KINDS = {"conv": ["0.weight"], "fc": ["3.weight"], "bias": ["0.bias", "3.bias"]}


@pytest.mark.parametrize("kind", KINDS)
def test_histories_are_the_weights_of_a_kind_and_norms_are_left_out(kind, tmp_path):
    states = record(tmp_path)
    assert torch.equal(weight_histories(tmp_path, kind), expected(states, KINDS[kind]))


def test_every_window_predicts_the_value_that_follows(tmp_path):
    states = record(tmp_path)
    data = TrajectoryDataModule([str(tmp_path)], window=5, batch_size=7, validation_share=0.0)
    histories, following = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))
    rows = expected(states, KINDS["fc"])
    windows = {tuple(row[start : start + 6].tolist()) for row in rows for start in (0, 1)}
    assert {(*history.tolist(), value.item()) for history, value in zip(histories, following, strict=True)} == windows
    assert len(histories) == 2 * 12
    assert data.val_dataloader() == []


def test_validation_serves_whole_runs_that_are_not_trained_on(tmp_path):
    values = {}
    for run in range(5):
        states = record(tmp_path / f"run{run}", seed=run)
        values[run] = set(expected(states, KINDS["fc"]).flatten().tolist())
    data = TrajectoryDataModule([str(tmp_path)], validation_share=0.4, seed=1)
    trained = {value for history, _ in data.train_dataloader() for value in history.flatten().tolist()}
    validated = {value for history, _ in data.val_dataloader() for value in history.flatten().tolist()}
    runs = [{run for run, known in values.items() if known & found} for found in (trained, validated)]
    assert list(map(len, runs)) == [3, 2]
    assert not runs[0] & runs[1]


def test_large_networks_may_be_cut_and_the_seed_decides(tmp_path):
    record(tmp_path)
    rows = [
        TrajectoryDataModule([str(tmp_path)], validation_share=0.0, max_weights=4, seed=seed).train_dataloader()
        for seed in (0, 0, 1)
    ]
    first, same, other = ({tuple(h.tolist()) for histories, _ in loader for h in histories} for loader in rows)
    assert len(first) == 2 * 4
    assert first == same != other


def test_nothing_draws_from_the_global_generator(tmp_path):
    record(tmp_path)
    state = torch.get_rng_state()
    for _ in TrajectoryDataModule([str(tmp_path)], validation_share=0.0, max_weights=3).train_dataloader():
        pass
    assert torch.equal(state, torch.get_rng_state())


def test_folders_may_hold_runs_or_be_runs(tmp_path):
    for run in ("a", "b"):
        record(tmp_path / run, sessions=2)
    assert run_folders([str(tmp_path)]) == [tmp_path / "a", tmp_path / "b"]
    assert run_folders([str(tmp_path / "b")]) == [tmp_path / "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 7}, "has 7 sessions; window=7 needs at least 8"),
        ({"exclude": [r"3\."]}, "kind is 'fc', and none of 1 runs to train on has such weights"),
        ({"files": []}, "files is empty"),
        ({"files": ["nowhere"]}, "nowhere has no snapshots, nor has a folder in it"),
    ],
)
def test_what_can_not_be_used_is_told_when_the_data_is_set_up(options, message, tmp_path):
    record(tmp_path)
    data = TrajectoryDataModule(**{"files": [str(tmp_path)], "validation_share": 0.0, **options})
    with pytest.raises(ValueError, match=message):
        data.setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": "runs"}, "files is 'runs'; allowed is a list of names"),
        ({"kind": "matrix"}, "kind is 'matrix'"),
        ({"window": 1}, "window is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"max_weights": 0}, "max_weights is 0"),
        ({"route": "square"}, "route is 'square'"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryDataModule(**{"files": ["runs"], **options})
