"""A whole class-incremental run: what each step does, and that a run ended anywhere goes on in the same bits."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_weights.callbacks import ExactResume, WeightAligning
from lightning_weights.data import ClassificationData, ClassIncremental, ExemplarMemory
from lightning_weights.modules import ClassIncrementalModule
from lightning_weights.runners import IncrementalResults, IncrementalRunner
from tests.helpers.battery import NOISE, differing, flat

pytestmark = pytest.mark.filterwarnings(NOISE, "ignore:.*barebones")

INCREMENTS = [2, 1, 1]
EPOCHS = 2


class Corners(ClassificationData):
    """Four classes around four points, 16 samples for training and 5 for the test of each."""

    num_classes = 4

    def load(self):
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(4).repeat(21)
        x = nn.functional.one_hot(y, 4) * 2.0 + torch.randn(84, 4, generator=generator)
        return x[:64], y[:64], x[64:], y[64:]


def parts(seed: int = 0, **options: Any) -> tuple[ClassIncrementalModule, ClassIncremental]:
    """Return a module with dropout and batch normalisation, and the data; the weights are the seed's."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.ReLU())
    module = ClassIncrementalModule(backbone, 12, lr=0.05, milestones=(1,))
    return module, ClassIncremental(Corners(), INCREMENTS, ExemplarMemory(8), batch_size=8, **options)


def runner(folder: Any, *callbacks: Any, seed: int = 0, **options: Any) -> IncrementalRunner:
    module, data = parts(seed)
    kwargs = {
        "max_epochs": EPOCHS,
        "barebones": True,
        "accelerator": "cpu",
        "devices": 1,
        "callbacks": [WeightAligning(), ExactResume(), *callbacks],
        **options,
    }
    return IncrementalRunner(kwargs, module, data, folder)


def left_behind(folder: Path) -> dict[str, Any]:
    """Return everything that the finished steps wrote, but for counters of the loops."""
    steps = [torch.load(folder / f"step_{step}.ckpt", weights_only=True) for step in range(len(INCREMENTS))]
    kept = [{key: step[key] for key in ("state_dict", "class_incremental", "ClassIncremental")} for step in steps]
    return flat({"steps": kept, "results": json.loads((folder / "results.json").read_text())})


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, IncrementalRunner]:
    folder = tmp_path_factory.mktemp("straight")
    run = runner(folder)
    run.run()
    return folder, run


def test_the_results_are_those_of_the_saved_models(straight):
    folder, run = straight
    assert [len(row) for row in run.results.matrix] == [1, 2, 3]
    assert run.results.average_incremental_accuracy == pytest.approx(sum(run.results.accuracy) / 3)
    for step, increments in enumerate(([2], [2, 1], [2, 1, 1])):
        path = folder / f"step_{step}.ckpt"
        model = ClassIncrementalModule.load_from_checkpoint(path, backbone=parts(9)[0].backbone, weights_only=True)
        data = parts()[1]
        data.load_state_dict(torch.load(path, weights_only=True)["ClassIncremental"])
        x, y = data.val_dataloader().dataset.x, data.val_dataloader().dataset.y
        with torch.no_grad():
            right = (model.eval()(x).argmax(1) == y).double()
        assert model.increments == increments
        assert run.results.accuracy[step] == pytest.approx(right.mean().item())
        assert run.results.matrix[step][-1] == run.results.new[step]
        assert run.results.new[step] == pytest.approx(right[y >= model.num_old].mean().item())
        if step:
            assert run.results.old[step] == pytest.approx(right[y < model.num_old].mean().item())
        assert data.memory.classes == list(range(sum(increments)))
        assert len(data.memory) == 8 // sum(increments) * sum(increments)


