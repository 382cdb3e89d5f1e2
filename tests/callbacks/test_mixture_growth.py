"""Members in turn, growth between two epochs, and runs that resume before, at and after it."""

import copy
import re
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import ExactResume, MixtureGrowth
from lightning_weights.callbacks._joint_members import begin_joint_steps, end_joint_steps
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.mixture_growth import grown_learning_rate
from lightning_weights.modules import (
    Classifier,
    idle_parameters,
    mixture_param_groups,
    mixture_parts,
    mixturize,
    set_mode,
)
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)

EPOCHS, BATCHES = 5, 4
GROWTH = {"member_epochs": (2, 1), "coefficient_init": "copy", "grown_lr": 0.02, "grown_warmup_epochs": 0}


def network():
    torch.manual_seed(0)
    hidden = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.BatchNorm1d(8)
    return mixturize(nn.Sequential(*hidden, nn.ReLU(), nn.Linear(8, 3)), num_templates=4)


def sgd(params, **options):
    return torch.optim.SGD(params, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **options})


def cosine(optimizer, epochs=2):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)


def after_a_warmup(optimizer, epochs):
    warmup = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.1, 1)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine(optimizer, epochs)], [1])


def classifier(scheduler=cosine, optimizer=sgd, net=None):
    return Classifier(network() if net is None else net, 3, optimizer=optimizer, lr_scheduler=scheduler)


def loader(size=4 * BATCHES):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.arange(size) % 3), batch_size=4)


