"""Starting a fit from a learngene."""

import copy
import importlib
import pickle

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import ExactResume, LearngeneInit, WeightCompander
from lightning_weights.modules import Classifier, CompactViT, expand, extract_learngene
from tests.helpers.battery import NOISE, SaveAt, differing, outcome
from tests.helpers.tasks import make_trainer
from tests.helpers.tiny import ROOTS

pytestmark = pytest.mark.filterwarnings(NOISE)

SHAPE = {"image_size": 4, "width": 8, "heads": 2, "mlp_ratio": 2.0, "num_classes": 3}


@pytest.fixture
def auxiliary():
    torch.manual_seed(5)
    return CompactViT(**SHAPE, depth=4, repeats=[2, 2])


@pytest.fixture
def path(auxiliary, tmp_path):
    extract_learngene(auxiliary).save(tmp_path / "gene.safetensors")
    return str(tmp_path / "gene.safetensors")


def classifier(depth=5, seed=1, **options):
    torch.manual_seed(seed)
    return Classifier(CompactViT(**{**SHAPE, **options}, depth=depth), num_classes=3)


def loader(size=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 1, size, size, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(16) % 3), batch_size=4, shuffle=True)


class Begin(Callback):
    """Keeps the weights with which the first batch begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not hasattr(self, "weights"):
            self.weights = copy.deepcopy(pl_module.network.state_dict())


def fit(module, *callbacks, ckpt=None, data=None, **options):
    trainer = make_trainer(list(callbacks), **{"max_epochs": 2, **options})
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("mapping", [None, [0, 1, 1, 1, 1]])
def test_the_fit_begins_with_the_expanded_learngene(auxiliary, path, mapping):
    begin = Begin()
    fit(classifier(), LearngeneInit(path, mapping=mapping), begin)
    wanted = expand(extract_learngene(auxiliary), depth=5, mapping=mapping).state_dict()
    assert begin.weights.keys() == wanted.keys()
    assert all(torch.equal(begin.weights[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("root", ROOTS)
def test_a_resumed_run_is_not_initialised_again_and_needs_no_file(path, tmp_path, root, monkeypatch):
    told = []
    monkeypatch.setitem(LearngeneInit.on_fit_start.__globals__, "rank_zero_info", told.append)

    def module():
        class Small(importlib.import_module(root).LightningModule):
            def __init__(self):
                super().__init__()
                self.network = CompactViT(**SHAPE, depth=5, dropout=0.2)

            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.network(batch[0]), batch[1])

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters(), lr=0.01)

        return Small()

    def run(ckpt=None, extra=()):
        trainer = make_trainer([LearngeneInit(path), ExactResume(), *extra], root, max_epochs=3)
        trainer.fit(module(), loader(), ckpt_path=ckpt)
        return outcome(trainer)

    torch.manual_seed(0)
    saves = [
        SaveAt("on_train_batch_end", 6, tmp_path / "inside"),
        SaveAt("on_train_epoch_end", 2, tmp_path / "between"),
    ]
    straight = run(extra=saves)
    assert not told
    path = str(tmp_path / "gone.safetensors")
    for place in ("inside", "between"):
        torch.manual_seed(9)
        assert not differing(straight, run(ckpt=tmp_path / place))
        assert told.pop().startswith("LearngeneInit leaves the weights as they are: the fit goes on")


def test_a_second_fit_of_the_trainer_goes_on_and_of_another_begins_anew(path):
    module, begin = classifier(), Begin()
    trainer = fit(module, LearngeneInit(path), begin)
    trained = module.network.positions.detach().clone()
    trainer.fit_loop.max_epochs = 3
    again = Begin()
    trainer.callbacks.append(again)
    trainer.fit(module, loader())
    assert torch.equal(again.weights["positions"], trained)
    fresh = Begin()
    fit(module, LearngeneInit(path), fresh)
    assert torch.equal(fresh.weights["positions"], begin.weights["positions"])


def test_evaluation_leaves_the_network_as_it_is(path):
    module = classifier()
    before = copy.deepcopy(module.state_dict())
    make_trainer([LearngeneInit(path)]).test(module, loader(), verbose=False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_layers_of_a_stage_move_apart(path):
    module = classifier()
    first = fit(module, LearngeneInit(path), max_epochs=1).callback_metrics["weights/learngene_sws/spread"]
    blocks = module.network.blocks
    families = [blocks[:3], blocks[3:]]
    apart, size = 0.0, 0.0
    for family in families:
        vectors = torch.stack([nn.utils.parameters_to_vector(block.parameters()) for block in family]).double()
        apart += (vectors - vectors.mean(0)).square().sum()
        size += len(family) * vectors.mean(0).square().sum()
    assert first.item() == pytest.approx((apart / size).sqrt().item(), rel=1e-5)
    assert first > 0
    alone = fit(classifier(depth=2), LearngeneInit(path), max_epochs=1)
    assert "weights/learngene_sws/spread" not in alone.callback_metrics


def test_only_real_steps_are_logged(path):
    trainer = fit(classifier(), LearngeneInit(path), max_epochs=1, accumulate_grad_batches=2, log_every_n_steps=2)
    assert trainer.global_step == 2
    assert "weights/learngene_sws/spread" in trainer.callback_metrics


def test_other_heads_images_and_names(auxiliary, path):
    begin = Begin()
    large = {"num_classes": 4, "image_size": 8}
    init = LearngeneInit(path, layers="blocks", copy_head=False, resize_positions=True, network="network")
    module = classifier(**large)
    head = module.network.head.weight.detach().clone()
    fit(module, init, begin, data=loader(8))
    assert torch.equal(begin.weights["head.weight"], head)
    assert torch.equal(begin.weights["patch_embed.weight"], auxiliary.patch_embed.weight)


@pytest.mark.parametrize(
    ("options", "network", "message"),
    [
        ({}, {"heads": 4}, "heads is 4 here and 2 there"),
        ({}, {"num_classes": 5}, "num_classes is 5 here and 3 there"),
        ({"mapping": [0, 1]}, {}, "mapping has 2 entries for 5 layers"),
        ({"mapping": [0, 0, 1, 1, 2]}, {}, r"mapping\[4\] is 2"),
        ({"layers": "layers"}, {}, "layers is 'layers'; allowed is the name of .*: blocks"),
        ({"network": "net"}, {}, "network is 'net'; allowed is .*: its children with weight matrices are network"),
        ({"path": "nowhere.safetensors"}, {}, "nowhere.safetensors is not there"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(path, options, network, message):
    module = classifier(**network)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        fit(module, LearngeneInit(**{"path": path, **options}))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_networks_with_parts_of_other_callbacks_are_refused(path):
    with pytest.raises(ValueError, match=r"weight.original is in the network and not in the learngene"):
        fit(classifier(), WeightCompander(), LearngeneInit(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mapping": "0012"}, "mapping is '0012'"),
        ({"mapping": []}, r"mapping is \[\]"),
        ({"mapping": [0, -1]}, r"mapping\[1\] is -1"),
        ({"mapping": [0, 0.5]}, r"mapping\[1\] is 0.5"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        LearngeneInit("gene.safetensors", **options)


def test_copies_are_equal_and_hold_no_layers(path):
    init = LearngeneInit(path, mapping=[0, 0, 1, 1, 1])
    fit(classifier(), init)
    for twin in (copy.deepcopy(init), pickle.loads(pickle.dumps(init))):
        assert twin.state_dict() == init.state_dict() == {"stack": "blocks", "stages": [0, 0, 1, 1, 1]}
        assert twin.mapping == init.mapping
