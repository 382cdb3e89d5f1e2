"""The certified loss against plain float64 formulas, its two ends, and what it refuses."""

import copy
import math
from itertools import chain, islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_weights.data import Digits
from lightning_weights.functional.ibp_warmup import layer_sums
from lightning_weights.functional.intervals import crown_fused_loss, crown_margins, interval_forward
from lightning_weights.modules import CNN7, MLP, CertifiedLoss, InputBox, certified_loss

MAX_EPS = 0.1


def problem(batch_norm=True, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    net = MLP(6, (16, 12), 4, batch_norm=batch_norm)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Linear):  # wide boxes, so that there is something to regularise
            nn.init.normal_(module.weight)
    return net.to(dtype), torch.rand(20, 6, dtype=dtype), torch.randint(4, (20,))


def plain(net, x, y, eps):
    """Robust loss and regularisers of an MLP in train mode, written out."""
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    c, r, clean = (lower + upper) / 2, (upper - lower) / 2, x
    first_radius, tight, balance, count = r.mean(), 0.0, 0.0, 0
    for layer in net.body:
        if isinstance(layer, nn.Linear):
            c, r, clean = layer(c), r @ layer.weight.abs().T, layer(clean)
        elif isinstance(layer, nn.BatchNorm1d):
            mean, a = clean.mean(0), layer.weight / (clean.var(0, correction=0) + layer.eps).sqrt()
            shift = layer.bias - mean * a
            c, r, clean = c * a + shift, r * a.abs(), clean * a + shift
        elif isinstance(layer, nn.ReLU):
            count += 1
            tight += F.relu(0.5 - first_radius / r.mean()) / 0.5
            above, below = (c - r > 0).to(c.dtype), (c + r < 0).to(c.dtype)
            spread = (c - c.mean()).square()
            for ratio in ((above * c).sum() / -(below * c).sum(), (above * spread).sum() / (below * spread).sum()):
                balance += F.relu(0.5 - torch.minimum(ratio, 1 / ratio.clamp_min(1e-12))) / 0.5
            low, high, clean = (c - r).relu(), (c + r).relu(), clean.relu()
            c, r = (low + high) / 2, (high - low) / 2
    head, margins = net.head, []
    for n, label in enumerate(y.tolist()):
        rows = head.weight[label] - head.weight[[j for j in range(len(head.weight)) if j != label]]
        offset = head.bias[label] - head.bias[[j for j in range(len(head.bias)) if j != label]]
        margins.append(rows @ c[n] + offset - rows.abs() @ r[n])
    margins = torch.stack(margins)
    robust = torch.log1p(torch.exp(-margins).sum(1)).mean()
    return robust, tight / count, balance / count, F.cross_entropy(head(clean), y), margins


@pytest.mark.parametrize("eps", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_parts_and_gradients_equal_the_formulas_in_float64(batch_norm, eps):
    net, x, y = problem(batch_norm, dtype=torch.float64)
    output = CertifiedLoss(reg_lambda=0.3)(net, x, y, torch.tensor(eps), MAX_EPS)
    found = torch.autograd.grad(output.loss, list(net.parameters()))
    # ε is a float32 tensor
    radius = torch.tensor(eps if eps else 1e-6).double()
    robust, tight, balance, clean, margins = plain(net, x, y, radius)
    main = robust if eps else clean
    loss = main + 0.3 * (1 - eps / MAX_EPS) * (tight + balance)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    parts = (loss, clean, robust, tight, balance, margins)
    for name, actual, wanted in zip(output._fields, output, parts, strict=False):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-8, msg=name)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-8)
    assert tight + balance > 0


