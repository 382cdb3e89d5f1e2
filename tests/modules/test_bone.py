"""The adapted layer: its state, precision, merging, and what it keeps."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.functional.bone import VARIANTS, bone_delta, bone_weight
from lightning_weights.kernels import kernel_mode
from lightning_weights.modules import BoneLinear, bone

EXTRA = {"free": {"grid": (3, 2)}, "mini": {"mini_r": 3}}
BUILT = ("col", "free")
FACTORIZED = ("row", "left", "miss", "mini")


def layer(variant="col", scale=0.1, bias=True, dtype=torch.float32, **change):
    torch.manual_seed(0)
    made = BoneLinear(nn.Linear(8, 12, bias=bias, dtype=dtype), 4, variant, **EXTRA.get(variant, {}), **change)
    with torch.no_grad():
        made.bone_block.normal_(std=scale)
    return made


def adapted(made, x, dtype=None):
    return F.linear(x, bone_weight(made.weight, made.bone_block, made.variant, dtype=dtype), made.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_layers_give_the_base_layers_bits(variant, bias):
    base, x = nn.Linear(8, 12, bias=bias).eval(), torch.randn(2, 3, 8)
    want, keys = base(x), dict(base.state_dict())
    for impl in ("auto", "materialize"):
        made = BoneLinear(copy.deepcopy(base), 4, variant, **EXTRA.get(variant, {}), impl=impl)
        assert torch.equal(made(x), want)
        assert not made.training
        assert made.state_dict().keys() == {*keys, "bone_block"}
        assert [name for name, param in made.named_parameters() if param.requires_grad] == ["bone_block"]


def test_parameters_are_the_base_layers_own():
    base = nn.Linear(8, 12)
    weight, bias = base.weight, base.bias
    made = BoneLinear(base, r=4)
    assert made.weight is weight
    assert made.bias is bias
    assert (made.in_features, made.out_features) == (8, 12)
    assert "r=4, variant=col" in repr(made)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_may_be_empty(variant):
    made = layer(variant)
    for shape in ((0, 8), (0, 3, 8)):
        y = made(torch.zeros(shape))
        y.sum().backward()
        assert y.shape == (*shape[:-1], 12)
    assert not made.bone_block.grad.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_numbers_of_parameters(variant):
    expected = {"col": 4 * 12, "row": 4 * 8, "left": 4 * 12, "free": 6 * 16, "miss": 4 * 12, "mini": 4 * 3}
    assert layer(variant).bone_block.numel() == expected[variant]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("impl", ["auto", "materialize"])
def test_outputs_are_those_of_the_adapted_weight(variant, impl):
    made, x = layer(variant, impl=impl), torch.randn(5, 8)
    torch.testing.assert_close(made(x), adapted(made, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", FACTORIZED)
def test_factorized_layers_never_make_a_weight(variant, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a weight was made")

    for name in ("bone_weight", "built_weight", "block_affine_linear"):
        monkeypatch.setattr(bone, name, refuse)
    made = layer(variant, impl="factorized")
    assert made(torch.randn(5, 8)).shape == (5, 12)
    with pytest.raises(AssertionError, match="a weight was made"):
        layer("col")(torch.randn(5, 8))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_and_back(variant, keep):
    made, x = layer(variant), torch.randn(5, 8)
    before, weight, old = made(x), made.weight.detach().clone(), made.weight
    plain = made.merge(keep_original=keep)
    assert type(plain) is nn.Linear
    assert plain.weight is made.weight
    assert plain.bias is made.bias
    assert torch.equal(old, weight)  # whoever shares it keeps it
    torch.testing.assert_close(plain(x), before, rtol=1e-5, atol=1e-6)
    assert torch.equal(made(x), plain(x))
    assert made.merge().weight is plain.weight
    made.unmerge()
    assert torch.equal(made.weight, weight) if keep else torch.allclose(made.weight, weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(made(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stacked_adapters_are_one_merge_after_the_other(variant):
    first, x = layer(variant), torch.randn(5, 8)
    original = first.weight.detach().double()
    second = BoneLinear(first.merge(), 4, variant, **EXTRA.get(variant, {}))
    with torch.no_grad():
        second.bone_block.normal_(std=0.1)
    once = original + bone_delta(original, first.bone_block.detach(), variant)
    twice = once + bone_delta(once, second.bone_block.detach(), variant)
    torch.testing.assert_close(
        second(x).double(), F.linear(x.double(), twice, first.bias.double()), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(second.merge().weight.double(), twice, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_of_a_merged_layer_loads_to_the_same_outputs(variant):
    made, x = layer(variant), torch.randn(5, 8)
    made.merge()
    state = made.state_dict()
    assert not state["bone_block"].any()
    other = layer(variant, scale=1.0)
    other.load_state_dict(state)
    assert torch.equal(other(x), made(x))
    made.load_state_dict(layer(variant).state_dict())
    assert not made.merged
    torch.testing.assert_close(made(x), layer(variant)(x))


def test_a_block_alone_is_not_loaded_into_a_merged_layer():
    made = layer()
    made.merge()
    with pytest.raises(
        RuntimeError, match=r"bone_block can't be loaded while the old one is merged; unmerge\(\) first"
    ):
        made.load_state_dict({"bone_block": made.bone_block}, strict=False)


def test_merging_says_what_it_cannot_do():
    made = layer()
    with pytest.raises(ValueError, match="nothing is merged"):
        made.unmerge()
    weight = made.weight
    made.bone_block.data[0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity, so nothing was merged"):
        made.merge()
    assert made.weight is weight
    made.bone_block.data[0] = -torch.eye(4)
    made.merge()
    with pytest.raises(ValueError, match="the weight from before the merge is lost"):
        made.unmerge()
    with pytest.raises(ValueError, match=r"merged, .*unmerge\(\) first"):
        made.delta_weight()
    assert made.merged


@pytest.mark.parametrize("variant", VARIANTS)
def test_delta_weight(variant):
    made = layer(variant, dtype=torch.bfloat16)
    delta = made.delta_weight()
    assert (delta.dtype, delta.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(delta, bone_weight(made.weight.float(), made.bone_block, variant) - made.weight.float())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_block_stays_in_fp32(variant):
    for dtype in (torch.bfloat16, torch.float16):
        made = layer(variant)
        block = made.bone_block
        block.grad = torch.ones_like(block)
        value = block.detach().clone()
        made.to(dtype)
        assert made.weight.dtype == made.bias.dtype == dtype
        assert made.bone_block is block
        assert block.dtype == block.grad.dtype == torch.float32
        assert torch.equal(block, value)
        x = torch.randn(5, 8).to(dtype)
        y = made(x)
        y.float().sum().backward()
        assert y.dtype == dtype
        torch.testing.assert_close(y, adapted(made, x), rtol=2e-2, atol=2e-2)
    assert layer(variant, dtype=torch.bfloat16).bone_block.dtype == torch.float32
    assert layer(variant).double().bone_block.dtype == torch.float64


def test_a_small_block_is_not_lost_in_half_precision():
    made = BoneLinear(nn.Linear(4, 4, bias=False), r=4).bfloat16()
    with torch.no_grad():
        made.weight.fill_(2.0)
        made.bone_block.copy_(torch.diag(torch.full((4,), 2.0**-9)))  # 1 + 2⁻⁹ is 1 in bfloat16
        made.bone_block[0, 1, 1] = 2.0**-6
    assert made(torch.eye(4, dtype=torch.bfloat16))[1, 1] == torch.tensor(2.0 + 3 * 2.0**-6).bfloat16()


@pytest.mark.parametrize("keep", ["never", "backward", "step"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast(variant, keep):
    made, x = layer(variant, **({"keep": keep} if variant in BUILT else {})), torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert made.bone_block.grad.dtype == x.grad.dtype == torch.float32
    slopes = made.bone_block.grad.clone(), x.grad.clone()
    made.bone_block.grad = x.grad = None
    made(x).sum().backward()
    torch.testing.assert_close(y.float(), made(x), rtol=3e-2, atol=3e-2)
    for narrow, wide in zip(slopes, (made.bone_block.grad, x.grad), strict=True):
        torch.testing.assert_close(narrow, wide, rtol=3e-2, atol=3e-2 * float(wide.abs().max()))


@pytest.mark.parametrize("variant", BUILT)
def test_accumulating_with_a_kept_weight_equals_making_it_again(variant):
    batches = torch.randn(3, 5, 8)
    gradients = {}
    for keep in ("never", "backward", "step"):
        made = layer(variant, keep=keep)
        for x in batches:
            made(x).square().sum().backward()
        gradients[keep] = made.bone_block.grad
    assert torch.equal(gradients["never"], gradients["step"])
    assert torch.equal(gradients["never"], gradients["backward"])


def test_a_kept_weight_is_made_once_per_step(monkeypatch):
    made, x, calls = layer(keep="step"), torch.randn(5, 8), []
    original = bone.built_weight
    monkeypatch.setattr(bone, "built_weight", lambda *a, **o: calls.append(1) or original(*a, **o))
    optimizer = torch.optim.SGD([made.bone_block], lr=0.1)
    for step in range(1, 4):
        for _ in range(4):
            made(x).square().sum().backward()
        assert len(calls) == step
        with torch.no_grad():
            torch.testing.assert_close(made(x), adapted(made, x))
        optimizer.step()


def test_a_kept_weight_follows_every_change():
    made, x = layer(keep="step"), torch.randn(5, 8)
    with torch.inference_mode():
        made(x)
    made(x).sum().backward()  # what inference mode makes could not be differentiated

    def load(made):
        made.load_state_dict(layer(scale=0.3).state_dict())

    def replace(made):
        made.bone_block.data = torch.full_like(made.bone_block, 0.1)

    def write_past_autograd(made):
        made.bone_block.data.fill_(0.2)
        made.forget()

    for change in (load, replace, write_past_autograd, lambda made: made.double()):
        change(made)
        x = x.to(made.weight.dtype)
        torch.testing.assert_close(made(x), adapted(made, x))
    made.merge()
    made.unmerge()
    torch.testing.assert_close(made(x), adapted(made, x))


def test_copies_share_nothing_and_carry_no_kept_weight():
    made, x = layer(keep="step"), torch.randn(5, 8)
    want = made(x)
    size = len(pickle.dumps(layer(keep="never")))
    assert len(pickle.dumps(made)) <= size
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert twin._built is None
        assert torch.equal(twin(x), want)
        twin.bone_block.data.zero_()
    assert torch.equal(made(x), want)


@pytest.mark.parametrize("keep", ["never", "backward"])
def test_what_waits_for_the_backward_pass(keep):
    made, x = layer(keep=keep), torch.randn(5, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        made(x)
    own = {made.weight.data_ptr(), made.bone_block.data_ptr(), x.data_ptr()}
    assert sum(tensor.data_ptr() not in own for tensor in kept) == (keep == "backward")


def test_gradient_checkpointing():
    made, x = layer(), torch.randn(5, 8, requires_grad=True)
    made(x).square().sum().backward()
    want = made.bone_block.grad.clone(), x.grad.clone()
    made.bone_block.grad = x.grad = None
    checkpoint(made, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(made.bone_block.grad, want[0])
    assert torch.equal(x.grad, want[1])


@pytest.mark.parametrize("variant", ["col", "row"])
def test_compiles_whole(variant):
    made, x = layer(variant), torch.randn(5, 8)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    slope = made.bone_block.grad.clone()
    made.bone_block.grad = None
    made(x).square().sum().backward()
    torch.testing.assert_close(slope, made.bone_block.grad)


@pytest.mark.parametrize("variant", FACTORIZED)
def test_dropout_acts_in_training_alone(variant):
    made, x = layer(variant, dropout=0.5), torch.randn(50, 8)
    assert not torch.equal(made(x), made(x))
    made.eval()
    assert torch.equal(made(x), made(x))
    torch.testing.assert_close(made(x), layer(variant)(x))


def test_the_kernel_can_be_insisted_on(monkeypatch):
    with pytest.raises(KernelUnavailableError, match=r"tensors are on cpu|triton is not"):
        layer(impl="triton")(torch.randn(5, 8))
    modes = []
    original = bone.built_weight
    monkeypatch.setattr(bone, "built_weight", lambda *a, **o: modes.append(kernel_mode()) or original(*a, **o))
    layer()(torch.randn(5, 8))
    with pytest.raises(KernelUnavailableError):
        layer(impl="triton")(torch.randn(5, 8))
    assert modes == ["auto", "triton"]


def test_meta_layers():
    made = BoneLinear(nn.Linear(8, 12, device="meta"), r=4)
    assert made.bone_block.is_meta
    assert made(torch.zeros(3, 8, device="meta")).shape == (3, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 5}, r"r is 5 of a layer with 12 outputs and 8 inputs.*nearest valid r is 4"),
        ({"variant": "bat"}, r"variant is 'bat'"),
        ({"impl": "fast"}, r"impl is 'fast'"),
        ({"keep": "always"}, r"keep is 'always'"),
        ({"impl": "factorized"}, r"impl is 'factorized' with variant 'col'.* 'row', 'left', 'miss', 'mini'"),
        ({"variant": "left", "impl": "triton"}, r"impl is 'triton' with variant 'left', which has no kernel"),
        ({"dropout": 0.1}, r"dropout is 0.1 with variant 'col' and impl 'auto', .* allowed is 0"),
        ({"variant": "row", "impl": "materialize", "dropout": 0.1}, r"dropout is 0.1 with variant 'row'"),
        ({"dropout": 1.0}, r"dropout is 1.0; allowed is a finite number in \[0.0, 1.0\)"),
        ({"variant": "row", "keep": "step"}, r"keep is 'step' with variant 'row'"),
    ],
)
def test_bad_arguments_leave_the_base_layer_alone(change, message):
    base = nn.Linear(8, 12)
    with pytest.raises(ValueError, match=message):
        BoneLinear(base, **{"r": 4, **change})
    assert base.weight.requires_grad


def test_layers_that_cannot_be_adapted():
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match="MultiheadAttention reads past the layer"):
        BoneLinear(attention.out_proj, r=4)
    with pytest.raises(ValueError, match=r"base is a Conv1d; allowed is nn.Linear"):
        BoneLinear(nn.Conv1d(8, 8, 1), r=4)
    with pytest.raises(ValueError, match=r"base is a Other; allowed is nn.Linear"):
        BoneLinear(type("Other", (nn.Linear,), {"forward": lambda self, x: x})(8, 12), r=4)
    with pytest.raises(ValueError, match="base has a weight or bias that something else computes"):
        BoneLinear(parametrize.register_parametrization(nn.Linear(8, 12), "weight", nn.Identity()), r=4)
    with pytest.raises(ValueError, match="pruning"):
        BoneLinear(prune.l1_unstructured(nn.Linear(8, 12), "bias", 0.5), r=4)
    quantized = nn.Linear(8, 12)
    quantized.weight = nn.Parameter(torch.zeros(12, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight of torch.uint8; allowed are floating-point weights"):
        BoneLinear(quantized, r=4)
    sharded = nn.Linear(8, 12)
    sharded.weight.placements = ()
    with pytest.raises(ShardedParameterError, match="before fully_shard"):
        BoneLinear(sharded, r=4)
