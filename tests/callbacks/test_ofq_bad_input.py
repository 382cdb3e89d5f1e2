"""What OFQ refuses, before anything has changed, and what it says."""

import copy

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

from lightning_weights.callbacks import OFQ
from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.modules import Classifier, CompactViT, fake_quantized
from tests.callbacks.ofq_cases import NOISE, adamw, fit, images, vit
from tests.helpers.tasks import make_trainer

pytestmark = pytest.mark.filterwarnings(NOISE)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_bits": 1},
        {"weight_bits": 9},
        {"weight_bits": 2.5},
        {"act_bits": 1},
        {"edge_bits": 16},
        {"weight_quantizer": "minmax"},
        {"granularity": "row"},
        {"distillation": -1.0},
        {"temperature": 0.0},
        {"momentum": 0.0},
        {"calibration_batches": 0},
        {"modules": "head"},
        {"skip": 3},
        {"qkr": "attention"},
    ],
    ids=str,
)
def test_arguments_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        OFQ(**options)


class Grouped(nn.Module):
    """Attention with fewer heads for keys than for queries."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 4)
        self.v_proj, self.o_proj = nn.Linear(8, 4), nn.Linear(8, 8)


class RotaryAttention(nn.Module):
    """Attention of which the class says nothing good."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(4))


class GroupedAttention(Grouped):
    """The same, by name."""


def test_products_are_refused_where_there_is_none_by_name():
    for attention in (GroupedAttention(), RotaryAttention()):
        network = nn.Sequential(nn.Linear(8, 8), attention, nn.Linear(8, 2))
        with pytest.raises(ValueError, match=rf"qkr=True, .* not in 1 \({type(attention).__name__}\): .*rotary"):
            OFQ(qkr=True).attach(network)
        with pytest.raises(ValueError, match=r"qkr has '1', which names 1; allowed are the attentions .*: none"):
            OFQ(qkr=["1"]).attach(network)
        assert not fake_quantized(network)
        OFQ().attach(network)  # its linear layers one by one
        assert list(fake_quantized(network)) == ["0", *(f"1.{name}_proj" for name in "qkvo"), "2"]
    with pytest.raises(ValueError, match="a network without attention"):
        OFQ(qkr=True).attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"qkr has 'mlp', which names network.blocks.0.mlp; allowed are"):
        OFQ(qkr=["mlp"]).attach(vit())
    other = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, kdim=4), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"1 can't be replaced .* a width of their own"):
        OFQ().attach(other)


def test_huge_products_need_force():
    network = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(6000, 3, device="meta"), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no values yet"):
        OFQ(qkr=True).attach(network)
    network[1] = nn.MultiheadAttention(2400, 30, bias=False)
    with pytest.raises(ValueError, match=r"1: .*product .* 172800000 elements, allowed are 100000000; .* force=True"):
        OFQ(qkr=True, distillation=0.0).attach(network)
    assert type(network[0]) is nn.Linear


def test_names_that_fit_nothing_and_networks_with_nothing():
    with pytest.raises(
        ValueError, match=r"modules has 'decoder', which names no attention .*; there are network.patch"
    ):
        OFQ(modules=["decoder"]).attach(vit())
    with pytest.raises(ValueError, match=r"skip has 'classifier'"):
        OFQ(skip=["classifier"]).attach(vit())
    for network in (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), nn.Conv1d(1, 1, 1)):
        with pytest.raises(MisconfigurationException, match=r"OFQ has nothing to quantize: .* Name some in modules"):
            OFQ().attach(network)


def test_weights_that_are_not_a_layers_own_are_refused():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[2].weight = tied[1].weight
    with pytest.raises(ValueError, match="cannot quantize 1: its weight is shared by 1 and 2"):
        OFQ().attach(tied)
    computed = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"1 has a weight or bias that something else computes .* out of modules"):
        OFQ().attach(computed)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"belongs to a TransformerEncoderLayer.*set_fastpath_enabled\(False\)"):
        OFQ().attach(encoder)
    assert not any(fake_quantized(network) for network in (tied, computed, encoder))


def test_sharded_weights_are_refused_with_the_way_out(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        network = CompactViT(4, 2, 1, width=8, depth=1, heads=2)
        fully_shard(network, mesh=mesh)
        with pytest.raises(ShardedParameterError, match=r"sharded \(FSDP2\).* use DDP"):
            OFQ().attach(network)
        first, x = CompactViT(4, 2, 1, width=8, depth=1, heads=2), torch.randn(2, 1, 4, 4)
        OFQ(distillation=0.0).attach(first)
        before = first(x)
        fully_shard(first, mesh=mesh)
        assert torch.equal(first(x), before)
        first(x).sum().backward()
        with pytest.raises(ShardedParameterError, match="row"):
            fake_quantized(first)["blocks.0.mlp.fc1"].weight_codes()
    finally:
        torch.distributed.destroy_process_group()


def test_an_optimizer_made_before_is_refused():
    model = vit()
    optimizer = adamw(model.parameters())
    model.configure_optimizers = lambda: optimizer
    with pytest.raises(ValueError, match=r"OFQ put parameters .* that no optimizer has: .*attention.q.weight"):
        fit(model, [OFQ()])


def test_checkpoints_of_other_bits_and_of_plain_networks_are_refused(tmp_path):
    for name, callbacks in (("two", [OFQ(distillation=0.0)]), ("plain", [])):
        fit(vit(), callbacks, epochs=1).save_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match="weight_bits is 4, but 2 in the checkpoint"):
        fit(vit(), [OFQ(weight_bits=4, distillation=0.0)], ckpt=tmp_path / "two")
    for act in ("fit", "test"):
        trainer = make_trainer([OFQ(modules=["mlp"], distillation=0.0)], max_epochs=2)
        with pytest.raises(ValueError, match=r"checkpoint has other quantized weights: .*attention.q"):
            getattr(trainer, act)(vit(), images(), ckpt_path=tmp_path / "two")
    with pytest.raises(ValueError, match=r"checkpoint is of a network without OFQ, .* load its state_dict"):
        fit(vit(), [OFQ()], ckpt=tmp_path / "plain")