@pytest.mark.parametrize("eps_max", [0.1, 8 / 255, 0.3])
@pytest.mark.parametrize("bound", ["ibp", "crown-ibp"])
def test_at_the_end_of_the_ramp_the_loss_is_the_robust_loss_in_every_bit(bound, eps_max):
    net, x, y = problem()
    output = CertifiedLoss(bound=bound)(net, x, y, torch.tensor(eps_max), eps_max)
    assert torch.equal(output.loss, output.robust_loss)
    with_terms = torch.autograd.grad(output.loss, list(net.parameters()))
    bare = CertifiedLoss(bound=bound, reg_terms=())(net, x, y, torch.tensor(eps_max), eps_max)
    assert torch.equal(bare.loss, output.loss)
    assert all(map(torch.equal, with_terms, torch.autograd.grad(bare.loss, list(net.parameters()))))


def test_without_a_radius_the_loss_is_clean_cross_entropy_in_every_bit():
    net, x, y = problem()
    plain_net = copy.deepcopy(net)
    output = CertifiedLoss(reg_terms=())(net, x, y, torch.tensor(0.0), MAX_EPS)
    assert torch.equal(output.loss, output.clean_ce)
    torch.testing.assert_close(output.loss, F.cross_entropy(plain_net(x), y), rtol=1e-6, atol=1e-6)
    full = CertifiedLoss(reg_lambda=0.25)(plain_net, x, y, 0.0, MAX_EPS)
    torch.testing.assert_close(full.loss, full.clean_ce + 0.25 * (full.tightness + full.relu))


def test_running_statistics_move_once_as_in_a_plain_forward_pass():
    net, x, y = problem()
    other = copy.deepcopy(net)
    for bound in ("ibp", "crown-ibp"):
        CertifiedLoss(bound=bound)(net, x, y, 0.05, MAX_EPS)
        other(x)
        for name, value in other.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("loss_fusion", [False, True])
def test_crown_has_the_share_that_the_ramp_leaves(loss_fusion):
    net, x, y = problem(batch_norm=False)
    eps, share = 0.04, 0.6
    lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    loss = CertifiedLoss("crown-ibp", loss_fusion=loss_fusion, reg_terms=())
    found = loss(net, x, y, eps, MAX_EPS).loss
    if loss_fusion:
        expected = crown_fused_loss(net, x, lower, upper, y, share)[1].mean()
    else:
        out, margins = crown_margins(net, x, lower, upper, y)
        mixed = share * margins + (1 - share) * out.margin_lower
        expected = torch.log1p(torch.exp(-mixed).sum(1)).mean()
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, CertifiedLoss(reg_terms=())(net, x, y, eps, MAX_EPS).loss, rtol=1e-4)


def test_fusion_changes_nothing_with_intervals():
    net, x, y = problem()
    first, second = (CertifiedLoss(loss_fusion=fused)(net, x, y, 0.05, MAX_EPS).loss for fused in (True, False))
    assert torch.equal(first, second)


def test_terms_can_be_chosen_and_fractions_are_of_all_relus():
    net, x, y = problem()
    both = CertifiedLoss()(net, x, y, 0.05, MAX_EPS)
    for term in ("tightness", "relu"):
        one = CertifiedLoss(reg_terms=[term])(net, x, y, 0.05, MAX_EPS)
        assert torch.equal(getattr(one, term), getattr(both, term))
        assert one.tightness + one.relu == getattr(one, term)
    z = torch.rand(20, 6)
    out = interval_forward(net, z, (z - 0.05).clamp_min(0), (z + 0.05).clamp_max(1))
    output = CertifiedLoss()(net, z, y, 0.05, MAX_EPS)
    ends = [(box.lower, box.upper) for box in out.preactivations]
    active = torch.cat([(low > 0).flatten() for low, _ in ends]).double().mean()
    inactive = torch.cat([(high < 0).flatten() for _, high in ends]).double().mean()
    assert output.active_fraction.item() == pytest.approx(active.item(), rel=1e-6)
    assert output.inactive_fraction.item() == pytest.approx(inactive.item(), rel=1e-6)


