"""Weights predicted from snapshots of forgetting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import Snapshot, knowledge_overflow, predict_overflowed
from tests.modules.test_known_bank import a_bank

NORM = ("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")


def a_network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))


def snapshots(count=5, seed=0, dtype=torch.float32):
    """Return a network's tensors along a random walk, statistics and counters included."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tensors = {name: tensor.double() for name, tensor in a_network().state_dict().items()}
    history = []
    for place in range(count):
        for name in tensors:
            tensors[name] = tensors[name] + 0.1 * torch.randn(tensors[name].shape, generator=generator).double()
        history.append({name: tensor.to(dtype) for name, tensor in tensors.items()})
        history[-1]["1.num_batches_tracked"] = torch.tensor(10 * place)
    return history


def with_numbers(history, **changes):
    count = len(history)
    return [
        Snapshot(
            tensors, **{"session": s, "sessions": count, "samples": 400 >> s, "rate": 0.5, "subset_seed": 0, **changes}
        )
        for s, tensors in zip(range(count - 1, -1, -1), history, strict=True)
    ]


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


@pytest.mark.parametrize("recursions", [1, 3])
def test_every_kind_is_predicted_by_its_own(recursions):
    history, bank = snapshots(), a_bank()
    predicted = predict_overflowed(history, bank, recursions)
    assert list(predicted) == list(history[-1])
    for name, kind in {"0.weight": "conv", "0.bias": "bias", "3.weight": "fc", "3.bias": "bias"}.items():
        window = torch.stack([tensors[name] for tensors in history], dim=-1).view(-1, 5)
        for _ in range(recursions):
            following = window[:, -1:] + getattr(bank, kind)(window).detach()[:, None]
            window = torch.cat([window[:, 1:], following], dim=1)
        torch.testing.assert_close(predicted[name].view(-1), window[:, -1], rtol=1e-6, atol=1e-6)
    a_network().load_state_dict(predicted)


def test_what_is_not_predicted_keeps_every_bit():
    history = snapshots()
    history[-1]["1.running_var"][0] = float("nan")
    history[-1]["4.weight"][0] = -0.0
    predicted = predict_overflowed(history, a_bank(), 2)
    for name in (*NORM, "4.weight", "4.bias"):
        assert same(predicted[name], history[-1][name])
        assert predicted[name].data_ptr() != history[-1][name].data_ptr()


def test_no_recursion_gives_the_last_snapshot():
    history = snapshots()
    predicted = predict_overflowed(history, a_bank(), 0)
    assert all(same(predicted[name], tensor) for name, tensor in history[-1].items())
    predicted["3.weight"].zero_()
    assert history[-1]["3.weight"].any()


def test_snapshots_are_not_changed():
    history = with_numbers(snapshots())
    before = [{name: tensor.clone() for name, tensor in s.items()} for s in history]
    predict_overflowed(history, a_bank(), 3, norm="reset")
    for now, then in zip(history, before, strict=True):
        assert all(same(now[name], tensor) for name, tensor in then.items())


def test_normalisation_layers_can_be_reset():
    history = snapshots()
    history = [{**tensors, "act.weight": torch.full((2,), 0.25)} for tensors in history]
    predicted = predict_overflowed(history, a_bank(), norm="reset")
    fresh = a_network().state_dict()
    for name in (*NORM, "4.weight", "4.bias"):
        assert same(predicted[name], fresh[name])
    assert same(predicted["act.weight"], history[-1]["act.weight"]), "the slopes of a PReLU"
    kept = predict_overflowed(history, a_bank())
    assert same(predicted["3.weight"], kept["3.weight"])


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_prediction_commutes_with_permutations_shapes_and_slices(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=4)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    walk = torch.randn(5, *shape, generator=generator).mul(0.1).cumsum(dim=0)
    bank, recursions = a_bank(), data.draw(st.integers(1, 3))

    def predict(values):
        return predict_overflowed([{"weight": value} for value in values], bank, recursions)["weight"]

    whole, order = predict(walk), data.draw(st.permutations(range(len(shape))))
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(predict(walk.permute(0, *(d + 1 for d in order))), whole.permute(order), **close)
    torch.testing.assert_close(predict(walk.flip(1)), whole.flip(0), **close)
    torch.testing.assert_close(predict(walk.reshape(5, -1, 1, 1)), whole.reshape(-1, 1, 1), **close)
    cut = data.draw(st.integers(0, shape[0]))
    torch.testing.assert_close(torch.cat([predict(walk[:, :cut]), predict(walk[:, cut:])]), whole, **close)


