"""OscillationTracker in a Trainer: when it looks, what it counts and logs, freezing, resuming, and what is refused."""

import itertools

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from lightning_weights.callbacks import OFQ, ExactResume, OscillationTracker
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.metrics import OscillationRate
from lightning_weights.modules import fake_quantized
from tests.behaviour.test_gradients import ScalingOnly
from tests.callbacks.ofq_cases import NOISE, fit, images, vit
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)


def ofq(**options):
    return OFQ(**{"distillation": 0.0, **options})


def sgd(params):
    return torch.optim.SGD(params, lr=0.3)


class Measure(Callback):
    """Follows the codes with the metric, from outside."""

    def __init__(self, momentum=0.01, threshold=0.005):
        self.metric, self.steps = OscillationRate(momentum, threshold), []

    def codes(self, module):
        return {name: layer.weight_codes() for name, layer in fake_quantized(module).items()}

    def on_train_start(self, trainer, pl_module):
        self.metric.update(self.codes(pl_module))
        self.last = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step != self.last:
            self.metric.update(self.codes(pl_module))
            self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.last = trainer.global_step


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=str)
def test_counts_what_the_metric_counts_once_per_step(options):
    tracker, measure = OscillationTracker(0.1, 0.05, log_every_n_steps=1), Measure(0.1, 0.05)
    trainer = fit(vit(sgd), [ofq(qkr=True), tracker, measure], epochs=4, **options)
    wanted = {name: float(value) for name, value in measure.metric.compute().items()}
    assert wanted["oscillations"] > 20
    assert float(trainer.callback_metrics["weights/ofq/oscillations"]) == wanted["oscillations"]
    assert float(trainer.callback_metrics["weights/ofq/oscillating"]) == pytest.approx(wanted["oscillating"])
    state = tracker.state_dict()
    assert state["steps"] == trainer.global_step == (12 if not options else 8)
    size = sum(layer["previous"].numel() for layer in state["layers"].values())
    assert state["flips"] / (size * state["steps"]) == pytest.approx(wanted["flips"])
    flips = [step["weights/ofq/flips"] for step in measure.steps]
    assert sum(flips) / len(flips) == pytest.approx(wanted["flips"], rel=1e-4)


def test_ofq_watches_by_itself_unless_a_tracker_does():
    logged = []
    for callbacks in ([ofq(momentum=0.1)], [ofq(), OscillationTracker(0.1, log_every_n_steps=1)]):
        trainer = fit(vit(sgd), callbacks, epochs=3)
        logged.append({name: v for name, v in trainer.callback_metrics.items() if name.startswith("weights/")})
    assert logged[0] == logged[1]
    assert logged[0]["weights/ofq/oscillations"] > 0
    alone = ofq(track_oscillation=False)
    assert not any("ofq" in name for name in fit(vit(sgd), [alone], epochs=1).callback_metrics)
    assert alone.state_dict()["oscillation"]["layers"] == {}


def test_it_logs_every_so_many_steps():
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append("weights/ofq/flips" in trainer.callback_metrics)

    fit(vit(sgd), [ofq(track_oscillation=False), OscillationTracker(log_every_n_steps=4), Look()], epochs=2)
    assert seen == [False, False, False, True, True, True]


def test_steps_that_a_scaler_skips_do_not_count():
    class Overflow(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step < 2:
                pl_module.network.head.bias.grad[0] = torch.inf

    tracker = OscillationTracker()
    fit(vit(sgd), [ofq(), tracker, Overflow()], epochs=2, plugins=[ScalingOnly(autocast=False)])
    assert tracker.state_dict()["steps"] < 6


def test_oscillating_codes_are_frozen_for_good_and_reach_the_export(tmp_path):
    model, tracker = vit(sgd), OscillationTracker(0.1, 0.05, log_every_n_steps=1, freeze_threshold=0.2)
    held = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            layers = fake_quantized(pl_module).items()
            held.append(
                {
                    name: (layer.weight_quantizer.frozen.clone(), layer.weight_codes())
                    for name, layer in layers
                    if getattr(layer.weight_quantizer, "frozen", None) is not None
                }
            )

    trainer = fit(model, [ofq(), tracker, Look()], epochs=6)
    shares = [sum(int(frozen.sum()) for frozen, _ in step.values()) for step in held]
    assert shares == sorted(shares)
    assert shares[-1] > 0
    for name, state in tracker.state_dict()["layers"].items():
        masks = [step[name][0] for step in held if name in step]
        assert all(bool((later | ~frozen).all()) for frozen, later in itertools.pairwise(masks))
        if masks:
            frozen, codes = held[-1][name]
            assert torch.equal(state["freezing_codes"][frozen], codes[frozen])
    watched = sum(layer.weight_codes().numel() for layer in fake_quantized(model).values())
    assert float(trainer.callback_metrics["weights/ofq/frozen"]) == pytest.approx(shares[-1] / watched)
    exported = OFQ.export(model)
    for name, (frozen, codes) in held[-1].items():
        assert torch.equal(exported[name]["codes"][frozen], codes[frozen])


@pytest.mark.parametrize("freeze", [None, 0.2])
def test_resuming_keeps_the_history(tmp_path, freeze):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "ckpt")

    def parts():
        return [ofq(), OscillationTracker(0.1, 0.05, freeze_threshold=freeze), ExactResume()]

    straight, resumed = parts(), parts()
    straight_model = vit(sgd)
    fit(straight_model, [*straight, Save()], epochs=4, data=images(shuffle=True))
    fit(vit(sgd), resumed, epochs=4, ckpt=tmp_path / "ckpt", data=images(shuffle=True))
    ours, theirs = (callbacks[1].state_dict() for callbacks in (straight, resumed))
    assert ours["steps"] == theirs["steps"] == 12
    assert (ours["flips"], ours["oscillations"]) == (theirs["flips"], theirs["oscillations"])
    assert ours["oscillations"] > 0
    for name, layer in ours["layers"].items():
        for field, value in layer.items():
            assert torch.equal(value, theirs["layers"][name][field]), (name, field)
    saved = torch.load(tmp_path / "ckpt", weights_only=True)["callbacks"]["OscillationTracker"]
    assert saved["steps"] == 7
    del saved["layers"]["network.head"]
    tracker = OscillationTracker()
    tracker.load_state_dict(saved)
    with pytest.raises(
        ValueError, match=r"of other weights: network.head has no weights there and a shape of \(3, 8\)"
    ):
        tracker.on_train_start(make_trainer([]), straight_model)


def test_bad_input_is_refused():
    with pytest.raises(MisconfigurationException, match="found no quantized weight"):
        fit(vit(), [OscillationTracker()])
    with pytest.warns(LightningWeightsWarning, match="below twice the momentum"):
        OscillationTracker(momentum=0.1, freeze_threshold=0.15)
    for options in ({"momentum": 0.0}, {"threshold": 1.0}, {"log_every_n_steps": 0}, {"freeze_threshold": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            OscillationTracker(**options)