def test_normalisation_happens_inside_and_boxes_end_at_the_valid_range():
    net, x, y = problem(batch_norm=False)
    mean, std = [0.5] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    folded = copy.deepcopy(net)
    with torch.no_grad():  # the same network on raw inputs
        folded.body[1].weight /= torch.tensor(std)
        folded.body[1].bias -= folded.body[1].weight @ torch.tensor(mean)
    inside = CertifiedLoss()(net, x, y, 0.05, MAX_EPS, box=InputBox(mean, std))
    raw = CertifiedLoss()(folded, x, y, 0.05, MAX_EPS)
    torch.testing.assert_close(inside.margin_lb, raw.margin_lb, rtol=1e-4, atol=1e-5)
    wider = CertifiedLoss()(folded, x, y, 0.05, MAX_EPS, box=InputBox(input_range=(-1.0, 2.0)))
    assert (wider.margin_lb <= raw.margin_lb + 1e-6).all()
    assert (wider.margin_lb < raw.margin_lb - 1e-3).any()


def test_margins_are_those_of_intervals_in_evaluation_mode():
    net, x, y = problem()
    loss = CertifiedLoss("crown-ibp")
    with pytest.raises(ValueError, match=r"train mode.*call net.eval\(\)"):
        loss.margins(net, x, y, 0.05)
    net.eval()
    expected = interval_forward(net, x, (x - 0.05).clamp_min(0), (x + 0.05).clamp_max(1), spec=y).margin_lower
    assert torch.equal(loss.margins(net, x, y, 0.05), expected)


def test_autocast_and_half_inputs_leave_bounds_in_float32():
    net, x, y = problem()
    x = x.bfloat16()
    expected = CertifiedLoss()(net, x.float(), y, 0.05, MAX_EPS)
    with torch.autocast("cpu", torch.bfloat16):
        found = CertifiedLoss()(net, x, y, 0.05, MAX_EPS)
    assert found.loss.dtype == found.margin_lb.dtype == torch.float32
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize(("batch_norm", "steps", "bar"), [(True, 200, 0.25), (False, 50, 0.05)])
def test_regularisers_alone_tighten_and_balance_a_network(batch_norm, steps, bar):
    """Minimised alone they make nearly all ReLUs stable, and boxes no wider than they allow."""
    batches = chain.from_iterable(Digits(batch_size=64).train_dataloader() for _ in range(20))
    torch.manual_seed(0)
    net, loss = MLP(64, (64,) * 5, 10, batch_norm=batch_norm), CertifiedLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    first = None
    for x, y in islice(batches, steps):
        output = loss(net, x, y, 0.02, MAX_EPS)
        first = output if first is None else first
        optimizer.zero_grad()
        (output.tightness + output.relu).backward()
        optimizer.step()
    assert first.tightness > 0.8
    assert output.tightness < bar
    assert output.relu < 0.05
    assert first.active_fraction + first.inactive_fraction < 0.5
    assert output.active_fraction + output.inactive_fraction >= 0.85