class Record(Callback):
    """Notes, after every batch, epoch, mode, learning rates, and a copy of all there is."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.starts: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        self.rows.append({
            "epoch": trainer.current_epoch,
            "mode": {part.mode for part in mixture_parts(pl_module).values()},
            "rates": [group["lr"] for group in optimizer.param_groups],
            "state": len(optimizer.state),
            "weights": copy.deepcopy(pl_module.state_dict()),
            "idle": {id(param) for param in idle_parameters(pl_module)},
        })  # fmt: skip


def fit(callback=None, module=None, extra=(), ckpt=None, seed=1, **options):
    torch.manual_seed(seed)
    callback = MixtureGrowth(**GROWTH) if callback is None else callback
    trainer = make_trainer([callback, *extra], **{"max_epochs": EPOCHS, **options})
    trainer.fit(classifier() if module is None else module, loader(), ckpt_path=ckpt, weights_only=None)
    return trainer


@pytest.fixture(scope="module")
def recorded():
    record, module = Record(), classifier()
    names = {id(param): name for name, param in module.named_parameters()}
    fit(module=module, extra=[record])
    return record, names


def test_modes_follow_the_epochs(recorded):
    rows = recorded[0].rows
    plan = {0: "member0", 1: "member0", 2: "member1", 3: "grown", 4: "grown"}
    assert all(row["mode"] == {plan[row["epoch"]]} for row in rows)
    assert len(rows) == EPOCHS * BATCHES


def test_idle_members_keep_every_bit(recorded):
    rows, names = recorded[0].rows, recorded[1]
    for before, after in pairwise(rows):
        if before["epoch"] != after["epoch"]:
            continue
        idle = {names[param] for param in after["idle"]}
        for name in names.values():
            same = torch.equal(before["weights"][name], after["weights"][name])
            assert same is (name in idle), (after["epoch"], name)


def test_growth_sets_phases_and_new_coefficients_and_nothing_else(recorded):
    record, _ = recorded
    before, after = record.rows[3 * BATCHES - 1]["weights"], record.starts[3]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("network.0", "network.1", "network.4", "network.5", "network.7")
    new = {f"network.4.coefficients.{block}" for block in (2, 3)}
    assert changed == new | {f"{part}.phase" for part in parts}
    assert before.keys() == after.keys()


def test_member_1_has_the_schedule_of_member_0_and_the_grown_network_its_own(recorded):
    rows = recorded[0].rows
    # a schedule of epochs steps in the last batch of one
    first, second = ([row["rates"] for row in rows if row["epoch"] == epoch][:-1] for epoch in (0, 2))
    assert first == second == [[0.1, 0.1]] * (BATCHES - 1)
    assert rows[BATCHES]["rates"] == pytest.approx([0.05, 0.05])
    grown = [rows[epoch * BATCHES]["rates"][0] for epoch in (3, 4)]
    assert grown == pytest.approx([grown_learning_rate(epoch, 2, 0.02, 3e-5, 4, 0) for epoch in range(2)])


def test_member_1_begins_with_an_empty_optimizer_and_growth_keeps_it(recorded):
    rows = recorded[0].rows
    assert rows[0]["state"] == rows[2 * BATCHES]["state"]
    assert rows[3 * BATCHES]["state"] > rows[0]["state"]
    record = Record()
    fit(MixtureGrowth(**{**GROWTH, "reset_optimizer": True, "grown_lr": None}), extra=[record])
    first, other = (found[3 * BATCHES]["weights"]["network.0.bank.sets.0"] for found in (rows, record.rows))
    assert not torch.equal(first, other)
    assert record.rows[3 * BATCHES]["rates"] == pytest.approx([0.05, 0.05])


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2 * BATCHES)


def test_a_schedule_of_steps_as_long_as_a_member_does_not_end_after_growth(tmp_path):
    """This one raises when it is stepped once more."""

    def configure_optimizers(self):
        optimizer = sgd(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle(optimizer), "interval": "step"}}

    kind = type("Stepping", (Classifier,), {"configure_optimizers": configure_optimizers})
    record, save = Record(), SaveAt("on_train_batch_end", 2 * BATCHES, tmp_path / "ckpt")
    straight = outcome(fit(module=kind(network(), 3), extra=[record, ExactResume(), save], max_epochs=6))
    rates = [row["rates"][0] for row in record.rows]
    assert rates[: BATCHES - 1] == rates[2 * BATCHES : 3 * BATCHES - 1]
    assert len(rates) == 6 * BATCHES
    resumed = fit(module=kind(network(), 3), extra=[ExactResume()], max_epochs=6, ckpt=tmp_path / "ckpt", seed=99)
    assert not differing(straight, outcome(resumed))


PLACES = {
    "one step before growth": ("on_train_batch_end", 3 * BATCHES - 1),
    "at growth": ("on_train_epoch_end", 3),
    "one step after growth": ("on_train_batch_end", 3 * BATCHES + 1),
    "inside member 0": ("on_train_batch_end", 3),
    "between the members": ("on_train_epoch_end", 2),
}


@pytest.mark.parametrize("joint", [False, True])
def test_resuming_changes_no_bit(tmp_path, joint):
    options = {**GROWTH, "joint_members": joint, "coefficient_init": "random"}
    saves = [SaveAt(hook, count, tmp_path / name) for name, (hook, count) in PLACES.items()]
    straight = outcome(fit(MixtureGrowth(**options), extra=[ExactResume(), *saves]))
    for name in PLACES:
        resumed = outcome(fit(MixtureGrowth(**options), extra=[ExactResume()], ckpt=tmp_path / name, seed=99))
        assert not differing(straight, resumed), name


def test_joint_members_are_trained_with_both_losses():
    """One batch of the second phase, by hand."""
    module, by_hand = classifier(scheduler=None), classifier(scheduler=None)
    for part in (module, by_hand):
        part.network[3] = nn.Identity()  # no dropout
    callback = MixtureGrowth((0, 1), "zero", joint_members=True, member0_loss_weight=0.3)
    trainer = fit(callback, module, max_epochs=2, limit_train_batches=1, extra=[Stop(1)])
    assert trainer.global_step == 1
    groups = mixture_param_groups(by_hand, 0.01)
    optimizer = sgd(groups)
    x, y = next(iter(loader()))
    losses = []
    for member in ("member0", "member1"):
        set_mode(by_hand, member)
        losses.append(nn.functional.cross_entropy(by_hand(x), y))
    ((0.3 * losses[0] + losses[1]) / 2).backward()
    optimizer.step()
    for (name, param), other in zip(module.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(param, other, msg=name)
    assert "training_step" not in vars(module)


class Stop(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *arguments):
        trainer.should_stop = trainer.global_step >= self.steps


def test_an_exception_leaves_joint_members_in_the_mode_of_their_phase():
    module = classifier()
    begin_joint_steps(module, 0.1)
    with pytest.raises(ValueError, match="takes 4 of its 4 input channels and got 3"):
        module.training_step((torch.zeros(4, 3), torch.zeros(4).long()), 0)
    assert {part.mode for part in mixture_parts(module).values()} == {"member1"}
    end_joint_steps(module)
    assert "training_step" not in vars(module)


def test_member_1_may_start_from_a_copy_and_members_may_be_frozen():
    record = Record()
    options = {"member1_noise": 0.0, "freeze_members": True, "coefficient_init": "random"}
    fit(MixtureGrowth(**{**GROWTH, **options}), extra=[record])
    end_of_member_0, start = record.rows[2 * BATCHES - 1]["weights"], record.starts[2]
    changed = {name for name in start if not torch.equal(end_of_member_0[name], start[name])}
    assert changed == {name for name in start if name.endswith(("bank.sets.1", "phase"))}
    for layer in (0, 4, 7):
        assert torch.equal(*(start[f"network.{layer}.bank.sets.{which}"] for which in (0, 1)))
    end_of_members = record.rows[3 * BATCHES - 1]["weights"]
    for layer, blocks in (("0", 2), ("4", 4), ("7", 2)):
        names = [f"network.{layer}.coefficients.{block}" for block in range(blocks)]
        moved = [not torch.equal(end_of_members[name], record.rows[-1]["weights"][name]) for name in names]
        assert moved == [False, False, True, True][:blocks]


def test_gradients_of_zero_do_not_move_an_idle_member():
    """Whoever keeps gradients as zeros would let weight decay move what is not trained."""
    keep = {"optimizer_zero_grad": lambda self, epoch, batch_idx, optimizer: optimizer.zero_grad(set_to_none=False)}
    module = type("Keeping", (Classifier,), keep)(network(), 3, optimizer=sgd)
    for param in module.parameters():
        param.grad = torch.zeros_like(param)
    before = copy.deepcopy(module.state_dict())
    record = Record()
    fit(module=module, extra=[record, Stop(2)])
    after = record.rows[1]["weights"]
    names = [name for name, param in module.named_parameters() if id(param) in record.rows[1]["idle"]]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)


def test_coefficients_do_not_decay_and_groups_of_ones_own_stay():
    trainer = fit(extra=[Stop(1)])
    groups = trainer.optimizers[0].param_groups
    alphas = {id(param) for name, param in trainer.lightning_module.named_parameters() if ".coefficients." in name}
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert {id(param) for param in groups[1]["params"]} == alphas
    module = classifier(None)
    module.optimizer = lambda params: sgd(mixture_param_groups(module, 0.02))
    assert len(fit(module=module, extra=[Stop(1)]).optimizers[0].param_groups) == 2


def test_what_is_logged_and_kept():
    trainer = fit()
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("weights/")}
    assert logged["weights/mixture_growth/phase"] == 2
    assert logged["weights/mixture_growth/new_blocks"] > 0
    callback = next(part for part in trainer.callbacks if isinstance(part, MixtureGrowth))
    assert 0 < callback.growth_seconds < 10
    assert callback.state_dict() == {"phase": 2, "member_epochs": [2, 1]}


@pytest.mark.parametrize(
    ("options", "trainer", "message"),
    [
        ({"member_epochs": (3, 2)}, {}, "max_epochs is 5, and the members take 5 epochs.*never be grown"),
        ({}, {"max_epochs": -1, "max_steps": 9}, "max_epochs is -1"),
    ],
)
def test_plans_that_never_grow(options, trainer, message):
    with pytest.raises(ValueError, match=message):
        fit(MixtureGrowth(**{**GROWTH, **options}), **trainer)


def test_networks_that_cannot_grow_or_have_grown():
    with pytest.raises(MisconfigurationException, match=r"no mixture layers.*mixturize.*network\.0"):
        fit(module=classifier(net=nn.Sequential(nn.Linear(4, 3))))
    module = classifier()
    fit(module=module)
    with pytest.raises(ValueError, match="are in mode grown, and epoch 0 is for member0; call set_mode"):
        fit(module=module)
    set_mode(module, "member0")
    fit(module=module, extra=[Stop(1)])


def test_runs_that_end_before_growth_are_told_and_trial_runs_are_not(recwarn):
    fit(fast_dev_run=True)
    assert not [entry for entry in recwarn if entry.category is LightningWeightsWarning]
    with pytest.warns(LightningWeightsWarning, match="ended after 2 steps, in mode 'member0', before the network has"):
        fit(max_steps=2)


def test_a_checkpoint_of_other_phases_is_refused(tmp_path):
    fit(extra=[SaveAt("on_train_batch_end", 2, tmp_path / "ckpt")])
    with pytest.raises(ValueError, match=r"member_epochs is \[1, 1\], but the checkpoint's run has \[2, 1\]"):
        fit(MixtureGrowth(**{**GROWTH, "member_epochs": (1, 1)}), ckpt=tmp_path / "ckpt")


@pytest.mark.parametrize("first", [False, True])
def test_averaged_weights_are_saved_with_the_phase_of_the_network(tmp_path, first):
    """Averages of buffers, of whole numbers at that, would make a member of a grown network."""
    both = [EMAWeightAveraging(decay=0.9), MixtureGrowth(**GROWTH)]
    growth, average = both if first else reversed(both)
    module = classifier()
    fit(growth, module, extra=[average, SaveAt("on_train_epoch_end", EPOCHS, tmp_path / "ckpt")])
    saved = torch.load(tmp_path / "ckpt", weights_only=True)
    averaged, current = saved["state_dict"], saved["current_model_state"]
    assert {int(value) for name, value in averaged.items() if name.endswith("phase")} == {2}
    assert not torch.equal(averaged["network.4.bank.sets.0"], current["network.4.bank.sets.0"])
    other = classifier()
    other.load_state_dict(averaged)
    assert {part.mode for part in mixture_parts(other).values()} == {"grown"}


def test_manual_optimization_has_no_joint_members():
    module = classifier()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="joint_members=True needs automatic optimization"):
        fit(MixtureGrowth(**GROWTH, joint_members=True), module)


@pytest.mark.parametrize(
    ("options", "scheduler", "message"),
    [
        ({"coefficient_init": "orthogonal"}, None, None),
        ({}, lambda o: cosine(o, 5), "takes 5 epochs and begins anew.*step over the growth"),
        ({}, lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=5), "takes 5 epochs"),
        ({}, lambda o: after_a_warmup(o, 2), "takes 3 epochs"),
        ({}, lambda o: after_a_warmup(o, 1), None),
        ({}, lambda o: {"scheduler": cosine(o, 9), "interval": "step"}, "takes 2.25 epochs"),
        ({}, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), None),
    ],
)
def test_schedules_that_step_over_the_growth_are_told(options, scheduler, message):
    module = classifier(scheduler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(MixtureGrowth(**{**GROWTH, **options}), module, extra=[Stop(1)])
    texts = [str(entry.message) for entry in caught if entry.category is LightningWeightsWarning]
    told = [text for text in texts if not text.startswith("training ended after 1 steps, in mode 'member0'")]
    assert len(told) == len(texts) - 1
    assert len(told) == (message is not None)
    assert all(re.search(message, text) for text in told)


def test_too_few_templates_for_orthogonality_are_told():
    few = mixturize(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)), num_templates=3)
    with pytest.warns(LightningWeightsWarning, match="with 3 templates per set the coefficients of a fourth block"):
        fit(MixtureGrowth((1, 1)), classifier(None, net=few), extra=[Stop(1)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"member_epochs": 3}, "member_epochs is 3; allowed are two numbers"),
        ({"member_epochs": (1, 2, 3)}, "member_epochs is"),
        ({"member_epochs": (1, -1)}, "member_epochs is -1"),
        ({"coefficient_init": "svd"}, "coefficient_init is 'svd'"),
        ({"coefficient_scale": -1.0}, "coefficient_scale is -1"),
        ({"member0_loss_weight": "heavy"}, "member0_loss_weight is 'heavy'"),
        ({"member1_noise": -1.0}, "member1_noise is -1"),
        ({"grown_lr": -0.1}, "grown_lr is -0.1"),
        ({"grown_lr_min": None}, "grown_lr_min is None"),
        ({"grown_lr_cycles": 0}, "grown_lr_cycles is 0"),
        ({"grown_warmup_epochs": 0.5}, "grown_warmup_epochs is 0.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureGrowth(**options)