def test_state_dicts_of_other_bits_are_refused_without_a_trainer(tmp_path):
    two, fresh, four = vit(), vit(), vit()
    for model, bits in ((two, 2), (fresh, 2), (four, 4)):
        OFQ(weight_bits=bits, distillation=0.0).attach(model)
    torch.save(two.state_dict(), tmp_path / "two.pt")
    saved = torch.load(tmp_path / "two.pt", weights_only=True)
    fresh.load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"mlp.fc1.weight_quantizer is of 4 bits and the state dict of 2"):
        four.load_state_dict(saved, strict=False)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_bits": 3},
        {"act_bits": 3},
        {"edge_bits": 4},
        {"granularity": "tensor"},
        {"weight_quantizer": "statsq"},
        {"qkr": False},
        {"keep_query_bias": True},
        {"modules": ["mlp"]},
        {"skip": ["mlp.fc1"]},
    ],
    ids=str,
)
def test_a_quantized_network_refuses_other_arguments(options):
    model, given = vit(), {"act_bits": 2, "qkr": ["attention"], "weight_quantizer": "lsq", "distillation": 0.0}
    OFQ(**given).attach(model)
    before = list(fake_quantized(copy.deepcopy(model)))
    OFQ(**given).attach(model)
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"quantized already, with {name}=.*; asked for are {name}="):
        OFQ(**{**given, **options}).attach(copy.deepcopy(model))
    assert list(fake_quantized(model)) == before


def test_other_sequence_lengths_are_refused_with_token_scales_only():
    model = vit()
    fit(model, [OFQ(act_bits=4)], epochs=1)
    model.network.positions = nn.Parameter(torch.zeros(1, 1, 8))
    longer = torch.zeros(2, 7, 8)
    with pytest.raises(ValueError, match=r"4 steps, but .* 7 indices.*sequence length"):
        model.network.blocks(longer)
    free = vit()
    fit(free, [OFQ(act_bits=4, granularity="channel")], epochs=1)
    assert free.network.blocks(longer).shape == longer.shape


def test_networks_that_cannot_be_taught_are_told_what_to_do():
    class Several(Classifier):
        def __init__(self, network, classes, optimizer):
            super().__init__(network, classes, optimizer=optimizer)
            self.extra = nn.Linear(3, 3)

    with pytest.raises(
        ValueError, match=r"network is None; .* children with weight matrices are network, extra; or use"
    ):
        fit(vit(root=Several), [OFQ()])
    fit(vit(root=Several), [OFQ(network="network", skip=["network.head", "extra"])], epochs=1)

    class Aside(Classifier):
        def training_step(self, batch, batch_idx):
            return self.network.head.weight.square().sum()

    with pytest.raises(ValueError, match=r"training step of Aside did not call its network.* use distillation=0"):
        fit(vit(root=Aside), [OFQ()])
    fresh = Classifier(CompactViT(4, 2, 1, width=32, depth=1), optimizer=adamw)
    with pytest.warns(LightningWeightsWarning, match="looks untrained"):
        fit(fresh, [OFQ()], epochs=1)


def test_batches_that_the_forward_does_not_take_are_explained():
    class Strange(Classifier):
        def forward(self, x, y):
            return self.network(x)

    with pytest.raises(ValueError, match=r"forward of Strange does not take a batch .* calibration_step\(batch\)"):
        fit(vit(root=Strange), [OFQ(act_bits=3)])

    class Partly(Classifier):
        def calibration_step(self, batch):
            return self.network.blocks[0].mlp(torch.zeros(2, 4, 8))

    with pytest.raises(ValueError, match=r"dry batch did not reach .*attention.*; give the module a method"):
        fit(vit(root=Partly), [OFQ(act_bits=3)])


def test_half_precision_keeps_latents_wide_with_a_warning():
    model = vit()
    with pytest.warns(LightningWeightsWarning, match="stay in fp32"):
        fit(model, [OFQ(edge_bits=None)], epochs=1, precision="bf16-true", data=DataLoader(images().dataset, 8))
    assert model.network.blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert model.network.norm.weight.dtype == torch.bfloat16