def test_saved_heads_are_clipped_and_aligned_and_the_teacher_is_the_model_before(straight):
    folder, run = straight
    saved = [torch.load(folder / f"step_{step}.ckpt", weights_only=True) for step in range(3)]
    assert run.results.gamma[0] is None
    for step in (1, 2):
        weight = saved[step]["state_dict"]["head.weight"].double()
        norms, old = weight.norm(dim=1), 2 if step == 1 else 3
        assert norms[:old].mean().item() == pytest.approx(norms[old:].mean().item(), rel=1e-6)
        assert run.results.gamma[step] > 0
        teacher = saved[step]["class_incremental"]["teacher"]
        assert torch.equal(teacher["1.weight"], saved[step - 1]["state_dict"]["head.weight"])
        assert torch.equal(teacher["0.1.running_mean"], saved[step - 1]["state_dict"]["backbone.1.running_mean"])
    assert all(step["state_dict"]["head.weight"].min() >= 0 for step in saved)
    assert {path.name for path in folder.glob("*.*")} == {
        *("start.ckpt", "step_0.ckpt", "step_1.ckpt", "step_2.ckpt", "results.json")
    }


def test_memory_holds_what_herding_by_the_saved_model_chooses(straight):
    folder, _ = straight
    checkpoint = torch.load(folder / "step_0.ckpt", weights_only=True)
    model, data = parts(9)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    expected = ExemplarMemory(8)
    x, y = data.new_samples()
    with torch.no_grad():
        expected.add(x, y, model.eval().features(x))
    kept = checkpoint["ClassIncremental"]["memory"]["inputs"]
    assert all(torch.equal(kept[label], expected.exemplars(label)) for label in (0, 1))


class Killed(BaseException):
    """The end of a process, as far as one process can play it."""


