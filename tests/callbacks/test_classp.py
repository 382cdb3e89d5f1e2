"""CLASSPPhases: the schedule, and the memory that outlives a fit."""

import copy
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from lightning_weights.callbacks import CLASSPPhases, TaskStream
from lightning_weights.errors import LightningWeightsWarning
from tests.helpers.tasks import accumulators, make_trainer, protecting_phases, tiny_classifier, tiny_tasks

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|GPU|checkpoint|worker).*")


class Recorder(Callback):
    """Notes decay and threshold as every real step sees them."""

    def __init__(self):
        self.seen, self.logged = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        group = optimizer.param_groups[0]
        self.seen.append((group["apply_decay"], group["threshold"]))

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def record(phases, max_epochs=3, epochs_per_task=1, **options):
    recorder = Recorder()
    callbacks = [recorder, TaskStream(epochs_per_task), phases]
    make_trainer(callbacks, max_epochs=max_epochs, **options).fit(tiny_classifier(), datamodule=tiny_tasks())
    return recorder


@pytest.mark.parametrize(
    ("unit", "switch_at", "first_steps"), [("epoch", 1, 4), ("epoch", 2, 8), ("step", 5, 5), ("task", 1, 4)]
)
def test_switches_once_at_the_boundary(unit, switch_at, first_steps):
    seen = record(CLASSPPhases(first_threshold=0.0, later_threshold=1e-4, unit=unit, switch_at=switch_at)).seen
    assert seen == [(False, 0.0)] * first_steps + [(True, 1e-4)] * (12 - first_steps)


def test_steps_are_optimizer_steps_under_accumulation():
    seen = record(CLASSPPhases(unit="step", switch_at=3), accumulate_grad_batches=2).seen
    assert seen == [(False, 1e-6)] * 3 + [(True, 1e-6)] * 3


def test_several_boundaries_have_their_own_thresholds_and_none_is_the_optimizers_own():
    phases = CLASSPPhases(first_threshold=1e-3, later_threshold=[1e-5, None], switch_at=[1, 2], first_task_decay=True)
    assert record(phases).seen == [(True, 1e-3)] * 4 + [(True, 1e-5)] * 4 + [(True, 1e-6)] * 4


def test_tasks_follow_the_stream():
    phases = CLASSPPhases(unit="task", switch_at=2)
    recorder = Recorder()
    make_trainer([phases, TaskStream([1, 2, 1]), recorder], max_epochs=4).fit(
        tiny_classifier(), datamodule=tiny_tasks()
    )
    assert [decay for decay, _ in recorder.seen] == [False] * 12 + [True] * 4


def test_logs_the_diagnostics():
    first, *_, last = record(protecting_phases()).logged
    assert first["weights/classp/phase"] == 0.0
    assert last["weights/classp/phase"] == 1.0
    assert last["weights/classp/average_grad_sum"] > first["weights/classp/average_grad_sum"] > 0
    assert 0 < last["weights/classp/update_fraction"] < 1
    assert 0 <= last["weights/classp/free_fraction"] < 1


def fit_by_parts(carry_state, last_epochs=1, unit="task"):
    """One fit per task with one Trainer; the seed is set so that dropout repeats."""
    data, phases, stream, model = (
        tiny_tasks(),
        protecting_phases(carry_state=carry_state, unit=unit),
        TaskStream(),
        tiny_classifier(),
    )
    trainer = make_trainer([stream, phases], max_epochs=2)
    torch.manual_seed(5)
    trainer.fit(model, datamodule=data)
    trainer.fit_loop.max_epochs = 2 + last_epochs
    trainer.fit(model, datamodule=data)
    return trainer, model, stream, phases


def test_two_fits_with_carried_state_equal_one():
    data, phases, stream, model = tiny_tasks(), protecting_phases(), TaskStream(), tiny_classifier()
    trainer = make_trainer([stream, phases], max_epochs=3)
    torch.manual_seed(5)
    trainer.fit(model, datamodule=data)
    other, other_model, other_stream, other_phases = fit_by_parts(carry_state=True)
    for a, b in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(accumulators(trainer), accumulators(other), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(stream.matrix, other_stream.matrix)
    assert phases.phase == other_phases.phase == 1


def test_without_carrying_the_loss_of_memory_is_said():
    with pytest.warns(LightningWeightsWarning, match="accumulators were reset: earlier tasks are no longer protected"):
        fit_by_parts(carry_state=False)


def test_without_a_stream_every_fit_is_a_task():
    data, phases, recorder, model = tiny_tasks(), protecting_phases(switch_at=2), Recorder(), tiny_classifier()
    for task in range(3):
        data.task = task
        make_trainer([phases, recorder], max_epochs=1).fit(model, data.train_dataloader())
    assert [decay for decay, _ in recorder.seen] == [False] * 8 + [True] * 4
    assert phases.fits == 3


def test_another_network_cannot_inherit_the_memory():
    data, phases = tiny_tasks(), protecting_phases()
    make_trainer([phases], max_epochs=1).fit(tiny_classifier(), data.train_dataloader())
    wider = tiny_classifier()
    wider.extra = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"previous fit had \[\[4\]\] parameters and these have \[\[6\]\]"):
        make_trainer([phases], max_epochs=1).fit(wider, data.train_dataloader())
    reshaped = tiny_classifier()
    reshaped.network.head = torch.nn.Linear(8, 3)
    phases = protecting_phases()
    make_trainer([phases], max_epochs=1).fit(tiny_classifier(), data.train_dataloader())
    with pytest.raises(ValueError, match="grad_sum of parameter 2 has shape"):
        make_trainer([phases], max_epochs=1).fit(reshaped, data.train_dataloader())


