"""Fits that begin with predicted weights: what is loaded, what stands still, exact resume, and refusals."""

import importlib
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import ExactResume, KnowledgeOverflowInit, ProgressiveForgetting
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import (
    KNOWN,
    KNOWNBank,
    predict_overflowed,
    read_snapshots,
    reestimate_batch_norm,
    write_predicted,
)
from tests.helpers.battery import SaveAt, differing, flat
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval|checkpoint|LeafSpec|GPU).*")


class _Module:
    classes, weight_decay = 3, 0.1

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6))
        self.head = nn.Linear(6, self.classes)
        self.states = []

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        self.states.append({name: value.clone() for name, value in self.state_dict().items()})
        return nn.functional.cross_entropy(self(batch[0]), batch[1] % self.classes)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=self.weight_decay)


def module_of(root=ROOTS[0], seed=0, **overrides):
    return type("Module", (_Module, importlib.import_module(root).LightningModule), overrides)(seed)


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(12, 4, generator=generator), torch.arange(12))


def loader(**options):
    return DataLoader(data(), **{"batch_size": 4, **options})


def fit(callback, module=None, root=ROOTS[0], extra=(), ckpt=None, **options):
    module = module_of(root, seed=5) if module is None else module
    trainer = make_trainer([callback, *extra], root, **{"max_epochs": 3, **options})
    trainer.fit(module, loader(), ckpt_path=ckpt)
    return module, trainer


@pytest.fixture
def predicted(tmp_path):
    """Write weights to a file, and return it with them."""
    state = {name: value.clone() for name, value in module_of(seed=1).state_dict().items()}
    state["body.1.running_mean"] += 3.0
    write_predicted(tmp_path / "predicted.safetensors", state)
    return str(tmp_path / "predicted.safetensors"), state


NORMS = ("body.1.", "body.4.")


@pytest.mark.parametrize("root", ROOTS)
def test_weights_are_loaded_and_the_head_is_not(root, predicted):
    path, state = predicted
    before = module_of(root, seed=5).state_dict()
    module, _ = fit(KnowledgeOverflowInit(path, exclude=["head"], reestimate_batches=0), root=root)
    start = module.states[0]
    expected = {name: before[name] if name.startswith("head") else state[name] for name in state}
    assert not differing(flat(start), flat(expected))


@pytest.mark.parametrize("root", ROOTS)
def test_only_head_and_norms_are_trained_first_and_then_all(root, predicted):
    callback = KnowledgeOverflowInit(predicted[0], exclude=["head"], warmup_epochs=2)
    module, trainer = fit(callback, root=root)
    first, second, last = module.states[0], module.states[6], module.state_dict()
    moved = {name for name, _ in module.named_parameters() if not torch.equal(first[name], second[name])}
    assert moved == {n for n, _ in module.named_parameters() if n.startswith((*NORMS, "head"))}
    assert all(not torch.equal(second[name], last[name]) for name, _ in module.named_parameters())
    assert all(param.requires_grad for param in module.parameters())
    assert trainer.callback_metrics["weights/know/trained"] == sum(param.numel() for param in module.parameters())


def test_weights_that_stand_still_have_no_optimizer_state_and_no_decay(predicted):
    callback = KnowledgeOverflowInit(predicted[0], exclude=["head"], warmup_epochs=3)
    module, trainer = fit(callback)
    state = trainer.optimizers[0].state
    still = {name for name, param in module.named_parameters() if param not in state}
    assert still == {"body.0.weight", "body.0.bias", "body.3.weight", "body.3.bias"}
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
    assert trainer.callback_metrics["weights/know/trained"] == 2 * 6 + 2 * 6 + 6 * 3 + 3


