"""A fit per fold: nobody predicts what it has seen, and a run ended anywhere goes on in the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from lightning_weights.callbacks import ExactResume
from lightning_weights.data import BatchDataset, OutOfFold, StudentScores
from lightning_weights.functional.regularized_stacking.folds import fold_ids
from lightning_weights.modules import MLP, Regressor
from lightning_weights.runners import KFoldRunner
from tests.helpers.battery import NOISE, differing, flat

pytestmark = pytest.mark.filterwarnings(NOISE, "ignore:.*(barebones|val_dataloader).*")

X = torch.randn(26, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(26, generator=torch.Generator().manual_seed(1))
TRAIN, TEST = slice(20), slice(20, 26)
SEED = 3


def make() -> Regressor:
    """Return a module with dropout, whose weights the global generator draws."""
    return Regressor(MLP(3, (6,), num_classes=1, dropout=0.2), optimizer=lambda p: torch.optim.Adam(p, lr=0.05))


def loader(part: slice = TRAIN, y: torch.Tensor = Y, shuffle: bool = True) -> DataLoader:
    return DataLoader(TensorDataset(X[part], y[part]), batch_size=4, shuffle=shuffle, drop_last=shuffle)


def runner(folder: Any, *callbacks: Any, data: Any = None, made: Any = make, **options: Any) -> KFoldRunner:
    trainer = {"max_epochs": 2, "barebones": True, "accelerator": "cpu", "devices": 1}
    trainer |= {"callbacks": [ExactResume(), *callbacks], **options.pop("trainer", {})}
    settings = {"n_folds": 3, "fold_seed": 5, "seed": SEED, "test_loader": loader(TEST, shuffle=False), **options}
    return KFoldRunner(made, loader() if data is None else data, trainer, str(folder), **settings)


def left_behind(folder: Path) -> dict[str, Any]:
    """Return all weights and predictions."""
    weights = {path.name: torch.load(path, weights_only=True)["state_dict"] for path in sorted(folder.glob("*.ckpt"))}
    return flat([weights, {path.name: vars(OutOfFold.load(path)) for path in sorted(folder.glob("*.pt"))}])


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, runner(folder).run()


def test_every_row_is_predicted_by_the_model_of_its_fold(straight):
    folder, results = straight
    assert torch.equal(results.folds, fold_ids(20, 3, 5))
    tests = []
    for fold in range(3):
        model = Regressor.load_from_checkpoint(folder / f"fold_{fold}.ckpt", network=make().network).eval()
        with torch.no_grad():
            held = results.folds == fold
            assert torch.equal(results.oof.predictions[held], model(X[TRAIN][held]))
            tests.append(model(X[TEST]))
    torch.testing.assert_close(results.test.predictions, torch.stack(tests).mean(0))
    assert torch.equal(results.oof.targets, Y[TRAIN])
    assert torch.equal(results.test.targets, Y[TEST])
    assert results.rmse == pytest.approx((results.oof.predictions[:, 0] - Y[TRAIN]).square().mean().sqrt().item())
    names = {f"fold_{fold}{end}" for fold in range(3) for end in (".ckpt", ".pt", "_test.pt")}
    assert {path.name for path in folder.glob("*.*")} == names | {"settings.json", "oof.pt", "test.pt"}
    assert not list(folder.rglob("last.ckpt"))


def test_predictions_of_a_fold_do_not_depend_on_its_own_targets(straight, tmp_path):
    _, results = straight
    held = results.folds == 1
    other = Y.clone()
    other[TRAIN][held] += 10.0
    found = runner(tmp_path, data=loader(y=other)).run()
    assert torch.equal(found.oof.predictions[held], results.oof.predictions[held])
    assert not torch.equal(found.oof.predictions[~held], results.oof.predictions[~held])


def test_folds_begin_with_weights_of_their_own_seeds(tmp_path):
    begun: list[float] = []

    def made() -> Regressor:
        module = make()
        begun.append(module.network.head.weight[0, 0].item())
        return module

    runner(tmp_path, made=made, trainer={"max_epochs": 0}, test=None).run()
    expected = []
    for fold in range(3):
        torch.manual_seed(SEED + fold)
        expected.append(make().network.head.weight[0, 0].item())
    assert begun == expected
    assert len(set(begun)) == 3


class Killed(BaseException):
    """The end of a process, as far as one process can play it."""


class KillAt(Callback):
    """Ends the run after a batch of an epoch, when so many fits were begun."""

    fits = 0

    def __init__(self, fit: int, epoch: int, batch: int) -> None:
        self.place = (fit, epoch, batch)

    def on_fit_start(self, trainer, pl_module):
        KillAt.fits += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (KillAt.fits - 1, trainer.current_epoch, batch_idx) == self.place:
            raise Killed


@pytest.mark.parametrize("place", [(0, 0, 1), (1, 1, 0), (2, 1, 2)])
def test_a_run_ended_within_a_fit_ends_in_the_same_bits(place, straight, tmp_path):
    KillAt.fits = 0
    with pytest.raises(Killed):
        runner(tmp_path, KillAt(*place)).run()
    torch.manual_seed(99)
    runner(tmp_path).run()
    assert not differing(left_behind(straight[0]), left_behind(tmp_path))


@pytest.mark.parametrize(
    ("name", "before"), [("fold_1.ckpt", True), ("fold_1.ckpt", False), ("fold_1_test.pt", False), ("fold_1.pt", True)]
)
def test_a_run_ended_between_its_files_ends_in_the_same_bits(name, before, straight, tmp_path, monkeypatch):
    owner, method = (Trainer, "save_checkpoint") if name.endswith("ckpt") else (OutOfFold, "save")
    original = getattr(owner, method)

    def write(self: Any, path: Any, *args: Any, **options: Any) -> None:
        if Path(path).name != name or not before:
            original(self, path, *args, **options)
        if Path(path).name == name:
            raise Killed

    with monkeypatch.context() as context:
        context.setattr(owner, method, write)
        with pytest.raises(Killed):
            runner(tmp_path).run()
    runner(tmp_path).run()
    assert not differing(left_behind(straight[0]), left_behind(tmp_path))
    assert not list(tmp_path.rglob("*.part"))


def test_a_finished_run_trains_nothing_and_other_settings_are_refused(straight, monkeypatch):
    folder, results = straight
    for name in ("fit", "predict"):
        monkeypatch.setattr(Trainer, name, pytest.fail)
    again = runner(folder).run()
    assert torch.equal(again.oof.predictions, results.oof.predictions)
    with pytest.raises(ValueError, match=r"n_folds was 3 and is 4; seed was 3 and is 0\. Give another folder"):
        runner(folder, n_folds=4, seed=0).run()


def test_a_model_of_all_rows_predicts_the_test_rows(straight, tmp_path):
    results = runner(tmp_path, test="refit").run()
    assert torch.equal(results.oof.predictions, straight[1].oof.predictions)
    model = Regressor.load_from_checkpoint(tmp_path / "refit.ckpt", network=make().network).eval()
    with torch.no_grad():
        assert torch.equal(results.test.predictions, model(X[TEST]))
    assert not (tmp_path / "fold_0_test.pt").exists()
    assert runner(tmp_path / "none", test=None, trainer={"max_epochs": 0}).run().test is None


def test_groups_stay_together_and_validation_predicts_as_well(straight, tmp_path):
    groups = torch.arange(20) // 2
    results = runner(tmp_path / "groups", groups=groups.tolist(), trainer={"max_epochs": 0}, test=None).run()
    assert all(len(results.folds[groups == group].unique()) == 1 for group in groups.unique())
    with pytest.raises(ValueError, match=r"begun with other settings: groups was '\w+' and is '\w+'\. Give another"):
        runner(tmp_path / "groups", groups=groups.flip(0).roll(1), trainer={"max_epochs": 0}, test=None).run()
    options = {"barebones": False, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    found = runner(tmp_path / "stage", stage="validate", trainer=options).run()
    assert torch.equal(found.oof.predictions, straight[1].oof.predictions)
    assert torch.equal(found.test.predictions, straight[1].test.predictions)


def test_the_weights_of_the_best_epoch(tmp_path):
    options = {"barebones": False, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"max_epochs": 4, "num_sanity_val_steps": 0}
    best = ModelCheckpoint(monitor="val/mse", mode="max")  # the first epoch's, of a model that learns
    stop = EarlyStopping("val/mse", patience=1, mode="max")

    def run(folder: Path, *callbacks: Any) -> None:
        runner(folder, best, stop, *callbacks, weights="best", n_folds=2, trainer=options).run()

    run(tmp_path / "straight")
    for fold in range(2):
        assert torch.load(tmp_path / "straight" / f"fold_{fold}.ckpt", weights_only=True)["epoch"] == 0
    assert best.best_model_path == ""
    KillAt.fits = 0
    with pytest.raises(Killed):
        run(tmp_path / "ended", KillAt(1, 1, 0))
    run(tmp_path / "ended")
    assert not differing(left_behind(tmp_path / "straight"), left_behind(tmp_path / "ended"))
    quick = {**options, "max_epochs": 1}
    with pytest.raises(ValueError, match="weights is 'best', and no callback has kept any"):
        runner(tmp_path / "without", ModelCheckpoint(), weights="best", trainer=quick).run()  # it keeps the last ones


class Doubling(nn.Module):
    """Predicts twice its input; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return 2 * x[:, :2] + 0 * self.shift


