"""What is trained on in which session, what snapshots hold, exact resume, and refusals, in trainers of both roots."""

import importlib
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_weights.callbacks import ExactResume, ProgressiveForgetting
from lightning_weights.data import NestedSubset
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules.snapshots import read_snapshots
from tests.helpers.battery import SaveAt, differing, flat
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|checkpoint|LeafSpec|GPU|reload_data).*")

SAMPLES = 24
PLAN = {"rate": 0.5, "sessions": 3, "epochs_per_session": [2, 1, 1]}


def samples():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.arange(SAMPLES), torch.randn(SAMPLES, 4, generator=generator))


class _Module:
    dropout = 0.2

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(self.dropout), nn.Linear(6, 2))
        self.register_buffer("count", torch.tensor(0))
        self.seen = []

    def training_step(self, batch, batch_idx):
        ids, x = batch
        self.count += 1
        self.seen.append((self.trainer.current_epoch, ids.tolist()))
        return (self.net(x) - x[:, :2]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def module_of(root=ROOTS[0], **overrides):
    return type("Module", (_Module, importlib.import_module(root).LightningModule), overrides)()


def loader(batch_size=6, shuffle=True, **options):
    return DataLoader(samples(), batch_size=batch_size, shuffle=shuffle, **options)


def fit(callback=None, module=None, data=None, root=ROOTS[0], extra=(), ckpt=None, **options):
    callback = ProgressiveForgetting(**PLAN) if callback is None else callback
    module = module_of(root) if module is None else module
    trainer = make_trainer([callback, *extra], root, **{"max_epochs": 4, **options})
    source = {} if data == "own" else {"train_dataloaders": loader() if data is None else data}
    trainer.fit(module, **source, ckpt_path=ckpt)
    return callback, module, trainer


def ids_of_epochs(module):
    epochs = {}
    for epoch, ids in module.seen:
        epochs.setdefault(epoch, []).extend(ids)
    return [sorted(ids) for _, ids in sorted(epochs.items())]


def prefixes(seed=0):
    order = list(NestedSubset(range(SAMPLES), seed=seed))
    return [sorted(order[:size]) for size in (24, 24, 12, 6)]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("source", ["fit", "module"])
def test_sessions_see_nested_parts_of_the_data(root, source):
    hook = {"train_dataloader": lambda self: loader()} if source == "module" else {}
    module = module_of(root, **hook)
    _, module, trainer = fit(module=module, data="own" if hook else None, root=root)
    assert ids_of_epochs(module) == prefixes()
    assert trainer.reload_dataloaders_every_n_epochs == 0
    assert trainer.callback_metrics == {"weights/know/session": 2.0, "weights/know/samples": 6.0}


def test_a_data_module_is_asked_once_and_keeps_its_loader():
    asked = []

    class Data(importlib.import_module(ROOTS[0]).LightningDataModule):
        def train_dataloader(self):
            asked.append(1)
            return loader(generator=torch.Generator().manual_seed(len(asked)))

    data, module = Data(), module_of()
    trainer = make_trainer([ProgressiveForgetting(**PLAN, subset_seed=7)], max_epochs=4)
    trainer.fit(module, datamodule=data)
    assert len(asked) == 1
    assert ids_of_epochs(module) == prefixes(seed=7)
    assert module.seen[0][1] != module.seen[4][1], "the generator goes on"


def test_a_user_who_reloads_every_epoch_gets_that():
    asked = []

    def train_dataloader(self):
        asked.append(1)
        return loader()

    _, module, trainer = fit(
        module=module_of(train_dataloader=train_dataloader), data="own", reload_dataloaders_every_n_epochs=1
    )
    assert len(asked) == 4
    assert ids_of_epochs(module) == prefixes()
    assert trainer.reload_dataloaders_every_n_epochs == 1


def by_hand(carry):
    """Train the same in plain PyTorch and return the weights after every session."""
    module, whole, found = module_of(dropout=0.0), samples(), []
    optimizer = module.configure_optimizers()
    for session, epochs in enumerate(PLAN["epochs_per_session"]):
        part = whole if session == 0 else NestedSubset(whole, 0.5, session)
        optimizer = optimizer if carry else module.configure_optimizers()
        for _ in range(epochs):
            for _, x in DataLoader(part, batch_size=6):
                optimizer.zero_grad()
                (module.net(x) - x[:, :2]).square().mean().backward()
                optimizer.step()
        found.append({f"net.{name}": value.clone() for name, value in module.net.state_dict().items()})
    return found


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("carry", [True, False])
def test_snapshots_are_those_of_a_loop_by_hand(carry, root):
    callback = ProgressiveForgetting(**PLAN, carry_optimizer=carry)
    fit(callback, module_of(root, dropout=0.0), loader(shuffle=False), root)
    expected, found = by_hand(carry), callback.snapshots
    assert [(snapshot.session, snapshot.samples) for snapshot in found] == [(2, 6), (1, 12), (0, 24)]
    for snapshot in found:
        assert snapshot["count"] == [8, 10, 11][snapshot.session]
        for name, value in expected[snapshot.session].items():
            assert torch.equal(snapshot[name], value), name
    assert differing(flat(by_hand(True)), flat(by_hand(False)))


def test_the_first_session_is_the_training_without_the_callback():
    """With shuffling and dropout, which draw from the global generator."""
    found = {}
    for extra, epochs in (([], 2), ([ProgressiveForgetting(**PLAN)], 4)):
        torch.manual_seed(3)
        module = module_of()
        make_trainer(extra, max_epochs=epochs).fit(module, loader())
        found[epochs] = extra[0].snapshots[-1] if extra else module.state_dict()
    assert not differing(flat(dict(found[4])), flat(found[2]))


def test_files_hold_what_memory_would(tmp_path):
    folder = str(tmp_path / "run")
    runs = []
    for place in (None, folder):
        torch.manual_seed(3)
        runs.append(fit(ProgressiveForgetting(**PLAN, snapshot_dir=place))[0].snapshots)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [f"session_0{n}.safetensors" for n in range(3)]
    for memory, file, read in zip(*runs, read_snapshots(folder), strict=True):
        assert not differing(flat(dict(memory)), flat(dict(file)))
        assert (read.session, read.samples, read.rate) == (memory.session, memory.samples, 0.5)
        assert {value.dtype for value in file.values()} == {torch.float32, torch.int64}
    with pytest.raises(ValueError, match=r"snapshot_dir is '.*run', which holds snapshots of another run"):
        fit(ProgressiveForgetting(**PLAN, snapshot_dir=folder))


def test_a_network_that_comes_trained_needs_no_first_session():
    plan = {**PLAN, "epochs_per_session": [0, 2, 1]}
    module = module_of()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    callback, module, _ = fit(ProgressiveForgetting(**plan), module, max_epochs=3)
    assert not differing(flat(before), flat(dict(callback.snapshots[-1])))
    assert list(map(len, ids_of_epochs(module))) == [12, 12, 6]


def test_float64_networks_give_float32_snapshots_and_tied_weights_stay_tied():
    module = module_of().double()
    module.net[3].bias = module.net[0].bias
    module.net[3] = nn.Linear(6, 6)
    module.net[3].weight = nn.Parameter(module.net[3].weight.double())
    module.net[3].bias = module.net[0].bias
    data = DataLoader(TensorDataset(torch.arange(24), samples().tensors[1].double()), batch_size=6)
    module.training_step = lambda batch, batch_idx: module.net(batch[1]).square().mean()
    callback, module, _ = fit(module=module, data=data)
    last = callback.snapshots[0]
    assert last["net.0.weight"].dtype == torch.float32
    torch.testing.assert_close(last["net.0.weight"].double(), module.net[0].weight, rtol=1e-6, atol=1e-7)
    assert last["net.0.bias"].data_ptr() == last["net.3.bias"].data_ptr()


PLACES = {
    "inside the first session": ("on_train_batch_end", 3),
    "end of the first session": ("on_train_epoch_end", 1),
    "inside the second": ("on_train_batch_end", 5),
    "between its epochs": ("on_train_epoch_end", 2),
    "end of the second": ("on_train_epoch_end", 3),
    "end of all": ("on_train_epoch_end", 4),
}


def configure_schedule(self):
    """Ask for the number of steps, which loads the data before the Trainer knows where a checkpoint was saved."""
    optimizer = _Module.configure_optimizers(self)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.trainer.estimated_stepping_batches)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize(
    ("root", "carry", "first"), [(ROOTS[0], True, True), (ROOTS[1], False, False)], ids=["saved before", "saved after"]
)
def test_a_run_that_stops_anywhere_goes_on_bit_for_bit(root, carry, first, tmp_path):
    """Without a schedule and with one."""
    overrides = {} if first else {"configure_optimizers": configure_schedule}

    def run(seed, extra=(), ckpt=None):
        torch.manual_seed(seed)
        callback = ProgressiveForgetting(0.5, 3, [1, 2, 1], carry_optimizer=carry)
        module, generator = module_of(root, **overrides), torch.Generator().manual_seed(seed)
        trainer = make_trainer(
            [*extra, callback, ExactResume()] if first else [callback, ExactResume(), *extra], root, max_epochs=4
        )
        trainer.fit(module, loader(generator=generator), ckpt_path=ckpt)
        return flat([module.state_dict(), [dict(s) for s in callback.snapshots], trainer.optimizers[0].state_dict()])

    straight = run(1, [SaveAt(hook, count, tmp_path / place) for place, (hook, count) in PLACES.items()])
    for place in PLACES:
        assert not differing(straight, run(99, ckpt=tmp_path / place)), place


