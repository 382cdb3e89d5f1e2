"""Signatures on a network while a Trainer measures it."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch.utils.data import DataLoader

from lightning_weights.callbacks import RWSPatch
from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import patched
from tests.callbacks.rws_cases import expected_logits, images, make_module, save_signatures
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS
from tests.modules.signature_cases import SmallResNet, bits, same_bits, signature_of, small_vgg

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(num_workers|checkpoint|LeafSpec|GPU|logging interval|returned `?None|on purpose).*"
)
CHANGE = "weights/rws/relative_change"


@pytest.fixture
def files(tmp_path):
    """Return a function that saves signatures of a network and gives their paths."""
    return partial(save_signatures, tmp_path)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(("stage", "levels"), [("validate", None), ("validate", 16), ("test", 16), ("predict", None)])
def test_stages_see_patched_weights(files, stage, levels, root):
    network = small_vgg()
    before, module = bits(network), make_module(network, root)
    trainer = make_trainer([RWSPatch(files(network, levels, 2), scales=[1.0, -0.5])], root)
    getattr(trainer, stage)(module)
    assert same_bits(network, before)
    signatures = [signature_of(small_vgg(), i, levels, f"corruption {i}") for i in range(2)]
    expected = expected_logits(network, module.val_dataloader(), signatures, [1.0, -0.5])
    assert all(torch.equal(a, b) for a, b in zip(module.seen[stage], expected, strict=True))
    assert (CHANGE in trainer.callback_metrics) == (stage != "predict")
    if stage != "predict":
        with patched(network, signatures, [1.0, -0.5]) as controller:
            assert float(trainer.callback_metrics[CHANGE]) == pytest.approx(controller.relative_change(), rel=1e-6)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_see_clean_weights(files, stage):
    network = small_vgg()
    module = make_module(network)
    others = [name for name in ("validate", "test", "predict") if name != stage]
    trainer = make_trainer([RWSPatch(files(network), stages=others)])
    getattr(trainer, stage)(module)
    with torch.no_grad():
        assert torch.equal(module.seen[stage][0], network.eval()(images(seed=1).tensors[0][:4]))
    assert CHANGE not in trainer.callback_metrics


def trained(network, callbacks, root=ROOTS[0], **options):
    torch.manual_seed(3)
    module = make_module(network, root)
    trainer = make_trainer(callbacks, root, **{"max_epochs": 2, "val_check_interval": 1, **options})
    trainer.fit(module)
    return module, trainer


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("bn", ["keep", "reestimate"])
def test_training_never_sees_the_patch(files, bn, root):
    """Validation in the middle of an epoch; shuffling would tell if re-estimating had drawn a random number."""
    path = files(SmallResNet())
    plain, _ = trained(SmallResNet(), [], root)
    module, _ = trained(SmallResNet(), [RWSPatch(path, bn=bn)], root)
    assert same_bits(module.net, bits(plain.net))
    assert all(torch.equal(a, b) for a, b in zip(plain.seen["train"], module.seen["train"], strict=True))
    assert len(module.seen["validate"]) == 8
    assert not any(torch.equal(a, b) for a, b in zip(plain.seen["validate"], module.seen["validate"], strict=True))


class SaveEverywhere(Callback):
    """Saves in every hook of a validation, with and without callbacks' states."""

    def __init__(self, folder) -> None:
        self.folder, self.count = folder, 0

    def _save(self, trainer, pl_module, *arguments) -> None:
        for weights_only in (True, False):
            self.count += 1
            trainer.save_checkpoint(self.folder / f"save-{self.count}.ckpt", weights_only)

    on_validation_start = on_validation_batch_start = on_validation_batch_end = _save
    on_validation_epoch_end = on_validation_end = _save


def save_in_step(self, batch, batch_idx):
    self.log("val/loss", self._step("validate", batch))
    self.trainer.save_checkpoint(self.folder / f"step-{batch_idx}.ckpt", weights_only=True)
    assert all(torch.equal(value, self.clean[name]) for name, value in self.state_dict().items())
    assert not torch.equal(self.net[0].weight, self.clean["net.0.weight"])