def test_the_first_phase_is_that_of_an_optimizer_without_the_rest(predicted):
    path, state = predicted
    module, _ = fit(KnowledgeOverflowInit(path, exclude=["head"], warmup_epochs=3, reestimate_batches=0))
    plain = module_of(seed=5)
    head = {name: value.clone() for name, value in plain.state_dict().items() if name.startswith("head")}
    plain.load_state_dict({**state, **head})
    chosen = [param for name, param in plain.named_parameters() if name.startswith((*NORMS, "head"))]
    optimizer = torch.optim.AdamW(chosen, lr=0.05, weight_decay=0.1)
    for _ in range(3):
        for batch in loader():
            optimizer.zero_grad()
            plain.training_step(batch, 0).backward()
            optimizer.step()
    assert not differing(flat(module.state_dict()), flat(plain.state_dict()))


def test_a_head_of_other_classes_is_left_out_by_its_shape(predicted):
    path, state = predicted
    callback = KnowledgeOverflowInit(path, warmup_epochs=1)
    module, _ = fit(callback, module_of(seed=5, classes=2))
    assert torch.equal(module.states[0]["body.3.weight"], state["body.3.weight"])
    assert callback.state_dict()["first"] == [
        f"{layer}.{part}" for layer in ("body.1", "body.4", "head") for part in ("weight", "bias")
    ]
    with pytest.raises(
        ValueError, match=r"strict is True, but .* differ: the file has no \['head.bias', 'head.weight'"
    ):
        fit(KnowledgeOverflowInit(path, strict=True), module_of(seed=5, classes=2))
    fit(KnowledgeOverflowInit(path, strict=True, exclude=["head"]), module_of(seed=5, classes=2))