class Noisy(Dataset):
    """Draws from a generator of its own, which ExactResume finds inside a part of it, too."""

    def __init__(self, seed):
        self.generator, self.samples = torch.Generator().manual_seed(seed), samples()

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        number, x = self.samples[index]
        return number, x + torch.randn(4, generator=self.generator)


def test_generators_of_the_data_go_on_in_a_part_of_it(tmp_path):
    def run(seed, extra=(), ckpt=None):
        torch.manual_seed(seed)
        trainer = make_trainer([ProgressiveForgetting(**PLAN), ExactResume(), *extra], max_epochs=4)
        module = module_of()
        trainer.fit(module, DataLoader(Noisy(seed), batch_size=6), ckpt_path=ckpt)
        return flat(module.state_dict())

    straight = run(1, [SaveAt("on_train_batch_end", 9, tmp_path / "ckpt")])
    assert not differing(straight, run(2, ckpt=tmp_path / "ckpt"))


class Stop(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 9:
            raise KeyboardInterrupt


def test_a_killed_run_with_files_goes_on_from_an_older_checkpoint(tmp_path):
    def run(name, extra=(), ckpt=None):
        torch.manual_seed(1)
        callback = ProgressiveForgetting(**PLAN, snapshot_dir=str(tmp_path / name))
        trainer = make_trainer([callback, ExactResume(), *extra], max_epochs=4)
        try:
            trainer.fit(module_of(), loader(generator=torch.Generator().manual_seed(1)), ckpt_path=ckpt)
        except (KeyboardInterrupt, SystemExit):
            return []
        return flat([dict(snapshot) for snapshot in callback.snapshots])

    straight = run("straight")
    assert run("killed", [SaveAt("on_train_batch_end", 6, tmp_path / "ckpt"), Stop()]) == []
    assert len(list((tmp_path / "killed").iterdir())) == 1
    assert not differing(straight, run("killed", ckpt=tmp_path / "ckpt"))


def test_loaders_keep_what_they_were_given():
    data = loader(batch_size=5, drop_last=True, generator=torch.Generator().manual_seed(0))
    seen = []

    class See(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append((trainer.num_training_batches, trainer.train_dataloader.generator is data.generator))

    fit(data=data, extra=[See()])
    assert seen == [(4, True), (4, True), (2, True), (1, True)]


def test_several_loaders_are_all_cut():
    module = module_of(training_step=lambda self, batch, index: _Module.training_step(self, batch["a"], index))
    _, _, trainer = fit(module=module, data={"a": loader(), "b": [loader()]})
    assert trainer.callback_metrics["weights/know/samples"] == 12
    assert ids_of_epochs(module)[3] == prefixes()[3]


def test_too_short_a_training_is_told():
    with pytest.warns(LightningWeightsWarning, match="training ended with 2 of 3 snapshots, in session 1"):
        fit(max_steps=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        fit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 5}, r"max_epochs is 5, but 3 sessions .* are 4 epochs; set Trainer\(max_epochs=4\)"),
        (
            {"data": loader(batch_size=8)},
            "session 2 is empty: rate=0.5 leaves 6 of 24 samples, fewer than a batch of 8",
        ),
        ({"data": [1, 2]}, "the training data comes from a int"),
        ({"module": module_of(num_classes=7)}, "leaves 6 of 24 samples, fewer than the 7 classes"),
        ({"module": module_of().bfloat16()}, "net.0.weight is torch.bfloat16, too coarse"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(options, message):
    module = options.get("module", module_of())
    with pytest.raises(ValueError, match=message):
        fit(**{"module": module, **options})
    assert module.seen == []


def test_another_plan_or_other_data_is_refused(tmp_path):
    fit(extra=[SaveAt("on_train_batch_end", 6, tmp_path / "ckpt")])
    with pytest.raises(ValueError, match=r"the plan is .*'rate': 0.6.*but the checkpoint's run has .*'rate': 0.5"):
        fit(ProgressiveForgetting(**{**PLAN, "rate": 0.6}), ckpt=tmp_path / "ckpt")
    fewer = DataLoader(TensorDataset(*samples()[:20]), batch_size=5)
    with pytest.raises(ValueError, match=r"the training data has \[20\] samples and had \[24\] before"):
        fit(data=fewer, ckpt=tmp_path / "ckpt")


def test_snapshots_in_memory_and_in_files_are_not_mixed(tmp_path):
    fit(extra=[SaveAt("on_train_epoch_end", 2, tmp_path / "ckpt")], max_steps=8)
    with pytest.raises(ValueError, match=r"snapshot_dir is '.*', but the checkpoint's run keeps its .* in memory"):
        fit(ProgressiveForgetting(**PLAN, snapshot_dir=str(tmp_path / "run")), ckpt=tmp_path / "ckpt")


def test_a_trial_run_needs_no_plan_and_writes_nothing(tmp_path):
    callback = ProgressiveForgetting(0.5, 3, snapshot_dir=str(tmp_path / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        fit(callback, fast_dev_run=True)
    assert len(callback.snapshots) == 1
    assert not (tmp_path / "run").exists()


def test_an_error_outside_a_fit_leaves_the_trainer_alone():
    trainer = make_trainer([callback := ProgressiveForgetting(**PLAN)], reload_dataloaders_every_n_epochs=3)
    callback.on_exception(trainer, None, ValueError())
    assert trainer.reload_dataloaders_every_n_epochs == 3


def test_a_checkpoint_without_snapshots_is_refused(tmp_path):
    save = SaveAt("on_train_epoch_end", 3, tmp_path / "ckpt")
    make_trainer([save], max_epochs=4).fit(module_of(), loader())
    with pytest.raises(ValueError, match=r"goes on in epoch 3, and there are no snapshots of sessions \[0\]"):
        fit(ckpt=tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, "rate is 1.0"),
        ({"sessions": 1}, "sessions is 1"),
        ({"epochs_per_session": 0}, "epochs_per_session is 0"),
        ({"epochs_per_session": [1, 0, 1, 1, 1]}, "epochs_per_session is 0"),
        ({"epochs_per_session": [1, 1]}, r"epochs_per_session is \[1, 1\], but sessions is 5"),
        ({"carry_optimizer": "yes"}, "carry_optimizer is 'yes'"),
        ({"subset_seed": -1}, "subset_seed is -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveForgetting(**options)