@pytest.mark.parametrize("first", [True, False])
def test_checkpoints_are_clean_wherever_they_are_saved(files, tmp_path, first):
    network = small_vgg()
    patch, saver = RWSPatch(files(network)), SaveEverywhere(tmp_path)
    keeper = ModelCheckpoint(tmp_path / "kept", monitor="val/loss", save_top_k=-1)
    module = make_module(network, validation_step=save_in_step, folder=tmp_path)
    module.clean = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    callbacks = [patch, saver, keeper] if first else [saver, patch, keeper]
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    make_trainer(callbacks, max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path).fit(module)
    saved = list(tmp_path.rglob("*.ckpt"))
    assert len(saved) == 1 + 2 + saver.count
    for path in saved:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert state.keys() == module.clean.keys()
        assert all(torch.equal(value, module.clean[name]) for name, value in state.items()), path.name


class Fail(Callback):
    """Fails in a hook, as one does that is interrupted."""

    def __init__(self, hook: str, error: type[BaseException]) -> None:
        self.error = error
        setattr(self, hook, self._fail)

    def _fail(self, *arguments: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        ("on_validation_batch_start", RuntimeError),
        ("on_validation_batch_end", KeyboardInterrupt),
        ("on_validation_epoch_end", RuntimeError),
    ],
)
@pytest.mark.parametrize("entry", ["fit", "validate"])
@pytest.mark.parametrize("first", [True, False])
def test_every_bit_comes_back_after_an_exception(files, hook, entry, error, first):
    network = SmallResNet()
    module, patch, fail = make_module(network), RWSPatch(files(network), bn="reestimate"), Fail(hook, error)
    module.configure_optimizers = lambda: None
    module.train_dataloader = lambda: DataLoader(images(), batch_size=4)
    trainer = make_trainer([patch, fail] if first else [fail, patch], max_epochs=1)
    before = bits(network)
    module.training_step = lambda batch, batch_idx: None
    with pytest.raises((error, SystemExit)):
        getattr(trainer, entry)(module)
    assert same_bits(network, before)
    assert not module._state_dict_hooks


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_patched_and_stay_averages(files, first):
    def run(callbacks):
        network = small_vgg()
        average = WeightAveraging(avg_fn=lambda mean, now, count: 0.5 * mean + 0.5 * now)
        module, _ = trained(network, [average, *callbacks] if first else [*callbacks, average])
        return module, average._average_model

    path = files(small_vgg())
    plain, plain_average = run([])
    module, average = run([RWSPatch(path)])
    assert same_bits(module.net, bits(plain.net))
    assert same_bits(average, bits(plain_average))
    expected = expected_logits(module.net, module.val_dataloader(), signature_of(small_vgg(), 0, 16))
    assert torch.equal(module.seen["validate"][-1], expected[-1])  # the fit ends with the averages in place


def test_scales_can_be_changed_between_batches_and_survive_a_resume(files, tmp_path):
    network = small_vgg()
    path = files(network)[0]
    patch = RWSPatch([path])

    class Rescale(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *batch):
            patch.set_scale(path, 0.25)

    module = make_module(network)
    trainer = make_trainer([patch, Rescale()])
    trainer.validate(module)
    signature = signature_of(small_vgg(), 0, 16)
    for found, scale, batch in zip(module.seen["validate"], (1.0, 0.25), module.val_dataloader(), strict=True):
        assert torch.equal(found, expected_logits(network, [batch], signature, scale)[0])
    _, trainer = trained(small_vgg(), [patch])
    trainer.save_checkpoint(tmp_path / "ckpt")
    resumed, measured = RWSPatch([path]), RWSPatch([path], scales=2.0)
    make_trainer([resumed], max_epochs=3).fit(make_module(small_vgg()), ckpt_path=tmp_path / "ckpt")
    make_trainer([measured]).validate(make_module(small_vgg()), ckpt_path=tmp_path / "ckpt")
    assert (resumed.scales, measured.scales) == ([0.25], [2.0])
    assert patch.state_dict() == {"signatures": [path], "scales": [0.25]}
    with pytest.raises(ValueError, match="signature is 'other'"):
        patch.set_scale("other", 1.0)
    with pytest.raises(ValueError, match="scale is nan"):
        patch.set_scale(path, float("nan"))


