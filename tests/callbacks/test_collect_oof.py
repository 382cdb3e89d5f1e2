"""Predictions on disk: one row per sample, whatever brought it there, and nothing that is not whole."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from lightning_weights.callbacks import CollectOOF
from lightning_weights.data import IndexedDataset, OutOfFold
from lightning_weights.errors import LightningWeightsWarning
from tests.helpers.battery import NOISE
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings(NOISE, "ignore:.*(shuffling enabled|sync_dist).*")

X = torch.arange(22.0).reshape(11, 2)
Y = X.sum(dim=1)
DATA = TensorDataset(X, Y)


def module(root: str = ROOTS[0], **overrides: Any) -> Any:
    """Return a module that predicts three times the sum of its inputs and learns one number."""

    class Tripled:
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(3.0))

        def forward(self, x):
            return self.factor * x.sum(dim=1)

        def training_step(self, batch, batch_idx):
            return (self(batch[0]) - batch[1]).square().mean()

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            x, y = batch
            self.log("val/factor", self.factor.detach().clone())
            return {"preds": self(x), "target": y}

        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    base = importlib.import_module(root).LightningModule
    return type("Tripled", (Tripled, base), overrides)()


def validate(path: Path, loader: Any, root: str = ROOTS[0], made: Any = None, **arguments: Any) -> OutOfFold:
    callback = CollectOOF(str(path), **arguments)
    trainer = make_trainer([callback], root)
    if callback.stage == "predict":
        trainer.predict(made or module(root), loader)
    else:
        trainer.validate(made or module(root), loader, verbose=False)
    return OutOfFold.load(path)


class Named(Dataset):
    """Samples that are dicts, with numbers of their own."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": X[index], "y": Y[index], "sample_id": self.numbers[index]}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_rows_in_the_order_of_samples(root, stage, tmp_path):
    found = validate(tmp_path / "there" / "oof.pt", DataLoader(DATA, batch_size=4), root, stage=stage)
    assert torch.equal(found.indices, torch.arange(11))
    assert torch.equal(found.predictions, 3 * Y[:, None])
    assert torch.equal(found.targets, Y)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["oof.pt"]
    plain = torch.load(tmp_path / "there" / "oof.pt", weights_only=True)
    assert torch.equal(plain["predictions"], found.predictions)


def test_numbers_are_those_of_the_whole_data_under_subsets(tmp_path):
    nested = Subset(Subset(DATA, [9, 2, 7, 4]), [3, 0, 1])
    found = validate(tmp_path / "oof.pt", DataLoader(nested, batch_size=2))
    assert found.indices.tolist() == [2, 4, 9]
    assert torch.equal(found.predictions.flatten(), 3 * Y[[2, 4, 9]])


