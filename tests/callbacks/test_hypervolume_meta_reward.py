import copy
import math
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_weights.callbacks import HypervolumeMetaReward
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.dynamic_reward import hypervolume, meta_reward
from tests.helpers.toy_rl import OBJECTIVES, toy_fit, toy_module

NAMES, DIRECTIONS = ["accuracy", "length"], [True, False]


def trainer(step, **metrics):
    return SimpleNamespace(
        global_step=step,
        sanity_checking=False,
        enable_validation=True,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
        callback_metrics={f"val/{name}": torch.tensor(value) for name, value in metrics.items()},
    )


def validate(callback, step, accuracy, length):
    callback.on_validation_end(trainer(step, accuracy=accuracy, length=length), nn.Module())
    return callback.value


def started(**options):
    callback, module = HypervolumeMetaReward(NAMES, DIRECTIONS, **options), nn.Module()
    callback.setup(trainer(0), module, "fit")
    assert module.meta_reward is callback
    return callback


def test_the_first_validation_is_the_reference():
    callback = started(scale=[1.0, 10.0])
    assert callback.value == 1.0
    assert validate(callback, 1, 0.5, 30.0) == 1.0
    assert callback.archive.reference == [0.5, 30.0]
    assert validate(callback, 2, 0.75, 20.0) == meta_reward(0.25 * 1.0)
    assert validate(callback, 3, 0.7, 25.0) == 0.5
    assert validate(callback, 4, 0.9, 40.0) == 0.5, "it is longer than the reference"
    assert validate(callback, 5, 1.0, 20.0) == pytest.approx(meta_reward(0.25 * 1.0))
    assert callback.archive.points == [[1.0, 20.0]]
    assert len(started(prune=False).kept or {}) == 0


def test_a_given_reference_counts_at_once():
    callback = started(reference=[0.0, 10.0], low=1.0, gain=2.0)
    assert validate(callback, 0, 0.5, 8.0) == pytest.approx(1.0 + 2.0 * math.tanh(1.0))
    assert validate(callback, 1, 0.5, 8.0) == 1.0


def test_validations_that_come_too_soon_or_are_no_training_do_not_count():
    callback = started(reference=[0.0, 10.0], every_n_steps=3)
    validate(callback, 1, 0.5, 8.0)
    before = callback.state_dict()
    validate(callback, 3, 0.9, 2.0)
    assert callback.state_dict() == before
    for change in ({"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}):
        found = trainer(9, accuracy=0.9, length=2.0)
        vars(found).update(change)
        callback.on_validation_end(found, nn.Module())
    assert callback.state_dict() == before
    validate(callback, 4, 0.9, 2.0)
    assert callback.state_dict() != before


def test_states_come_back():
    callback = started()
    for step, (accuracy, length) in enumerate([(0.1, 9.0), (0.3, 8.0), (0.2, 6.0)]):
        validate(callback, step, accuracy, length)
    twin, again = copy.deepcopy(callback), started()
    again.load_state_dict(callback.state_dict())
    assert twin.state_dict() == again.state_dict() == callback.state_dict()
    found = [validate(each, 5, 0.4, 5.0) for each in (callback, twin, again)]
    assert found[0] == found[1] == found[2] > 0.5


def test_it_follows_a_training():
    sizes = {"maximize": [True, False, True], "reference": [-0.1, 9.0, -0.1], "scale": [1.0, 9.0, 1.0]}
    seen = []

    class Watch(HypervolumeMetaReward):
        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            seen.append([float(trainer.callback_metrics[f"val/{name}"]) for name in OBJECTIVES])

    callback = Watch(OBJECTIVES, **sizes)
    found = toy_fit(toy_module(), [callback])
    logged = {
        name: float(v) for name, v in found.callback_metrics.items() if name.startswith("weights/dynamic_reward/")
    }
    assert len(seen) == 6
    scaled = [[a, length / 9, c] for a, length, c in seen]
    want = hypervolume(scaled, [-0.1, 1.0, -0.1], [True, False, True])
    assert callback.archive.hypervolume() == pytest.approx(want)
    assert want > 0
    assert logged.keys() == {
        f"weights/dynamic_reward/{name}" for name in ("meta_reward", "hypervolume", "gain", "front")
    }


def test_missing_metrics_and_validations():
    callback = started()
    with pytest.raises(ValueError, match=r"'val/length' was not logged in validation; logged were: val/accuracy"):
        callback.on_validation_end(trainer(1, accuracy=0.5), nn.Module())
    with pytest.raises(ValueError, match="'val/length' is nan after validation"):
        validate(callback, 1, 0.5, math.nan)
    with pytest.raises(ValueError, match="there is no validation"):
        toy_fit(toy_module(), [HypervolumeMetaReward(OBJECTIVES, [True] * 3)], limit_val_batches=0)


def test_rewards_that_are_normalised_are_warned_of():
    own = [(SimpleNamespace(estimator=name), name) for name in ("grpo", "reinforce++")]
    for module, name in (*own, (toy_module(aggregation="normalize_then_sum"), "normalize_then_sum")):
        with pytest.warns(LightningWeightsWarning, match=f"no effect with '{re.escape(name)}'"):
            started(apply_to="reward").on_fit_start(trainer(0), module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started(apply_to="reward").on_fit_start(trainer(0), toy_module())
        started().on_fit_start(trainer(0), toy_module(estimator="grpo"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": "accuracy"}, "objectives is 'accuracy'"),
        ({"maximize": [True]}, r"maximize is \[True\]; allowed is a list of 2"),
        ({"reference": [0.0]}, "reference is"),
        ({"scale": [1.0, 2.0, 3.0]}, "scale is"),
        ({"scale": [1.0, 0.0]}, "scale is 0.0"),
        ({"objectives": [], "maximize": []}, "reference has 0 numbers"),
        ({"low": -1.0}, "low is -1.0"),
        ({"gain": math.inf}, "gain is inf"),
        ({"apply_to": "loss"}, "apply_to is 'loss'"),
        ({"every_n_steps": 0}, "every_n_steps is 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        HypervolumeMetaReward(**{"objectives": NAMES, "maximize": DIRECTIONS, **options})