class KillAt(Callback):
    """Ends the run in a step and an epoch, after a batch."""

    def __init__(self, step: int, epoch: int, batch: int) -> None:
        self.place = (step, epoch, batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (len(pl_module.increments) - 1, trainer.current_epoch, batch_idx) == self.place:
            raise Killed


def patched(owner: Any, name: str, when: Any, before: bool = True) -> Any:
    """Return what makes a method end the run, before or after it does its work, when its arguments fit."""

    def patch(monkeypatch: Any) -> None:
        original = getattr(owner, name)

        def method(self: Any, *args: Any, **options: Any) -> Any:
            result = None if before and when(self, *args) else original(self, *args, **options)
            if when(self, *args):
                raise Killed
            return result

        monkeypatch.setattr(owner, name, method)

    return patch


def second(module: Any) -> bool:
    return len(module.increments) == 2


PLACES = {
    "between fit and alignment": patched(WeightAligning, "on_train_end", lambda self, trainer, module: second(module)),
    "after the alignment": patched(WeightAligning, "on_train_end", lambda self, trainer, module: second(module), False),
    "between measuring and memory": patched(ClassIncremental, "remember", lambda self, features: self.step == 1),
    "after the memory": patched(ClassIncremental, "remember", lambda self, features: self.step == 1, False),
    "between results and checkpoint": patched(
        Trainer, "save_checkpoint", lambda self, path, *_: Path(path).name == "step_1.ckpt"
    ),
    "after the checkpoint": patched(
        Trainer, "save_checkpoint", lambda self, path, *_: Path(path).name == "step_1.ckpt", False
    ),
    "after an epoch": patched(
        Trainer, "save_checkpoint", lambda self, path, *_: Path(path).parts[-2:] == ("step_2", "last.ckpt"), False
    ),
    "before anything was trained": patched(Trainer, "fit", lambda self, *_: True),
}
BATCHES = {"first epoch": (1, 0, 1), "later epoch": (1, 1, 1), "first step": (0, 1, 0), "last batch of all": (2, 1, 2)}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_ended_between_its_parts_ends_in_the_same_bits(place, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        PLACES[place](context)
        with pytest.raises(Killed):
            runner(tmp_path).run()
    goes_on_like(straight, tmp_path)


@pytest.mark.parametrize("place", BATCHES)
def test_a_run_ended_within_a_fit_ends_in_the_same_bits(place, straight, tmp_path):
    with pytest.raises(Killed):
        runner(tmp_path, KillAt(*BATCHES[place])).run()
    goes_on_like(straight, tmp_path)


def goes_on_like(straight: tuple[Path, IncrementalRunner], folder: Path) -> None:
    run = runner(folder, seed=7)  # another process would make other weights
    results = run.run()
    assert not differing(left_behind(straight[0]), left_behind(folder))
    assert results == straight[1].results
    assert not list(folder.rglob("*.part"))


def test_half_a_file_is_never_read(straight, tmp_path, monkeypatch):
    whole, written = Path.write_text, []

    def write(self: Path, content: str) -> int:
        written.append(self.name)
        if len(written) == 2:  # after the first results
            whole(self, content[: len(content) // 2])
            raise Killed
        return whole(self, content)

    with monkeypatch.context() as context:
        context.setattr(Path, "write_text", write)
        with pytest.raises(Killed):
            runner(tmp_path).run()
    assert written[-1].startswith(".results.json.")
    goes_on_like(straight, tmp_path)


def test_the_comparison_can_fail(straight, tmp_path):
    run = runner(tmp_path)
    run.seed = 1
    run.run()
    assert differing(left_behind(straight[0]), left_behind(tmp_path))


def test_a_finished_run_trains_nothing(straight, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", pytest.fail)
    again = runner(straight[0], seed=7)
    assert again.run() == straight[1].results
    assert torch.equal(again.module.head.weight, straight[1].module.head.weight)


def test_without_a_folder_nothing_is_written_and_the_numbers_are_the_same(straight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = runner(None)
    assert run.run() == straight[1].results
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"has learned groups of \[2, 1, 1\] classes already"):
        run.run()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_measuring_and_remembering_take_part_in_the_precision(precision, tmp_path):
    run = runner(tmp_path, barebones=False, logger=False, enable_progress_bar=False, precision=precision)
    results = run.run()
    x, y = run.datamodule.val_dataloader().dataset.x, run.datamodule.val_dataloader().dataset.y
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert run.module.head.weight.dtype == dtype
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        right = run.module.eval()(x.to(dtype)).argmax(1) == y
    assert results.accuracy[-1] == pytest.approx(right.double().mean().item())
    assert run.datamodule.memory.classes == [0, 1, 2, 3]
    assert run.datamodule.memory.tensors()[0].dtype == torch.float32


def test_callbacks_and_options_stay_the_users(straight):
    aligning = WeightAligning()
    options = {"max_epochs": 1, "barebones": True, "accelerator": "cpu", "callbacks": aligning}
    IncrementalRunner(options, *parts(), folder=None).run()
    assert aligning.gammas == []
    assert options["callbacks"] is aligning


def test_logs_lie_in_the_folder_of_the_step(tmp_path):
    options = {"barebones": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    runner(tmp_path, **options).run()
    for step in range(3):
        text = "".join(path.read_text() for path in (tmp_path / f"step_{step}").rglob("metrics.csv"))
        assert "val/accuracy" in text
        assert ("val/accuracy_old" in text) == (step > 0)


def test_other_groups_and_foreign_processes_are_refused(straight):
    module, _ = parts()
    data = ClassIncremental(Corners(), [2, 2], ExemplarMemory(8))
    with pytest.raises(ValueError, match=r"increments is \[2, 2\], but the checkpoint has \[2, 1, 1\]"):
        IncrementalRunner({}, module, data, straight[0]).run()
    with pytest.raises(ValueError, match="strategy is 'ddp_spawn'"):
        IncrementalRunner({"strategy": "ddp_spawn"}, module, data)
    with pytest.raises(ValueError, match="seed is -1"):
        IncrementalRunner({}, module, data, seed=-1)


def test_results_by_hand():
    results = IncrementalResults()
    logits = torch.eye(4)[[0, 1, 1, 2, 3, 0]]
    results.add(logits, torch.tensor([0, 0, 1, 2, 3, 3]), [2, 1, 1], gamma=0.5)
    assert results.matrix == [[pytest.approx(2 / 3), 1.0, 0.5]]
    assert results.accuracy == [pytest.approx(4 / 6)]
    assert (results.old, results.new, results.gamma) == ([0.75], [0.5], [0.5])
    assert results.describe_last() == (
        "step 0: accuracy on all classes seen 66.7%, old ones 75.0%, new ones 50.0%, γ 0.500"
    )


class PowerCut(KillAt):
    """Ends the process itself."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        try:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        except Killed:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_is_continued_in_the_same_bits(straight, tmp_path):
    for place in ((0, 1, 1), (1, 1, 0), (2, 0, 2)):
        child = os.fork()
        if child == 0:
            runner(tmp_path, PowerCut(*place)).run()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
    runner(tmp_path, seed=5).run()
    assert not differing(left_behind(straight[0]), left_behind(tmp_path))