def test_published_weighting(files):
    network = small_vgg()
    paths, module = files(network, count=2), make_module(network)
    make_trainer([RWSPatch(paths, weighting="published")]).test(module)
    signatures = [signature_of(small_vgg(), i, 16, f"corruption {i}") for i in range(2)]
    expected = expected_logits(network, module.val_dataloader(), signatures, 0.25)
    assert torch.equal(module.seen["test"][0], expected[0])


def test_a_module_with_two_networks_needs_the_name_of_one(files):
    network = small_vgg()
    path, module = files(network), make_module(network)
    module.teacher = copy.deepcopy(network)
    with pytest.raises(ValueError, match="fits net and teacher; give the part"):
        make_trainer([RWSPatch(path)]).test(module)
    make_trainer([RWSPatch(path, network="net")]).test(module)
    expected = expected_logits(network, module.val_dataloader(), signature_of(small_vgg(), 0, 16))
    assert torch.equal(module.seen["test"][0], expected[0])
    with pytest.raises(ValueError, match="network is 'body', but the parts of the module are"):
        make_trainer([RWSPatch(path, network="body")]).test(module)


def test_two_callbacks_on_the_same_layers(files):
    paths, module = files(small_vgg(), count=2), make_module(small_vgg())
    pair = [RWSPatch(paths[:1], stages=["test"]), RWSPatch(paths[1:], stages=["validate", "test"])]
    make_trainer(pair).validate(module)
    before = bits(module.net)
    with pytest.raises(
        ValueError, match=r"0\.safetensors.* and .*1\.safetensors.* patch the same layers in stage 'test'"
    ):
        make_trainer(pair).test(module)
    assert same_bits(module.net, before)
    module.teacher = copy.deepcopy(module.net)
    make_trainer([RWSPatch(paths[:1], network="net"), RWSPatch(paths[1:], network="teacher")]).test(module)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision(files, precision):
    network = small_vgg()
    path, module = files(network), make_module(network)
    trainer = make_trainer([RWSPatch(path, scales=5.0)], precision=precision)
    trainer.test(module)
    before, signature = bits(network), signature_of(small_vgg(), 0, 16)
    with torch.no_grad(), patched(network, signature, 5.0), trainer.precision_plugin.test_step_context():
        inputs = trainer.precision_plugin.convert_input([x for x, _ in module.val_dataloader()])
        expected = [network(x) for x in inputs]
    assert all(torch.equal(a, b) for a, b in zip(module.seen["test"], expected, strict=True))
    assert same_bits(network, before)


def test_what_does_not_fit_is_told_before_the_training(files):
    path = files(small_vgg())
    module = make_module(SmallResNet())
    with pytest.raises(ValueError, match="doesn't fit this network"):
        make_trainer([RWSPatch(path)], max_epochs=1).fit(module)
    assert not module.seen["train"]
    module = make_module(small_vgg())
    module.net[0].weight.placements = ()
    with pytest.raises(ShardedParameterError, match="use DDP"):
        make_trainer([RWSPatch(path)], max_epochs=1).fit(module)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors is not there"):
        make_trainer([RWSPatch(["nowhere.safetensors"])]).test(module)


def test_a_fit_inside_of_a_patch_is_refused():
    network = small_vgg()
    module, before = make_module(network), bits(network)
    with pytest.raises(ValueError, match="trained while it is patched"), patched(network, signature_of(network)):
        make_trainer([], max_epochs=1).fit(module)
    assert same_bits(network, before)


def test_compiled_graphs_stay_valid(files):
    network = small_vgg()
    path, traced = files(network), []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    module = make_module(torch.compile(network, backend=backend))
    trainer = make_trainer([RWSPatch(path, stages=["test"])])
    trainer.validate(module)
    count = len(traced)
    trainer.test(module)
    expected = expected_logits(network, module.val_dataloader(), signature_of(small_vgg(), 0, 16))
    torch.testing.assert_close(module.seen["test"][0], expected[0])
    assert len(traced) == count == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signatures", []),
        ("signatures", "fog.safetensors"),
        ("signatures", ["a", "a"]),
        ("scales", [1.0, 2.0]),
        ("scale", float("inf")),
        ("stages", ["fit"]),
        ("stages", "test"),
        ("bn", "drop"),
        ("bn_batches", 0),
        ("weighting", "mean"),
        ("network", None),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name} "):
        RWSPatch(**{"signatures": ["fog.safetensors"], "scales" if name == "scale" else name: value})
