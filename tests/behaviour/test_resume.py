"""Stopped and resumed runs equal those that were never stopped, in every bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.behaviour.subjects import SETUPS, VARIANTS
from tests.helpers.battery import NOISE, SaveAt, differing, small_module, tasks, train
from tests.helpers.two_processes import run_elsewhere

pytestmark = pytest.mark.filterwarnings(NOISE)

ROWS = {row.name: row for row in (*SETUPS, *VARIANTS)}
PLACES = {
    "inside the first task": ("on_train_batch_end", 2),
    "end of the first task": ("on_train_epoch_end", 1),
    "inside the second task": ("on_train_batch_end", 6),
    "end of a validation": ("on_validation_end", 2),
    "last step": ("on_train_batch_end", 12),
}


def run(row: Any, **options: Any) -> dict[str, Any]:
    """Train with shuffling, dropout and accumulation."""
    module, data = small_module(row, dropout=0.5), tasks(shuffle=True)
    return train(row, module, data=data, accumulate_grad_batches=2, **options)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_resuming_changes_no_bit(row, tmp_path):
    saves = [SaveAt(hook, count, tmp_path / place) for place, (hook, count) in PLACES.items()]
    straight = run(row, extra=saves)
    assert straight[".counts.0"] == 6
    for place in PLACES:
        assert not differing(straight, run(row, ckpt=tmp_path / place, seed=99)), place


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_comparison_can_fail(row):
    a, b = run(row), run(row, seed=2)
    assert any(name.startswith(".weights") for name in differing(a, b))


class Kill(Callback):
    """Ends the process as a power cut does, when a task has seen that many batches."""

    def __init__(self, epoch: int, batches: int) -> None:
        self.epoch, self.batches = epoch, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx + 1 == self.batches:
            os.kill(os.getpid(), signal.SIGKILL)


def checkpointing(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def killed_process(folder: Path) -> None:
    """Train every row until it is killed; a process of its own for each."""
    for name, row in ROWS.items():
        if os.fork() == 0:
            saver = checkpointing(folder / name)
            run(row, extra=[saver, Kill(epoch=1, batches=3)], enable_checkpointing=True)
            os._exit(1)
        _, status = os.wait()
        (folder / f"{name}.signal").write_text(str(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))


def resuming_process(folder: Path) -> None:
    """Resume every row from its last checkpoint and save the outcome."""
    for name, row in ROWS.items():
        last = max((folder / name).glob("*.ckpt"), key=lambda path: int(path.stem.rpartition("=")[2]))
        saver = checkpointing(folder / name)
        found = run(row, ckpt=last, extra=[saver], enable_checkpointing=True, seed=99)
        torch.save({"resumed from": last.stem, "outcome": found}, folder / f"{name}.pt")


@pytest.mark.slow
def test_a_killed_run_resumes_in_a_new_process(tmp_path):
    """Killed in the middle of the second task and of an accumulation window, with shuffling and dropout."""
    run_elsewhere(killed_process, tmp_path)
    run_elsewhere(resuming_process, tmp_path)
    for name, row in ROWS.items():
        assert (tmp_path / f"{name}.signal").read_text() == str(int(signal.SIGKILL))
        resumed = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        # two steps per task: the batch after this one was lost
        assert resumed["resumed from"] == "step=3"
        straight = run(row, extra=[checkpointing(tmp_path / "straight")], enable_checkpointing=True)
        assert not differing(straight, resumed["outcome"])