def three_parts(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
    x, _, _ = batch
    return self(x)


def of_dicts(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, torch.Tensor]:
    return {"logits": self(batch["x"])}


def test_numbers_in_batches_of_a_shuffled_loader(tmp_path):
    numbered = Subset(IndexedDataset(DATA, start=100), [5, 1, 8])
    made = module(validation_step=three_parts)
    found = validate(tmp_path / "a.pt", DataLoader(numbered, batch_size=2, shuffle=True), made=made)
    assert found.indices.tolist() == [101, 105, 108]
    assert torch.equal(found.predictions.flatten(), 3 * Y[[1, 5, 8]])
    loader = DataLoader(Named([70, 20, 40]), batch_size=2, shuffle=True)
    arguments = {"prediction_key": "logits", "target_key": "y"}
    found = validate(tmp_path / "b.pt", loader, made=module(validation_step=of_dicts), **arguments)
    assert found.indices.tolist() == [20, 40, 70]
    assert torch.equal(found.predictions.flatten(), 3 * Y[[1, 2, 0]])
    assert torch.equal(found.targets, Y[[1, 2, 0]])
    columns = TensorDataset(X, Y, torch.arange(11).flip(0))
    loader, made = DataLoader(columns, batch_size=3, shuffle=True), module(predict_step=three_parts)
    found = validate(tmp_path / "c.pt", loader, made=made, id_key=2, stage="predict")
    assert torch.equal(found.predictions.flatten(), 3 * Y.flip(0))


def test_what_predict_shuffles_is_known_and_several_outputs_stay_several(tmp_path):
    def both(self, batch, batch_idx, dataloader_idx=0):
        return torch.stack([batch[0], -batch[0]], dim=2)

    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    found = validate(tmp_path / "oof.pt", loader, made=module(predict_step=both), stage="predict")
    assert torch.equal(found.predictions, torch.stack([X, -X], dim=2).reshape(11, 4))


def test_one_of_several_loaders(tmp_path):
    loaders = [DataLoader(TensorDataset(X[:3], Y[:3])), DataLoader(TensorDataset(X[3:], Y[3:]), batch_size=3)]
    found = validate(tmp_path / "oof.pt", loaders, dataloader_idx=1)
    assert torch.equal(found.predictions.flatten(), 3 * Y[3:])
    with pytest.raises(ValueError, match="dataloader_idx is 2"):
        validate(tmp_path / "oof.pt", loaders, dataloader_idx=2)


def padded() -> DataLoader:
    """Return the share of a process that gets the first sample once more, since 11 samples do not go into 2."""
    return DataLoader(DATA, batch_size=2, sampler=DistributedSampler(DATA, 2, 1, shuffle=False))


def gathers(monkeypatch: Any, other: list[Any]) -> None:
    """Let the callback believe in another process, whose rows are these."""

    def gather(parts: list[Any], own: list[Any]) -> None:
        parts[:] = [other, own]

    monkeypatch.setattr("lightning_weights.callbacks.collect_oof.several_processes", lambda: True)
    monkeypatch.setattr("lightning_weights.callbacks.collect_oof.dist.get_world_size", lambda: 2)
    monkeypatch.setattr("lightning_weights.callbacks.collect_oof.dist.all_gather_object", gather)


def test_what_a_sampler_pads_is_there_once(tmp_path, monkeypatch):
    first = [(torch.arange(0, 11, 2), 3 * Y[::2] * (1 + 1e-7), Y[::2])]
    gathers(monkeypatch, first)
    found = validate(tmp_path / "oof.pt", padded())
    assert torch.equal(found.indices, torch.arange(11))
    torch.testing.assert_close(found.predictions.flatten(), 3 * Y, rtol=1e-6, atol=0.0)
    assert found.predictions[0].item() == first[0][1][0].item()


def test_samples_that_contradict_each_other_are_named_and_the_old_file_stays(tmp_path, monkeypatch):
    validate(tmp_path / "oof.pt", DataLoader(DATA, batch_size=4))
    before = (tmp_path / "oof.pt").read_bytes()
    gathers(monkeypatch, [(torch.arange(0, 11, 2), 3 * Y[::2] + 0.5, None)])
    with pytest.raises(ValueError, match=r"predictions of sample 0 contradict each other"):
        validate(tmp_path / "oof.pt", padded())
    assert (tmp_path / "oof.pt").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def ones(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
    return torch.ones(len(batch["y"]))


def test_missing_samples_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"3 of 11 samples are missing \(8, 9, 10\)"):
        validate(tmp_path / "oof.pt", DataLoader(DATA, batch_size=4, drop_last=True))
    with pytest.raises(ValueError, match=r"the loader has 3 samples, and there are predictions of 2: either"):
        validate(tmp_path / "oof.pt", DataLoader(Named([4, 4, 5]), batch_size=3), made=module(validation_step=ones))
    trainer = make_trainer([CollectOOF(str(tmp_path / "oof.pt"))], limit_val_batches=1)
    with pytest.raises(ValueError, match=r"7 of 11 .* \(4, 5, 6, 7, 8, …\): .* Take away limit_val_batches"):
        trainer.validate(module(), DataLoader(DATA, batch_size=4), verbose=False)
    assert not list(tmp_path.iterdir())


def test_an_order_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a RandomSampler is not known"):
        validate(tmp_path / "oof.pt", DataLoader(DATA, batch_size=4, shuffle=True))
    with pytest.raises(ValueError, match="id_key is 'id', and the batch has no tensor there, it has 2 parts"):
        validate(tmp_path / "oof.pt", DataLoader(DATA, batch_size=4), id_key="id")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda y: None, "a NoneType"),
        (lambda y: y.mean(), "a single number"),
        (lambda y: {"loss": y.mean(), "logits": y}, "a dict with 'loss', 'logits'"),
        (lambda y: y[:1], "1 rows for a batch of 4 samples"),
    ],
)
def test_what_a_step_has_to_return(returned, told, tmp_path):
    made = module(validation_step=lambda self, batch, batch_idx: returned(self(batch[0])))
    with pytest.raises(ValueError, match=f"validation_step returned {told}"):
        validate(tmp_path / "oof.pt", DataLoader(DATA, batch_size=4), made=made)


