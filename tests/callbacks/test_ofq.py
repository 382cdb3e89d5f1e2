"""OFQ in a Trainer: what it quantizes, calibration, the teacher, checkpoints, export, and loops of one's own."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.callbacks import OFQ, ExactResume
from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.ofq import lsq_step
from lightning_weights.modules import (
    Classifier,
    FakeQuantConv2d,
    FakeQuantLinear,
    LSQQuantizer,
    QKRAttention,
    StatsQuantizer,
    fake_quantized,
)
from tests.callbacks.ofq_cases import CLASSES, NOISE, adamw, fit, images, latents, vit
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)
X = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3))
INNER = ["attention.q", "attention.k", "attention.v", "attention.proj", "mlp.fc1", "mlp.fc2"]


def kinds(module):
    """Return quantizer and bits of every weight, by name."""
    return {
        name: (type(layer.weight_quantizer).__name__, layer.weight_quantizer.bits)
        for name, layer in fake_quantized(module).items()
    }


def test_everything_between_the_edges_gets_few_bits_and_the_edges_more():
    model = vit()
    OFQ(weight_bits=3, act_bits=2).attach(model)
    few, more = ("StatsQuantizer", 3), ("LSQQuantizer", 8)
    wanted = {"network.patch_embed": more, **{f"network.blocks.0.{name}": few for name in INNER}, "network.head": more}
    assert kinds(model) == wanted
    network = model.network
    assert isinstance(network.patch_embed, FakeQuantConv2d)
    inputs = {
        "patch": network.patch_embed.input_quantizer.quantizer,
        "fc1": network.blocks[0].mlp.fc1.input_quantizer.quantizer,
        "fc2": network.blocks[0].mlp.fc2.input_quantizer.quantizer,
        "head": network.head.input_quantizer.quantizer,
    }
    found = {name: (part.bits, part.signed, part.granularity) for name, part in inputs.items()}
    assert found == {
        "patch": (8, True, "channel"),
        "fc1": (2, True, "token"),
        "fc2": (2, False, "token"),  # behind a GELU
        "head": (8, True, "tensor"),
    }
    plain = vit()
    OFQ(edge_bits=None, weight_quantizer="lsq", weight_bits=4).attach(plain)
    assert kinds(plain) == {f"network.blocks.0.{name}": ("LSQQuantizer", 4) for name in INNER}


def test_layers_are_named_as_the_user_likes():
    def names(**options):
        model = vit()
        OFQ(**options).attach(model)
        shown = {name.removeprefix("network."): bits for name, (_, bits) in kinds(model).items()}
        return {name.removeprefix("blocks.0."): bits for name, bits in shown.items()}

    assert names(modules=["mlp"]) == {"patch_embed": 8, "mlp.fc1": 2, "mlp.fc2": 2, "head": 8}
    assert names(modules=["head", "patch_embed", "fc*"], weight_bits=5).keys() == {
        "patch_embed", "mlp.fc1", "mlp.fc2", "head",
    }  # fmt: skip
    assert set(names(modules=["head", "patch_embed"], weight_bits=5).values()) == {5}
    skipped = names(skip=["mlp.fc1", "head"], edge_bits=6)
    assert {name for name, bits in skipped.items() if bits == 6} == {"patch_embed", "mlp.fc1", "head"}
    edges = names(skip=["blocks.0.attention", "head"], edge_bits=6)
    assert {name for name, bits in edges.items() if bits == 2} == {"mlp.fc1", "mlp.fc2"}
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    OFQ().attach(net)
    assert [bits for _, bits in kinds(net).values()] == [8, 2, 8]


@pytest.mark.parametrize("heads", [("head", "head_dist"), ("cls_classifier", "distillation_classifier"), ("last",)])
def test_heads_are_known_by_name_and_else_the_last_layer_is_one(heads):
    network = nn.Sequential()
    for name in ("patch_embed", "body", *heads):
        network.add_module(name, nn.Linear(4, 4))
    OFQ(weight_bits=2, edge_bits=5).attach(network)
    assert {name: bits for name, (_, bits) in kinds(network).items()} == {
        "patch_embed": 5, "body": 2, **dict.fromkeys(heads, 5),
    }  # fmt: skip


def test_products_replace_the_factors_where_asked_for():
    model = vit()
    OFQ(qkr=["attention"], keep_query_bias=True).attach(model)
    attention = model.network.blocks[0].attention
    assert isinstance(attention, QKRAttention)
    assert attention.weight_codes().shape == (16, 8)
    assert attention.q.bias is not None
    assert "network.blocks.0.attention.q" not in fake_quantized(model)
    small = vit()
    OFQ(qkr=True).attach(small)
    assert small.network.blocks[0].attention.q.bias is None


def test_torchs_attention_is_converted_with_its_layers():
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
        network = nn.Sequential(nn.Linear(4, 8), encoder, nn.Linear(8, 3))
        x = torch.randn(2, 5, 4)
        before = network(x)
        OFQ(weight_bits=8, edge_bits=None, act_bits=None, qkr=True, keep_query_bias=True).attach(network)
        assert list(kinds(network)) == [
            "1.self_attn.attention", "1.self_attn.attention.v", "1.self_attn.attention.proj", "1.linear1", "1.linear2",
        ]  # fmt: skip
        torch.testing.assert_close(network(x), before, atol=0.2, rtol=0.2)
        assert not torch.equal(network(x), before)
        assert torch.equal(network.eval()(x), network.train()(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def test_scales_start_from_dry_batches_that_leave_no_trace():
    class Counted(DataLoader):
        reads = 0

        def __iter__(self):
            Counted.reads += 1
            return super().__iter__()

    model, seen = vit(dropout=0.5), []

    class Look(Callback):
        def on_fit_start(self, trainer, pl_module):
            seen.append([torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), Counted.reads])
            seen.append(generator.get_state())
            seen.append([part for part in pl_module.modules() if isinstance(part, LSQQuantizer)])
            self.scale = pl_module.network.patch_embed.input_quantizer.quantizer.step.detach().clone()
            trainer.should_stop = True

    generator = torch.Generator().manual_seed(5)
    data = Counted(images().dataset, batch_size=8, shuffle=True, generator=generator)
    order = generator.get_state()
    look = Look()
    torch.manual_seed(1)
    expected = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    trainer = make_trainer([OFQ(act_bits=4, edge_bits=6, calibration_batches=2), look], max_epochs=1, max_steps=0)
    trainer.fit(model, data)
    assert torch.equal(seen[0][0], expected[0])
    assert seen[0][1:3] == expected[1:]
    assert seen[0][3] == 1
    assert torch.equal(seen[1], order)
    assert all(part.calibrated for part in seen[2])
    generator.set_state(order)
    batches = [batch[0] for batch in DataLoader(data.dataset, 8, shuffle=True, generator=generator)][:2]
    steps = [lsq_step(batch.movedim(1, -1), 6, True, -1) for batch in batches]
    torch.testing.assert_close(look.scale, torch.stack(steps).mean(0))
    assert model.network.training


@pytest.mark.parametrize("form", ["mapping", "tensor", "own method"])
def test_batches_of_other_forms_reach_the_network(form):
    class Module(Classifier):
        def forward(self, x, labels=None):
            return self.network(x)

        def training_step(self, batch, batch_idx):
            x = batch["x"] if form == "mapping" else batch
            return self(x).square().mean()

    if form == "own method":
        Module.calibration_step = lambda self, batch: self.network(batch)
        Module.forward = lambda self: None
        Module.training_step = lambda self, batch, batch_idx: self.network(batch).square().mean()
    sets = [{"x": x, "labels": 0} for x in images().dataset.tensors[0]]
    data = DataLoader(sets if form == "mapping" else images().dataset.tensors[0], batch_size=8)
    trainer = fit(vit(root=Module), [OFQ(act_bits=3)], epochs=1, data=data)
    assert "weights/ofq/distillation" in trainer.callback_metrics


def by_hand(steps=6, accumulate=1, temperature=1.0, weight=1.0):
    """Train with OFQ in a loop of one's own."""
    student, teacher = vit(), vit().eval()
    OFQ(act_bits=4).attach(student, [next(iter(images()))])
    optimizer = adamw(student.parameters())
    batches = [batch for _ in range(10) for batch in images()][: steps * accumulate]
    for start in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        for x, y in batches[start : start + accumulate]:
            logits = student(x)
            with torch.no_grad():
                wanted = (teacher(x) / temperature).softmax(-1)
            soft = -(wanted * (logits / temperature).log_softmax(-1)).sum(-1).mean() * temperature**2
            ((F.cross_entropy(logits, y) + weight * soft) / accumulate).backward()
        optimizer.step()
    return student