@pytest.mark.slow
def test_a_compiled_loss_is_not_compiled_again_for_another_radius():
    net, x, y = problem(batch_norm=False)
    frames = []

    def backend(graph, example_inputs):
        frames.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(CertifiedLoss(), backend=backend)
    values = [compiled(net, x, y, torch.tensor(eps), MAX_EPS).loss.item() for eps in (0.01, 0.05)]
    once = len(frames)
    values.append(compiled(net, x, y, torch.tensor(0.1), MAX_EPS).loss.item())
    torch._dynamo.reset()
    assert len(frames) == once
    expected = [CertifiedLoss()(net, x, y, torch.tensor(eps), MAX_EPS).loss.item() for eps in (0.01, 0.05, 0.1)]
    assert values == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": "crown"}, "bound is 'crown'; allowed are 'ibp', 'crown-ibp'"),
        ({"reg_lambda": -1.0}, "reg_lambda is -1.0"),
        ({"reg_terms": "relu"}, "reg_terms is 'relu'; allowed is a list out of tightness, relu"),
        ({"reg_terms": ["std"]}, r"reg_terms\[0\] is 'std'"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"tol": 1.5}, r"tol is 1.5; allowed is a number in \(0, 1\]"),
        ({"min_eps_reg": 0.0}, "min_eps_reg is 0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CertifiedLoss(**arguments)


def test_batches_that_prove_nothing_are_refused():
    net, x, y = problem()
    loss = CertifiedLoss()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"pixels outside \[0.0, 1.0\]"):
        loss(net, x + 0.5, y, 0.05, MAX_EPS)
    with pytest.raises(ValueError, match="the batch has 1 sample"):
        loss(net, x[:1], y[:1], 0.05, MAX_EPS)
    with pytest.raises(ValueError, match="half precision, in which bounds prove nothing"):
        loss(copy.deepcopy(net).bfloat16(), x, y, 0.05, MAX_EPS)
    with pytest.raises(ValueError, match="or NaN"):
        loss(net, x.clone().fill_(math.nan), y, 0.05, MAX_EPS)
    with pytest.raises(ValueError, match=r"labels in torch\.float32"):
        loss(net, x, y.float(), 0.05, MAX_EPS)
    with pytest.raises(ValueError, match="there are 0 labels"):
        loss(net, x[:0], y[:0], 0.05, MAX_EPS)
    for options in ({}, {"bound": "crown-ibp"}, {"bound": "crown-ibp", "loss_fusion": True}):
        for wrong in (y + 1, y - 1):
            with pytest.raises(ValueError, match="label"):
                CertifiedLoss(**options)(net, x, wrong, 0.05, MAX_EPS)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("eps", "eps_max", "message"),
    [
        (8.0, 0.1, "eps is 8.0, .* did you mean eps/255"),
        (8.0, 8.0, "eps_max is 8.0, .* did you mean eps_max/255"),
        (-0.1, 0.1, "eps is -0.1"),
        (math.nan, 0.1, "eps is nan"),
        (0.1, 0.0, "eps_max is 0.0"),
        (0.1, -0.1, "eps_max is -0.1"),
        (torch.tensor(-0.5), 0.1, "eps is -0.5"),
        (torch.tensor(8.0), 0.1, "eps is 8.0, .* did you mean eps/255"),
        (torch.tensor(math.nan), 0.1, "eps is nan"),
    ],
)
def test_radii_out_of_range_are_refused(eps, eps_max, message):
    net, x, y = problem()
    with pytest.raises(ValueError, match=message):
        CertifiedLoss()(net, x, y, eps, eps_max)
    assert net.body[2].num_batches_tracked == 0
    if eps_max == 0.1:
        with pytest.raises(ValueError, match=message):
            CertifiedLoss().margins(net.eval(), x, y, eps)


def test_certificates_do_not_follow_the_precision_of_products():
    net, x, y = problem(batch_norm=False)
    seen = []
    real, loss = certified_loss.interval_forward, CertifiedLoss()

    def watched(*arguments, **options):
        seen.append(torch.get_float32_matmul_precision())
        return real(*arguments, **options)

    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(certified_loss, "interval_forward", watched)
            loss.margins(net, x, y, 0.05)
            loss(net, x, y, 0.05, MAX_EPS)
        assert set(seen) == {"highest"}
        assert len(seen) >= 2
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_network_without_relus_has_nothing_to_regularise():
    net, x, y = nn.Sequential(nn.Linear(6, 4)), torch.rand(3, 6), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"no ReLU.*reg_terms=\[\]"):
        CertifiedLoss()(net, x, y, 0.05, MAX_EPS)
    output = CertifiedLoss(reg_terms=[])(net, x, y, 0.05, MAX_EPS)
    assert math.isfinite(output.loss.item())
    assert output.active_fraction == 0


def test_convolutional_networks_train():
    torch.manual_seed(0)
    net = CNN7(in_channels=1, image_size=8, width=4, linear_size=16)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    output = CertifiedLoss()(net, x, y, 0.02, MAX_EPS, box=InputBox([0.5], [0.25]))
    output.loss.backward()
    assert all(param.grad.isfinite().all() for param in net.parameters())
    assert layer_sums(interval_forward(net, x, x, x).preactivations).shape == (6, 9)