def fit(path: Path, factors: list[float], ckpt: Any = None, extra: Any = (), **arguments: Any) -> Any:
    """Train, with this factor after every epoch."""

    def on_validation_start(self):
        if not self.trainer.sanity_checking:
            self.factor.data.fill_(factors[self.trainer.current_epoch])

    made = module(on_validation_start=on_validation_start)
    callback = CollectOOF(str(path), **arguments)
    options = {"max_epochs": len(factors), "num_sanity_val_steps": 1, "enable_checkpointing": bool(extra)}
    trainer = make_trainer([callback, *extra], **options, default_root_dir=path.parent)
    trainer.fit(made, DataLoader(DATA, batch_size=8), DataLoader(DATA, batch_size=4), ckpt_path=ckpt, weights_only=True)
    return trainer, callback


def test_a_fit_leaves_the_last_validation_or_that_of_the_best_checkpoint(tmp_path):
    trainer, _ = fit(tmp_path / "last.pt", [2.0, 1.0, 4.0])
    assert torch.equal(OutOfFold.load(tmp_path / "last.pt").predictions[:, 0], 4 * Y)
    assert trainer.callback_metrics["weights/regularized_stacking/rows"] == 11
    rmse = (3 * Y).square().mean().sqrt()  # 4 times the targets instead of once
    torch.testing.assert_close(trainer.callback_metrics["weights/regularized_stacking/rmse"], rmse, rtol=1e-6, atol=0)
    for mode, factor, epoch in (("min", 1.0, 1), ("max", 4.0, 2)):
        best = ModelCheckpoint(tmp_path, monitor="val/factor", mode=mode)
        _, callback = fit(tmp_path / "best.pt", [2.0, 1.0, 4.0], extra=[best], monitor="val/factor", mode=mode)
        found = OutOfFold.load(tmp_path / "best.pt")
        kept = torch.load(best.best_model_path, weights_only=True)["state_dict"]["factor"]
        assert torch.equal(found.predictions[:, 0], kept * Y)
        assert (kept.item(), found.epoch, found.score) == (factor, epoch, factor)
        assert callback.state_dict() == {"score": factor, "epoch": epoch}
        assert torch.equal(callback.result.predictions, found.predictions)


def test_a_resumed_fit_remembers_the_best_and_notices_a_file_that_is_not_its_own(tmp_path):
    trainer, _ = fit(tmp_path / "oof.pt", [2.0, 1.0], monitor="val/factor")
    trainer.save_checkpoint(tmp_path / "ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        fit(tmp_path / "oof.pt", [9.0, 9.0, 1.5, 3.0], ckpt=tmp_path / "ckpt", monitor="val/factor")
    assert OutOfFold.load(tmp_path / "oof.pt").epoch == 1
    (tmp_path / "oof.pt").unlink()
    with pytest.warns(LightningWeightsWarning, match="that of epoch 1, and .* holds nothing"):
        fit(tmp_path / "oof.pt", [9.0, 9.0, 0.5], ckpt=tmp_path / "ckpt", monitor="val/factor")
    assert OutOfFold.load(tmp_path / "oof.pt").epoch == 2


def test_bad_arguments(tmp_path):
    for arguments, told in (
        ({"stage": "fit"}, "stage is 'fit'"),
        ({"mode": "best"}, "mode is 'best'"),
        ({"dataloader_idx": -1}, "dataloader_idx is -1"),
        ({"monitor": "val/loss", "stage": "predict"}, "monitor is 'val/loss' and stage 'predict'"),
    ):
        with pytest.raises(ValueError, match=told):
            CollectOOF(**arguments)
    with pytest.raises(
        ValueError, match=r"monitor is 'loss', which no validation has logged; there are .*'val/factor'"
    ):
        fit(tmp_path / "oof.pt", [1.0], monitor="loss")


def test_without_a_path_the_file_lies_in_the_folder_of_the_run(tmp_path):
    callback = CollectOOF()
    trainer = make_trainer([callback], default_root_dir=tmp_path)
    trainer.validate(module(), DataLoader(DATA, batch_size=4), verbose=False)
    assert OutOfFold.load(tmp_path / "oof.pt").predictions.shape == (11, 1)