def test_held_out_rows_are_not_augmented_and_outputs_may_be_several(tmp_path):
    seen: list[torch.Tensor] = []

    def augment(x, generator):
        seen.append(x)
        return x + 100 + torch.rand(len(x), 1, generator=generator)

    dataset = BatchDataset(X[TRAIN], X[TRAIN, :2], augment, torch.Generator())
    data = DataLoader(dataset, batch_size=5, collate_fn=lambda batch: batch)
    results = runner(tmp_path, data=data, made=lambda: Regressor(Doubling()), test=None).run()
    assert seen, "training rows are augmented"
    assert torch.equal(results.oof.predictions, 2 * X[TRAIN, :2])


def test_a_data_module_says_all(tmp_path):
    data = StudentScores(batch_size=16, num_rows=40, test_rows=10)
    made = lambda: Regressor(MLP(10, (), num_classes=1), mean=62.0, std=19.0)  # noqa: E731
    results = runner(tmp_path, data=data, made=made, n_folds=2, test_loader=None).run()
    assert results.oof.predictions.shape == (40, 1)
    assert torch.equal(results.test.targets, data.test_dataloader().dataset.tensors[1])


def test_bad_arguments(tmp_path):
    for options, told in (
        ({"n_folds": 1}, "n_folds is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"stage": "test"}, "stage is 'test'"),
        ({"weights": "first"}, "weights is 'first'"),
        ({"test": "all"}, "test is 'all'"),
        ({"trainer": {"strategy": "ddp_spawn"}}, "strategy is 'ddp_spawn'"),
        ({"trainer": {"strategy": DDPStrategy(start_method="spawn")}}, "strategy is .*DDPStrategy"),
    ):
        with pytest.raises(ValueError, match=told):
            runner(tmp_path, **options)

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    for data, told in (
        (TensorDataset(X), "data gives a TensorDataset, which can't be divided"),
        (DataLoader(Endless()), "can't be divided into folds"),
        (DataLoader(TensorDataset(X), sampler=WeightedRandomSampler([1.0] * 26, 26)), "has a WeightedRandomSampler"),
        (DataLoader(X, sampler=RandomSampler(X, replacement=True)), "has a RandomSampler that draws rows"),
    ):
        with pytest.raises(ValueError, match=told):
            runner(tmp_path, data=data).run()
    with pytest.raises(ValueError, match="n_folds"):
        runner(tmp_path, n_folds=21).run()
    assert not list(tmp_path.iterdir())