@pytest.mark.parametrize(
    ("options", "trainer"),
    [({}, {}), ({"temperature": 2.0, "distillation": 0.5}, {}), ({}, {"accumulate_grad_batches": 3})],
    ids=["plain", "temperature", "accumulated"],
)
def test_a_trainer_does_what_a_loop_of_ones_own_does(options, trainer):
    model = vit()
    fit(model, [OFQ(act_bits=4, **options)], epochs=3 if trainer else 1, **trainer)
    hand = by_hand(
        3, trainer.get("accumulate_grad_batches", 1), options.get("temperature", 1.0), options.get("distillation", 1.0)
    )
    for (name, a), b in zip(model.named_parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_the_teacher_is_a_frozen_copy_outside_of_checkpoints(tmp_path):
    model, ofq = vit(), OFQ()
    before = latents(model)
    trainer = fit(model, [ofq])
    teacher = ofq._teacher.network
    for name, param in teacher.named_parameters():
        assert torch.equal(param, before[f"network.{name}"])
        assert not param.requires_grad
    assert not teacher.training
    trainer.save_checkpoint(tmp_path / "ckpt")
    saved = torch.load(tmp_path / "ckpt", weights_only=True)
    assert sum(value.numel() for value in saved["state_dict"].values()) < 1.2 * sum(v.numel() for v in before.values())
    other = vit()
    with torch.no_grad():
        other.network.head.weight.add_(1.0)
    with pytest.raises(ValueError, match=r"taught by another one: .* or use distillation=0"):
        fit(other, [OFQ()], epochs=3, ckpt=tmp_path / "ckpt")
    fit(vit(), [OFQ()], epochs=3, ckpt=tmp_path / "ckpt")


def test_outputs_with_names_and_distillation_heads_teach():
    class Output(dict):
        __getattr__ = dict.__getitem__

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.second = nn.Linear(16, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            x = self.body(x.flatten(1))
            first, second = self.head(x), self.second(x)
            named = {"distillation_logits": second} if self.training else {}
            return type("Out", (), {"logits": first, **named})()

    class Module(Classifier):
        def training_step(self, batch, batch_idx):
            return self.network(batch[0]).logits.square().mean()

    torch.manual_seed(0)
    model = Module(TwoHeads(), CLASSES, optimizer=partial(torch.optim.SGD, lr=0.1))
    before = model.network.second.weight.detach().clone()
    fit(model, [OFQ(modules=["body"], edge_bits=None)], epochs=1)
    assert not torch.equal(before, model.network.second.weight), "the loss of the module does not reach it"


@pytest.mark.parametrize(("act_bits", "qkr"), [(None, False), (4, True)])
def test_resuming_changes_no_bit(tmp_path, act_bits, qkr):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "ckpt")

    def parts():
        return [OFQ(act_bits=act_bits, qkr=qkr), ExactResume()]

    straight, resumed = vit(dropout=0.3), vit(dropout=0.3)
    first, second = parts(), parts()
    fit(straight, [*first, Save()], epochs=2, data=images(shuffle=True))
    fit(resumed, second, epochs=2, ckpt=tmp_path / "ckpt", data=images(shuffle=True))
    for (name, a), b in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert (name, True) == (b[0], torch.equal(a, b[1]))
    ours, theirs = (callbacks[0].state_dict()["oscillation"] for callbacks in (first, second))
    assert (ours["steps"], ours["flips"]) == (theirs["steps"], theirs["flips"])


def test_a_checkpoint_is_tested_quantized_and_a_plain_network_as_it_is(tmp_path):
    model = vit()
    trainer = fit(model, [OFQ(act_bits=3, qkr=True)])
    trainer.save_checkpoint(tmp_path / "ckpt")
    fresh, ofq = vit(), OFQ(act_bits=3, qkr=True)
    make_trainer([ofq]).test(fresh, images(), ckpt_path=tmp_path / "ckpt", verbose=False)
    assert ofq._teacher is None
    assert torch.equal(fresh.eval()(X), model.eval()(X))
    plain = vit()
    make_trainer([OFQ()]).validate(plain, images(), verbose=False)
    assert not fake_quantized(plain)


def test_a_second_fit_goes_on_with_the_same_network_and_teacher():
    model, ofq = vit(), OFQ()
    fit(model, [ofq], epochs=1)
    layers, teacher = list(fake_quantized(model).values()), ofq._teacher
    fit(model, [ofq], epochs=1)
    assert [id(layer) for layer in fake_quantized(model).values()] == [id(layer) for layer in layers]
    assert ofq._teacher is teacher
    with pytest.warns(LightningWeightsWarning, match="quantized before by somebody else"):
        fit(model, [OFQ()], epochs=1)
    other = vit()
    OFQ().attach(other)
    with pytest.warns(LightningWeightsWarning, match="quantized before by somebody else"):
        fit(other, [ofq], epochs=1)
    with pytest.raises(ValueError, match=r"quantized already, .*; asked for are weight_bits=4"):
        OFQ(weight_bits=4).attach(model)


def test_exported_codes_are_the_weights_of_the_forward_bit_for_bit(tmp_path):
    model = vit()
    fit(model, [OFQ(weight_bits=3, act_bits=4, qkr=True)])
    torch.save(OFQ.export(model), tmp_path / "codes.pt")
    exported = torch.load(tmp_path / "codes.pt", weights_only=True)
    assert exported.keys() == fake_quantized(model).keys()
    for name, layer in fake_quantized(model).items():
        part = exported[name]
        rows = part["step"].reshape(-1, *[1] * (part["codes"].dim() - 1))
        assert torch.equal((part["codes"].float() + part["offset"]) * rows, layer.quantized_weight())
        assert part["codes"].dtype == torch.int8
        assert (
            -(2 ** (part["bits"] - 1)) <= int(part["codes"].min()) <= int(part["codes"].max()) < 2 ** (part["bits"] - 1)
        )
    before = model.eval()(X)
    OFQ.merge(model)
    assert torch.equal(model(X), before)
    assert not any(isinstance(part, (FakeQuantLinear, StatsQuantizer)) for part in model.modules())


def test_transformers_attention_is_converted():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    options = {**sizes, "image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 3}
    for kind in ("ViT", "DeiT"):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**options, attn_implementation="eager")
        network = getattr(transformers, f"{kind}ForImageClassification")(
            config
        ).eval()  # as from_pretrained leaves it, and Lightning too
        plain = copy.deepcopy(network)
        model = Module(network, kind)
        ofq = OFQ(weight_bits=8, act_bits=8, qkr=True, keep_query_bias=True, skip=["classifier"])
        trainer = fit(model, [ofq], epochs=1, limit_train_batches=1)
        names = [name for name in fake_quantized(model) if "attention" in name]
        assert len(names) == 3
        assert kinds(model)[f"{names[0]}"] == ("StatsQuantizer", 8)
        assert kinds(model)["network.classifier"] == ("LSQQuantizer", 8)
        assert "weights/ofq/distillation" in trainer.callback_metrics
        fresh = copy.deepcopy(plain)
        OFQ(weight_bits=8, qkr=True, keep_query_bias=True, skip=["classifier"], distillation=0.0).attach(fresh)
        torch.testing.assert_close(fresh(X).logits, plain(X).logits, atol=0.05, rtol=0.05)


class Module(Classifier):
    """A module whose network returns logits by name."""

    def __init__(self, network, kind):
        super().__init__(network, CLASSES, optimizer=partial(torch.optim.SGD, lr=0.01))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(pixel_values=batch[0]).logits, batch[1])


def test_rows_of_zeros_are_named_and_safe():
    model = vit()
    with torch.no_grad():
        model.network.blocks[0].mlp.fc1.weight[2] = 0.0
    with pytest.warns(LightningWeightsWarning, match=r"rows of zeros only.*network.blocks.0.mlp.fc1 \(1\)"):
        OFQ().attach(model)
    assert bool(model(X).isfinite().all())
    assert not model.network.blocks[0].mlp.fc1.quantized_weight()[2].any()


def test_data_of_one_batch_is_enough():
    data = DataLoader(TensorDataset(X, torch.arange(5) % 3), batch_size=5)
    model = vit()
    fit(model, [OFQ(act_bits=2, calibration_batches=7)], data=data)
    assert all(part.calibrated for part in model.modules() if isinstance(part, LSQQuantizer))