def test_recursions_add_up():
    history, bank = snapshots(), a_bank()
    steps = [predict_overflowed(history, bank, n) for n in (1, 2, 5)]
    later = predict_overflowed([*history[2:], *steps[:2]], bank, 3)
    for name, tensor in steps[2].items():
        torch.testing.assert_close(later[name], tensor, rtol=1e-6, atol=1e-6)


def test_large_tensors_go_in_pieces(monkeypatch):
    whole = predict_overflowed(snapshots(), a_bank())
    monkeypatch.setattr(knowledge_overflow, "CPU_ROWS", 7)
    for name, tensor in predict_overflowed(snapshots(), a_bank(), device="cpu").items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-6, atol=1e-6)


def test_double_and_single_precision_agree():
    single, double = snapshots(), snapshots(dtype=torch.float64)
    bank = a_bank()
    double = predict_overflowed(double, bank, 3)
    for name, tensor in predict_overflowed(single, bank, 3).items():
        torch.testing.assert_close(tensor.double(), double[name].double(), rtol=0, atol=1e-5)
    assert double["3.weight"].dtype == torch.float64


@pytest.mark.parametrize("count", [4, 6])
def test_the_number_of_snapshots_is_that_of_the_bank(count):
    with pytest.raises(ValueError, match=rf"there are {count} snapshots, and the bank's histories have 5"):
        predict_overflowed(snapshots(count), a_bank())
    assert predict_overflowed(snapshots(4), a_bank(4))["3.weight"].shape == (3, 8)


def test_snapshots_in_the_order_of_training_are_refused():
    history, bank = with_numbers(snapshots()), a_bank()
    right = predict_overflowed(history, bank)
    with pytest.raises(ValueError, match=r"trained on \[400, 200, 100, 50, 25\] samples; most forgotten.*reverse"):
        predict_overflowed(history[::-1], bank)
    plain = [dict(snapshot) for snapshot in history]
    with pytest.raises(ValueError, match="reverse the list"):
        predict_overflowed(plain[::-1], bank, samples=[5, 4, 3, 2, 1])
    wrong = predict_overflowed(plain[::-1], bank)
    assert (wrong["3.weight"] - right["3.weight"]).abs().max() > 0.01
    with pytest.raises(ValueError, match="different runs: rate"):
        predict_overflowed([*with_numbers(plain, rate=0.3)[:1], *history[1:]], bank)


def test_low_precision_is_refused_unless_asked_for():
    history, bank = snapshots(dtype=torch.bfloat16), a_bank()
    with pytest.raises(ValueError, match=r"0.weight is of torch.bfloat16: .*cast=True"):
        predict_overflowed(history, bank)
    predicted = predict_overflowed(history, bank, cast=True)
    wide = [{name: t.float() if t.is_floating_point() else t for name, t in s.items()} for s in history]
    assert same(predicted["3.weight"], predict_overflowed(wide, bank)["3.weight"])
    assert same(predicted["1.running_mean"], history[-1]["1.running_mean"])