def test_hyper_parameters_of_the_next_fit_are_the_configured_ones():
    data, phases = tiny_tasks(), protecting_phases()
    make_trainer([phases], max_epochs=1).fit(tiny_classifier(lr=0.5), data.train_dataloader())
    trainer = make_trainer([phases], max_epochs=1)
    trainer.fit(tiny_classifier(lr=0.25), data.train_dataloader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.25


def test_clipping_warns_if_a_phase_has_a_threshold():
    with pytest.warns(LightningWeightsWarning, match=r"gradient_clip_val is 0.5: CLASSP compares its threshold with"):
        record(protecting_phases(), gradient_clip_val=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=LightningWeightsWarning)
        record(CLASSPPhases(first_threshold=0.0, later_threshold=0.0), gradient_clip_val=0.5)


def test_memory_survives_a_fit_that_failed():
    data, phases, model = tiny_tasks(), protecting_phases(), tiny_classifier()
    make_trainer([phases], max_epochs=1).fit(model, data.train_dataloader())

    class Fail(Callback):
        def on_train_batch_start(self, *args):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_trainer([phases, Fail()], max_epochs=1).fit(model, data.train_dataloader())
    seen = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.extend(total.sum().item() for total in accumulators(trainer))

    make_trainer([phases, Look()], max_epochs=1).fit(model, data.train_dataloader())
    assert seen
    assert all(total > 0 for total in seen)


def test_manual_optimization_is_logged_without_the_gradients_it_cleared():
    model = tiny_classifier()
    model.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = model.optimizers()
        model.manual_backward(torch.nn.functional.cross_entropy(model(batch[0]), batch[1]))
        optimizer.step()
        optimizer.zero_grad()

    model.training_step = training_step
    recorder = Recorder()
    make_trainer([recorder, protecting_phases()], max_epochs=1).fit(model, tiny_tasks().train_dataloader())
    assert recorder.logged[0]["weights/classp/average_grad_sum"] > 0
    assert "weights/classp/update_fraction" not in recorder.logged[0]


def test_a_phase_with_decay_needs_an_epsilon_before_training_starts():
    model = tiny_classifier(eps=0.0, apply_decay=False)
    with pytest.raises(ValueError, match="eps is 0, but CLASSPPhases turns the decay on"):
        make_trainer([protecting_phases()], max_epochs=1).fit(model, tiny_tasks().train_dataloader())


def test_published_thresholds_warn():
    with pytest.warns(LightningWeightsWarning, match=r"first_threshold is 0.5, compared with squared gradients"):
        CLASSPPhases(first_threshold=0.5)
    with pytest.warns(LightningWeightsWarning, match=r"later_threshold is 0.99, compared with squared gradients"):
        CLASSPPhases(later_threshold=0.99)


def test_other_optimizers_are_named():
    model = tiny_classifier()
    model.optimizer = torch.optim.Adam
    with pytest.raises(ValueError, match="found no CLASSP optimizer, but Adam"):
        make_trainer([protecting_phases()], max_epochs=1).fit(model, tiny_tasks().train_dataloader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "batch"}, "unit is 'batch'; allowed are 'epoch', 'step', 'task'"),
        ({"switch_at": 0}, "switch_at is 0"),
        ({"switch_at": [2, 2]}, r"switch_at is \[2, 2\]"),
        ({"switch_at": []}, "switch_at is"),
        ({"switch_at": 1.5}, r"switch_at is 1\.5"),
        ({"switch_at": [1.7]}, r"switch_at is \[1\.7\]"),
        ({"switch_at": "12"}, "switch_at is '12'"),
        ({"switch_at": None}, "switch_at is None"),
        ({"later_threshold": "0.1"}, r"later_threshold is '0\.1'"),
        ({"first_threshold": -1.0}, "first_threshold is -1.0"),
        ({"later_threshold": float("nan")}, "later_threshold is nan"),
        ({"later_threshold": [0.0, 0.1]}, "later_threshold has 2 values for 1 boundaries"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CLASSPPhases(**arguments)


def test_copies_are_lean_and_configs_may_be_omegaconf():
    config = OmegaConf.create({"switch_at": [1, 3], "later_threshold": [0.0, 1e-4]})
    phases = CLASSPPhases(**config)
    assert type(phases.switch_at) is list
    assert type(phases.later_thresholds) is list
    data = tiny_tasks()
    make_trainer([phases], max_epochs=2).fit(tiny_classifier(), data.train_dataloader())
    for twin in (copy.deepcopy(phases), pickle.loads(pickle.dumps(phases))):
        assert twin.switch_at == [1, 3]
        assert twin.state_dict() == phases.state_dict()
        assert not any(isinstance(value, torch.Tensor) for value in vars(twin).values())
    assert len(pickle.dumps(phases)) < 1000


def test_trainers_that_never_log_are_no_problem():
    recorder = record(protecting_phases(), log_every_n_steps=0)
    assert len(recorder.seen) == 12
    assert not any(name.startswith("weights/classp") for name in recorder.logged[-1])
