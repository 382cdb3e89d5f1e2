"""When GLOW's loss learns ids, what is logged, exact resume, and bad input, in trainers of both roots."""

import importlib
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from lightning_weights.callbacks import GLOW, ExactResume
from lightning_weights.data import IndexedDataset
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import GLOWLoss
from tests.helpers.battery import SaveAt
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|checkpoint|LeafSpec|GPU).*")


class Rows(Dataset):
    """Samples with two labels each, in dicts or tuples."""

    def __init__(self, size=8, seed=0, as_dict=True):
        generator = torch.Generator().manual_seed(seed)
        self.x, self.y = torch.randn(size, 3, generator=generator), torch.arange(2 * size).view(size, 2) % 5
        self.as_dict = as_dict

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        sample = {"x": self.x[index], "labels": self.y[index]}
        return sample if self.as_dict else tuple(sample.values())


class _Module:
    own = None
    takes_all = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 5)
        self.seen = []
        if self.own is not None:
            self.glow = GLOWLoss(**self.own)

    def losses(self, x, labels):
        return nn.functional.cross_entropy(self.net(x), labels[:, 0], reduction="none")

    def training_step(self, batch, batch_idx):
        if self.takes_all:
            losses = self.losses(**batch)
        else:
            losses = self.losses(*(batch[key] for key in (("x", "labels") if isinstance(batch, dict) else (0, 1))))
        loss = self.glow(losses)
        self.seen.append((self.glow.last.ids.tolist(), self.glow.last.weights.clone()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def module_of(root=ROOTS[0], **overrides):
    return type("Module", (_Module, importlib.import_module(root).LightningModule), overrides)()


def loader(dataset=None, batch_size=4, **options):
    return DataLoader(IndexedDataset(Rows()) if dataset is None else dataset, batch_size=batch_size, **options)


def fit(callback=None, module=None, data=None, root=ROOTS[0], extra=(), ckpt=None, **options):
    module = module_of(root) if module is None else module
    trainer = make_trainer([GLOW() if callback is None else callback, *extra], root, **{"max_epochs": 3, **options})
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt)
    return trainer, module


@pytest.mark.parametrize("root", ROOTS)
def test_the_loss_gets_ids_and_epochs_and_weighs_from_the_second_epoch_on(root):
    trainer, module = fit(root=root)
    assert [ids for ids, _ in module.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3
    weights = torch.stack([weights for _, weights in module.seen]).view(3, -1)
    assert torch.equal(weights[0], torch.ones(8))
    assert ((weights[1:] != 1).float().mean(dim=1) > 0.9).all()
    logged = trainer.callback_metrics
    assert logged["weights/glow/mean_weight"] == weights[2, 4:].mean()
    assert 0 <= logged["weights/glow/frac_regressing"] <= 1
    assert logged["weights/glow/mean_gain"].isfinite()
    assert set(logged) == {f"weights/glow/{name}" for name in ("mean_weight", "mean_gain", "frac_regressing")}


def test_a_loop_by_hand_ends_in_the_same_weights():
    _, module = fit(GLOW(num_samples=8, alpha=1.5, beta=5.0))
    plain, loss = module_of(), GLOWLoss(num_samples=8, alpha=1.5, beta=5.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for epoch in range(3):
        for batch in loader():
            optimizer.zero_grad()
            loss(plain.losses(batch["x"], batch["labels"]), batch["sample_id"], epoch).backward()
            optimizer.step()
    assert torch.equal(module.net.weight, plain.net.weight)
    assert torch.equal(module.glow.history, loss.history)


def test_values_are_logged_per_step_over_all_batches_of_an_accumulation():
    trainer, module = fit(data=loader(batch_size=2), accumulate_grad_batches=4, max_epochs=2)
    last = torch.cat([weights for _, weights in module.seen[4:]])
    torch.testing.assert_close(trainer.callback_metrics["weights/glow/mean_weight"], last.mean())
    assert trainer.global_step == 2


@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("place", [1, 3, 4])
def test_a_stopped_run_goes_on_bit_for_bit(size, place, tmp_path):
    def run(ckpt=None, extra=()):
        generator = torch.Generator().manual_seed(0)
        data = loader(shuffle=True, generator=generator)
        return fit(GLOW(num_samples=size), data=data, extra=[ExactResume(), *extra], ckpt=ckpt)[1]

    straight = run(extra=[SaveAt("on_train_batch_end", place, tmp_path / "ckpt")])
    resumed = run(tmp_path / "ckpt")
    assert torch.equal(straight.net.weight, resumed.net.weight)
    assert torch.equal(straight.glow.history, resumed.glow.history)


@pytest.mark.parametrize("root", ROOTS)
def test_a_module_may_have_a_loss_of_its_own(root):
    own = {"num_samples": 8, "alpha": 1.0, "beta": 3.0}
    _, module = fit(module=module_of(root, own=own), root=root)
    _, other = fit(GLOW(**own), root=root)
    assert torch.equal(module.net.weight, other.net.weight)
    fit(GLOW(alpha=1.0), module_of(own=own))
    with pytest.raises(ValueError, match=r"alpha is 1.5 in GLOW and 1.0 in Module.glow"):
        fit(GLOW(alpha=1.5), module_of(own=own))


def test_ids_may_be_anywhere():
    data = loader(IndexedDataset(Rows(as_dict=False)))
    _, module = fit(GLOW(id_key=-1), data=data)
    _, named = fit()
    assert torch.equal(module.net.weight, named.net.weight)
    renamed = loader(IndexedDataset(Rows(), key="row"))
    assert torch.equal(fit(GLOW(id_key="row"), data=renamed)[1].net.weight, named.net.weight)


def test_ids_may_be_taken_out_of_the_batch():
    with pytest.raises(TypeError, match="sample_id"):
        fit(module=module_of(takes_all=True))
    _, module = fit(GLOW(keep_ids=False), module_of(takes_all=True))
    assert torch.equal(module.net.weight, fit()[1].net.weight)
    with pytest.raises(ValueError, match="ids can be taken out of dicts only"):
        fit(GLOW(keep_ids=False, id_key=-1), data=loader(IndexedDataset(Rows(as_dict=False))))


@pytest.mark.parametrize(
    ("key", "as_dict", "message"),
    [
        ("sample_id", True, r"the batch has no tensor 'sample_id', it has the keys x, labels"),
        ("sample_id", False, r"the batch has no tensor 'sample_id', it has the type list"),
        (2, False, r"the batch has no tensor 2, it has 2 parts. Wrap the training data in data.IndexedDataset"),
    ],
)
def test_a_batch_without_ids_is_told(key, as_dict, message):
    with pytest.raises(ValueError, match=message):
        fit(GLOW(id_key=key), data=loader(Rows(as_dict=as_dict)))


class NumberedOneByOne(Dataset):
    """Two files whose rows are both counted from 0."""

    def __init__(self):
        self.rows = ConcatDataset([Rows(4, seed=1), Rows(8, seed=2)])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        sample = self.rows[index]
        return {**sample, "sample_id": index % 4, "labels": (sample["labels"] + index // 4) % 5}


def test_ids_that_two_files_share_are_found(tmp_path):
    with pytest.raises(ValueError, match=r"sample 0 has other labels than before: two samples share an id"):
        fit(GLOW(check_ids=True), data=loader(NumberedOneByOne()))
    fit(GLOW(), data=loader(NumberedOneByOne()))
    callback = GLOW(check_ids=True)
    fit(callback, extra=[SaveAt("on_train_batch_end", 3, tmp_path / "ckpt")])
    assert callback.state_dict()["checksums"].shape == (8, 2)
    again = GLOW(check_ids=True)
    fit(again, ckpt=tmp_path / "ckpt")
    assert again.state_dict()["checksums"].tolist() == callback.state_dict()["checksums"].tolist()
    with pytest.raises(ValueError, match=r"check_ids is True, but label_key is 'y'"):
        fit(GLOW(check_ids=True, label_key="y"))


def test_too_few_epochs_and_an_unused_loss_are_told():
    with pytest.warns(LightningWeightsWarning, match="max_epochs is 1, and the first 1 are without weights"):
        fit(max_epochs=1)

    def training_step(self, batch, batch_idx):
        return self.losses(batch["x"], batch["labels"]).mean()

    with pytest.warns(LightningWeightsWarning, match="Module did not use its glow in this epoch"):
        fit(module=module_of(training_step=training_step))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        fit(max_epochs=2)


@pytest.mark.filterwarnings("ignore")
def test_ddp_leaves_tables_alone_that_are_not_exchanged(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for sync in (True, False):
            _, module = fit(GLOW(num_samples=8, sync=sync), max_epochs=1)
            wrapped = nn.parallel.DistributedDataParallel(module)
            assert [len(buffer) for buffer in wrapped.modules_buffers] == ([8] if sync else [])
    finally:
        torch.distributed.destroy_process_group()


def test_an_attribute_that_is_something_else_is_refused():
    with pytest.raises(ValueError, match=r"loss_attr is 'net', and Module.net is a Linear"):
        fit(GLOW(loss_attr="net"))


def test_evaluation_uses_the_plain_mean():
    found = []

    def validation_step(self, batch, batch_idx):
        losses = self.losses(batch["x"], batch["labels"])
        found.append(torch.equal(self.glow(losses), losses.mean()))

    module = module_of(validation_step=validation_step)
    trainer = make_trainer([GLOW()], max_epochs=2)
    trainer.fit(module, loader(), loader(Rows()))
    assert found == [True] * 4
    assert len(module.seen) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"min_weight": 3.0, "max_weight": 2.0}, "min_weight is 3.0 and max_weight 2.0"),
        ({"num_samples": 1.5}, "num_samples is 1.5"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"fallback": "mean"}, "fallback is 'mean'"),
        ({"loss_attr": "a.b"}, "loss_attr is 'a.b'; allowed is the name of an attribute"),
        ({"sync": "yes"}, "sync is 'yes'; allowed are True, False"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GLOW(**options)
