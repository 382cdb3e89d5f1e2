"""LIFTFinetuning: which matrices are trained, and what a resumed run and a delta give."""

import copy
import pickle

import pytest
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from lightning_weights.callbacks import ExactResume, LIFTFinetuning
from lightning_weights.functional.lift_delta import load_delta
from lightning_weights.optimizers import LIFTAdamW
from tests.callbacks.lift_cases import RULE, Watch, classifier, fit, weights
from tests.helpers.battery import NOISE, SaveAt, differing, flat

pytestmark = [pytest.mark.filterwarnings(NOISE), pytest.mark.filterwarnings("ignore:.*update_interval")]


def test_matrices_are_marked_and_the_rest_is_frozen_until_the_fit_ends():
    model, watch = classifier(), Watch()
    start = weights(model)
    fit(model, LIFTFinetuning(exclude_modules=["head"]), [watch])
    assert watch.marked == watch.trained == ["network.body.1.weight", "network.body.4.weight"]
    assert all(param.requires_grad and not vars(param) for param in model.parameters())
    moved = {name.removeprefix(".") for name in differing(start, weights(model))}
    assert moved == set(watch.marked)


def test_exactly_k_entries_of_each_matrix_move_and_others_keep_their_bits():
    model = classifier(update_interval=100)
    start = copy.deepcopy(model.network)
    fit(model, LIFTFinetuning())
    for layer, before in ((model.network.body[1], start.body[1]), (model.network.head, start.head)):
        moved = int((layer.weight != before.weight).sum())
        assert 0 < moved <= sum(layer.weight.shape)


def test_everything_else_can_be_trained_too():
    model, watch = classifier(), Watch()
    start = weights(model)
    fit(model, LIFTFinetuning(target_modules=["body.4"], train_other=True), [watch])
    assert watch.marked == ["network.body.4.weight"]
    assert len(watch.trained) == len(start) == len(differing(start, weights(model)))


def test_resuming_inside_an_interval_changes_no_bit(tmp_path):
    """Saved after steps 2 (first masks), 3 (right after a refresh) and 5; the refreshes are after steps 3 and 7."""
    saves = [SaveAt("on_train_batch_end", step, tmp_path / str(step)) for step in (2, 3, 5)]
    results = []
    for ckpt in (None, *(tmp_path / str(step) for step in (2, 3, 5))):
        model, lift = classifier(), LIFTFinetuning(save_delta=True)
        trainer = fit(
            model, lift, [ExactResume(), *(saves if ckpt is None else ())], ckpt=ckpt, default_root_dir=tmp_path / "out"
        )
        results.append(flat([weights(model), trainer.optimizers[0].state_dict(), lift.state_dict()]))
    assert all(not differing(results[0], resumed) for resumed in results[1:])
    assert results[0][".2.churn"] > 0


def test_a_delta_gives_the_trained_weights_in_every_bit(tmp_path):
    model, lift = classifier(), LIFTFinetuning(save_delta=True)
    fit(model, lift, max_epochs=4, default_root_dir=tmp_path)
    original = classifier()
    changed = load_delta(original, tmp_path / "lift_delta.safetensors")
    assert changed == [name for name, _ in model.named_parameters() if name.endswith("weight")]
    assert not differing(weights(model), weights(original))
    selected = sum(len(known["indices"]) for known in lift.state_dict()["originals"].values())
    assert selected > sum(sum(layer.weight.shape) for layer in (model.network.body[1], model.network.body[4]))
    lift.export_delta(model, tmp_path / "again")
    assert (tmp_path / "again").stat().st_size == (tmp_path / "lift_delta.safetensors").stat().st_size


def test_churn_is_the_share_of_replaced_entries():
    model, seen = classifier(), []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            chosen = {i: set(s["idx"].tolist()) for i, s in enumerate(trainer.optimizers[0].state.values())}
            seen.append((chosen, trainer.callback_metrics["weights/lift/mask_churn"].item()))

    fit(model, LIFTFinetuning(), [Look()])
    (before, zero), (after, churn) = seen[1], seen[2]
    replaced = sum(len(after[i] - before[i]) for i in before)
    assert (zero, replaced > 0) == (0.0, True)
    assert churn == pytest.approx(replaced / sum(map(len, before.values())))
    assert seen[5][1] == churn
    silent = fit(classifier(), LIFTFinetuning(log_mask_churn=False))
    assert "weights/lift/mask_churn" not in silent.callback_metrics


def test_an_optimizer_may_be_made_before_the_fit():
    """As LightningCLI does with the one of a config's top level, before anything is marked or frozen."""
    early, usual = classifier(), classifier()
    optimizer = LIFTAdamW(early.parameters(), **RULE)
    early.configure_optimizers = lambda: optimizer
    for model in (early, usual):
        fit(model, LIFTFinetuning(exclude_modules=["head"]))
    assert not differing(weights(early), weights(usual))


def test_a_module_may_be_copied_while_it_is_trained():
    copies = []

    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 3:
                copies.extend([copy.deepcopy(pl_module.network), copy.deepcopy(pl_module)])

    model, plain = classifier(), classifier()
    fit(model, LIFTFinetuning(), [Copy()])
    fit(plain, LIFTFinetuning())
    assert not differing(weights(model), weights(plain))
    assert not differing(flat(copies[0].state_dict()), flat(copies[1].network.state_dict()))


def test_copies_are_lean_and_configs_may_be_omegaconf():
    lift = LIFTFinetuning(**OmegaConf.create({"target_modules": ["body.1", "head"], "exclude_modules": ["head"]}))
    assert (type(lift.target_modules), type(lift.exclude_modules)) == (list, list)
    fit(classifier(), lift)
    for twin in (copy.deepcopy(lift), pickle.loads(pickle.dumps(lift))):
        assert twin.target_modules == ["body.1", "head"]
        assert twin.state_dict()["originals"] == {}
    assert len(pickle.dumps(lift)) < 1000
