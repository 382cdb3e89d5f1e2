"""DDP and FSDP2 on two CPU processes against one process with the same samples per step."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, DistributedSampler

from tests.behaviour.subjects import SETUPS, VARIANTS
from tests.helpers.battery import NOISE, SaveAt, differing, small_module, tasks, train
from tests.helpers.two_processes import run_on_two

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.slow]

ROWS = {row.name: row for row in (*SETUPS, *VARIANTS)}
STRATEGIES = {
    "ddp": DDPStrategy,
    "fsdp2": partial(ModelParallelStrategy, data_parallel_size=2, tensor_parallel_size=1),
}
TOLERANCE = 1e-6  # gradients are summed in another order
CASES = [(strategy, name) for strategy in STRATEGIES for name in ROWS]
REFUSED = [(strategy, name) for strategy, name in CASES if strategy in ROWS[name].refuses]
ALLOWED = [case for case in CASES if case not in REFUSED]


def half_batches() -> Any:
    """Return tasks whose batches are, over both processes, those of one process (Lightning's own sampler shuffles)."""

    def train_dataloader(self: Any) -> DataLoader:
        task = self.sets[self.task]
        return DataLoader(task, batch_size=2, sampler=DistributedSampler(task, shuffle=False))

    return type("Halves", (type(tasks()),), {"train_dataloader": train_dataloader})(3, False)


def results(row: Any, strategy: str, folder: Path) -> dict[str, Any]:
    """Train once for the numbers, and twice with dropout and shuffling for the resume."""

    chosen = partial(STRATEGIES[strategy], **row.strategies.get(strategy, {}))

    def run(data: Any, dropout: float = 0.5, **options: Any) -> dict[str, Any]:
        module = small_module(row, dropout=dropout)
        return train(row, module, data=data, strategy=chosen(), devices=2, **options)

    try:
        plain = run(half_batches(), dropout=0.0)
    except tuple(row.refuses.values()) as error:
        return {"refused": type(error).__name__, "message": str(error)}
    path = folder / f"{strategy}-{row.name}"
    straight = run(tasks(batch_size=2), extra=[SaveAt("on_train_batch_end", 6, path)])
    resumed = run(tasks(batch_size=2), ckpt=path, seed=99)
    return {"plain": plain, "straight": straight, "resumed": resumed}


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """Train every row with every strategy in one group of two processes."""
    return {f"{strategy}-{name}": results(ROWS[name], strategy, folder) for strategy, name in CASES}


def singles() -> dict[str, Any]:
    """Train the same rows in one process, which is as fresh as those of the group."""
    return {f"single-{name}": train(ROWS[name]) for name in dict.fromkeys(name for _, name in ALLOWED)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what each of the two processes found."""
    return run_on_two(scenarios, tmp_path_factory.mktemp("distributed"), singles)


@pytest.mark.parametrize(("strategy", "name"), REFUSED)
def test_refusals_are_typed_and_tell_the_way_out(ranks, strategy, name):
    for rank in ranks:
        found = rank[f"{strategy}-{name}"]
        assert found["refused"] == ROWS[name].refuses[strategy].__name__
        assert "use" in found["message"]


@pytest.mark.parametrize(("strategy", "name"), ALLOWED)
def test_ranks_are_equal_and_agree_with_one_process(ranks, strategy, name):
    """This covers weights, optimizer state, what callbacks keep and what they log."""
    first, second = (rank[f"{strategy}-{name}"]["plain"] for rank in ranks)
    assert not differing(first, second)
    ROWS[name].skip_where_it_differs(strategy)
    single = ranks[0][f"single-{name}"]
    assert not differing(single, first, TOLERANCE)
    assert any(key.startswith(".logged") for key in single)


@pytest.mark.parametrize(("strategy", "name"), ALLOWED)
def test_resuming_changes_no_bit_on_any_rank(ranks, strategy, name):
    for rank in ranks:
        found = rank[f"{strategy}-{name}"]
        assert not differing(found["straight"], found["resumed"])
        assert differing(found["straight"], found["plain"]), "dropout and shuffling were off"