def test_quantized_weights_are_refused_unless_asked_for():
    bank = a_bank()
    history = [{**s, "head.weight": torch.full((2, 2), p, dtype=torch.int8)} for p, s in enumerate(snapshots())]
    with pytest.raises(ValueError, match=r"head.weight is of torch.int8"):
        predict_overflowed(history, bank)
    assert same(predict_overflowed(history, bank, cast=True)["head.weight"], history[-1]["head.weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(bad):
    history = snapshots()
    history[1]["3.bias"][2] = bad
    with pytest.raises(ValueError, match=r"3.bias has values that are not finite in its history"):
        predict_overflowed(history, a_bank())
    bank = a_bank()
    with torch.no_grad():
        bank.conv.values.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"prediction of 0.weight is not finite; its conv hyper-model"):
        predict_overflowed(snapshots(), bank)


def test_tied_weights_are_predicted_once(monkeypatch):
    walk = [s["3.weight"] for s in snapshots()]
    tied = [{"a.weight": w, "b.weight": w} for w in walk]
    bank, rows = a_bank(), []
    monkeypatch.setattr(bank.fc, "nowcast", lambda h, n, real=bank.fc.nowcast: rows.append(len(h)) or real(h, n))
    predicted = predict_overflowed(tied, bank)
    assert rows == [24]
    assert predicted["a.weight"] is predicted["b.weight"]
    embedded = predict_overflowed([{"embed.weight": w, "head.weight": w, "fc.weight": w + 1} for w in walk], bank)
    assert embedded["embed.weight"] is embedded["head.weight"]
    assert same(embedded["head.weight"], walk[-1])


def test_names_can_be_left_alone():
    history = snapshots()
    predicted = predict_overflowed(history, a_bank(), exclude=[r"^3\."])
    assert same(predicted["3.weight"], history[-1]["3.weight"])
    assert not torch.equal(predicted["0.weight"], history[-1]["0.weight"])
    with pytest.raises(ValueError, match=r"nothing is predicted: none of \['0.weight'"):
        predict_overflowed(history, a_bank(), exclude=["."])


def test_routes_differ_for_kernels_of_other_sizes():
    walk = [torch.full((2, 1, 1, 1), 0.1 * place) for place in range(5)]
    history = [{"weight": w} for w in walk]
    paper, other = (predict_overflowed(history, a_bank(route=route))["weight"] for route in ("paper", "shape3x3"))
    assert not torch.allclose(paper, other)
    flat = predict_overflowed([{"weight": w.view(2, 1)} for w in walk], a_bank())["weight"]
    assert torch.equal(other.view(2, 1), flat)


def test_flat_shards_are_predicted_as_the_whole():
    """Each of two processes has half of every tensor, and knows the whole shapes."""
    history, bank = snapshots(), a_bank()
    shapes = {name: tuple(tensor.shape) for name, tensor in history[-1].items()}
    whole = predict_overflowed(history, bank, 2)

    def half(tensor, rank):
        return tensor.reshape(-1).chunk(2)[rank] if tensor.dim() else tensor

    halves = [
        predict_overflowed([{n: half(t, rank) for n, t in s.items()} for s in history], bank, 2, shapes=shapes)
        for rank in range(2)
    ]
    for name, tensor in whole.items():
        joined = torch.cat([part[name] for part in halves]) if tensor.dim() else halves[0][name]
        torch.testing.assert_close(joined.view_as(tensor), tensor, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_tensors_stay_sharded(mesh):
    history, bank = snapshots(), a_bank()
    sharded = [
        {n: t if n == NORM[-1] else distribute_tensor(t, mesh, [Shard(0)]) for n, t in s.items()} for s in history
    ]
    predicted = predict_overflowed(sharded, bank, 2, norm="reset")
    for name, tensor in predict_overflowed(history, bank, 2, norm="reset").items():
        if name != NORM[-1]:
            assert predicted[name].placements == (Shard(0),)
            torch.testing.assert_close(predicted[name].full_tensor(), tensor)
    sharded[0]["3.weight"] = distribute_tensor(history[0]["3.weight"], mesh, [Replicate()])
    with pytest.raises(ShardedParameterError, match="sharded alike"):
        predict_overflowed(sharded, bank)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recursions": -1}, r"recursions is -1; allowed is a whole number in \[0"),
        ({"recursions": 1.5}, "recursions is 1.5"),
        ({"norm": "drop"}, "norm is 'drop'; allowed are 'keep', 'reset'"),
        ({"exclude": "norm"}, "exclude is 'norm'"),
        ({"samples": [1]}, "samples has 1 numbers for 5 snapshots"),
        ({"shapes": {"7.weight": (1,)}}, r"shapes has \['7.weight'\]"),
    ],
)
def test_odd_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        predict_overflowed(snapshots(), a_bank(), **options)


def test_networks_are_not_mixed():
    history = snapshots()
    history[2] = {name: tensor for name, tensor in history[2].items() if name != "3.bias"}
    with pytest.raises(ValueError, match=r"snapshot 2 and the last one differ in the names \['3.bias'\]"):
        predict_overflowed(history, a_bank())