def test_statistics_are_those_of_the_loaded_weights(predicted):
    path, state = predicted
    module, _ = fit(KnowledgeOverflowInit(path, exclude=["head"], reestimate_batches=2))
    plain = module_of()
    plain.load_state_dict(state)
    reestimate_batch_norm(plain, list(loader())[:2])
    found = {name: module.states[0][name] for name in state if "running" in name}
    torch.testing.assert_close(found, {name: plain.state_dict()[name] for name in found})
    with pytest.warns(LightningWeightsWarning, match="reestimate_batches is 0: batch normalisation has statistics"):
        fit(KnowledgeOverflowInit(path, exclude=["head"], reestimate_batches=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LightningWeightsWarning)
        fit(KnowledgeOverflowInit(path, exclude=["head"]))


def test_estimating_statistics_moves_no_generator(predicted):
    orders = []
    for batches in (0, 3):
        torch.manual_seed(0)
        seen = []
        module = module_of(seed=5, on_train_batch_start=lambda self, batch, index, seen=seen: seen.append(batch[1]))
        torch.manual_seed(0)
        trainer = make_trainer(
            [KnowledgeOverflowInit(predicted[0], exclude=["head"], reestimate_batches=batches)], max_epochs=1
        )
        trainer.fit(module, loader(shuffle=True, generator=torch.Generator().manual_seed(0)))
        orders.append(torch.cat(seen))
    assert torch.equal(*orders)


def test_recursions_for_a_file_of_weights_are_told(predicted):
    with pytest.warns(LightningWeightsWarning, match="recursions is 3, but .*predicted.safetensors is a file of weigh"):
        fit(KnowledgeOverflowInit(predicted[0], recursions=3, exclude=["head"]), fast_dev_run=True)


@pytest.mark.parametrize("recursions", [0, 2])
def test_a_folder_of_snapshots_is_predicted_from(recursions, tmp_path):
    torch.manual_seed(0)
    bank = KNOWNBank(conv=KNOWN(3), fc=KNOWN(3), bias=KNOWN(3))
    bank.save(tmp_path / "bank.safetensors")
    forgetting = ProgressiveForgetting(0.8, 4, snapshot_dir=str(tmp_path / "run"))
    make_trainer([forgetting], max_epochs=4).fit(module_of(seed=1), loader(drop_last=True))
    expected = predict_overflowed(read_snapshots(tmp_path / "run", last=3), bank, recursions)
    arguments = {"bank": str(tmp_path / "bank.safetensors"), "recursions": recursions, "reestimate_batches": 0}
    module, _ = fit(KnowledgeOverflowInit(str(tmp_path / "run"), **arguments, warmup_epochs=1))
    assert not differing(flat(module.states[0]), flat(expected))


PLACES = {"warm": ("on_train_batch_end", 2), "end": ("on_train_epoch_end", 1), "second": ("on_train_batch_end", 5)}


@pytest.mark.parametrize("root", ROOTS)
def test_a_stopped_run_goes_on_bit_for_bit_without_the_file(root, predicted, tmp_path):
    path, _ = predicted

    def run(seed, path=path, ckpt=None, extra=()):
        torch.manual_seed(seed)
        callback = KnowledgeOverflowInit(path, exclude=["head"], warmup_epochs=1)
        module, trainer = fit(callback, module_of(root, seed=seed), root, [ExactResume(), *extra], ckpt)
        return flat([module.state_dict(), trainer.optimizers[0].state_dict(), callback.state_dict()])

    straight = run(5, extra=[SaveAt(hook, count, tmp_path / place) for place, (hook, count) in PLACES.items()])
    for place in PLACES:
        assert not differing(straight, run(99, "gone.safetensors", tmp_path / place)), place


def test_a_run_that_began_without_it_goes_on_as_it_was(tmp_path):
    _, trainer = fit(ExactResume(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    plain, _ = fit(ExactResume(), ckpt=tmp_path / "plain.ckpt")
    module, _ = fit(KnowledgeOverflowInit("gone.safetensors"), extra=[ExactResume()], ckpt=tmp_path / "plain.ckpt")
    assert not differing(flat(module.state_dict()), flat(plain.state_dict()))


class Compiled(nn.Module):
    """Names its weights as torch.compile does."""

    def __init__(self, inside):
        super().__init__()
        self._orig_mod = inside

    def forward(self, x):
        return self._orig_mod(x)


def test_names_of_compiled_modules_are_those_without(predicted):
    path, state = predicted
    module = module_of(seed=5)
    module.body = Compiled(module.body)
    module, _ = fit(KnowledgeOverflowInit(path, exclude=["head"], warmup_epochs=9), module)
    assert torch.equal(module.states[0]["body._orig_mod.0.weight"], state["body.0.weight"])
    assert torch.equal(module.body._orig_mod[0].weight, state["body.0.weight"])
    assert not torch.equal(module.body._orig_mod[1].weight, state["body.1.weight"])


def test_all_may_be_trained_from_the_start(predicted):
    module, _ = fit(KnowledgeOverflowInit(predicted[0], warmup_trainable="all"), max_epochs=1)
    first, last = module.states[0], module.state_dict()
    assert all(not torch.equal(first[name], last[name]) for name, _ in module.named_parameters())


def test_what_does_not_fit_is_refused(predicted, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.safetensors is not there"):
        fit(KnowledgeOverflowInit("nowhere.safetensors"))
    write_predicted(tmp_path / "other.safetensors", {"trunk.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"nothing in .*other.safetensors fits Module: there are \['trunk.weight'\]"):
        fit(KnowledgeOverflowInit(str(tmp_path / "other.safetensors")))
    with pytest.raises(ValueError, match=r"strict is True, but .* and its \['head.bias', 'head.weight'\] are not used"):
        fit(KnowledgeOverflowInit(predicted[0], strict=True), module_of(classes=2))
    with pytest.raises(ValueError, match=r"exclude has \['haed'\], which fit nothing: Module has \['body"):
        fit(KnowledgeOverflowInit(predicted[0], exclude=["head", "haed"]))

    class Bare(importlib.import_module(ROOTS[0]).LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 2)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    write_predicted(tmp_path / "bare.safetensors", Bare().state_dict())
    with pytest.raises(ValueError, match=r"warmup_trainable is 'head\+norm', but every weight comes from the file"):
        fit(KnowledgeOverflowInit(str(tmp_path / "bare.safetensors")), Bare())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recursions": -1}, "recursions is -1"),
        ({"exclude": "head"}, "exclude is 'head'; allowed is a list of names"),
        ({"strict": 1.5}, "strict is 1.5"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"warmup_trainable": "head"}, "warmup_trainable is 'head'"),
        ({"reestimate_batches": 0.5}, "reestimate_batches is 0.5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeOverflowInit("weights.safetensors", **options)
