"""Networks that are patched inside a block."""

import copy

import pytest
import torch

from lightning_weights.modules import patched
from tests.modules.signature_cases import SmallResNet, bits, same_bits, signature_of, small_vgg


@pytest.mark.parametrize("levels", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [small_vgg, SmallResNet])
def test_every_bit_comes_back(make, dtype, levels):
    network = make().to(dtype)
    before, storages = bits(network), [tensor.data_ptr() for tensor in network.state_dict().values()]
    signature = signature_of(make(), levels=levels)
    with patched(network, signature, 1.7):
        assert not same_bits(network, before)
        assert network.state_dict().keys() == before.keys()
        changed = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]
        assert set(changed) <= set(signature.shapes)
    assert same_bits(network, before)
    assert [tensor.data_ptr() for tensor in network.state_dict().values()] == storages


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_every_bit_comes_back_after_an_exception(error):
    network = small_vgg()
    before = bits(network)

    def fail():
        with patched(network, signature_of(network, levels=4)) as controller:
            controller.set_scale("fog", 2.0)
            raise error

    with pytest.raises(error):
        fail()
    assert same_bits(network, before)
    with patched(network, signature_of(network, levels=4)):
        pass


def test_nested_blocks():
    network = small_vgg()
    before = bits(network)
    fog, frost = signature_of(network, 1), signature_of(network, 2, corruption="frost")
    with patched(network, fog) as outer:
        once = bits(network)
        with patched(network, frost):
            with pytest.raises(ValueError, match="a later patch of this network is still there"):
                outer.set_scale("fog", 2.0)
            assert outer.scales == {"fog": 1.0}
        assert same_bits(network, once)
        outer.set_scale("fog", 2.0)
    assert same_bits(network, before)


def test_blocks_that_end_out_of_order():
    network = small_vgg()
    before = bits(network)
    first, second = patched(network, signature_of(network)), patched(network, signature_of(network, 2, None, "frost"))
    outer, inner = first.__enter__(), second.__enter__()
    twice = bits(network)
    with pytest.raises(ValueError, match="take patches away in the reverse order"):
        first.__exit__(None, None, None)
    assert same_bits(network, twice)
    assert outer.applied
    assert inner.applied
    second.__exit__(None, None, None)
    outer.restore()
    assert same_bits(network, before)


def test_inside_inference_mode_and_on_copies():
    network = small_vgg()
    signature, before, x = signature_of(network, levels=16), bits(network), torch.randn(2, 1, 4, 4)
    with patched(network, signature):
        twin = copy.deepcopy(network)
        with torch.no_grad():
            expected = network(x)
    with torch.inference_mode(), patched(network, signature):
        assert torch.equal(network(x), expected)
    assert same_bits(network, before)
    network(x).sum().backward()
    assert torch.equal(twin(x), expected)
    with patched(twin, signature, 0.5):
        pass


def sgd_step(network, x):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    network(x).square().sum().backward()
    optimizer.step()


def test_training_is_refused_unless_it_is_allowed():
    network, x = small_vgg(), torch.randn(2, 1, 4, 4)
    signature, before = signature_of(network, levels=16), bits(network)
    with pytest.raises(ValueError, match="trained while it is patched"), patched(network, signature):
        sgd_step(network, x)
    assert same_bits(network, before)
    with patched(network, signature):
        network.eval()(x).sum().backward()  # gradients of a network that is measured
    with patched(network, signature, allow_train=True) as controller:
        start = bits(network)
        sgd_step(network, x)
        trained = bits(network)
        controller.set_scale("fog", 0.5)
        controller.set_scale("fog", 1.0)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, trained[name], rtol=1e-5, atol=1e-6)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + trained[name] - start[name], rtol=1e-5, atol=1e-6)
    assert not same_bits(network, before)
    before = bits(network)
    with patched(network, signature, allow_train=True):
        pass
    assert same_bits(network, before)
    sgd_step(network, x)


def test_several_signatures_with_one_scale_or_one_for_each():
    network = small_vgg()
    pair = [signature_of(network), signature_of(network, 2, corruption="frost")]
    with patched(network, pair, 0.5) as controller:
        assert controller.scales == {"fog": 0.5, "frost": 0.5}
    with patched(network, pair, (1.0, 2.0)) as controller:
        assert controller.scales == {"fog": 1.0, "frost": 2.0}
    with pytest.raises(ValueError, match="scales are 1 for 2 signatures"), patched(network, pair, [1.0]):
        pass
    with pytest.raises(ValueError, match="scale is inf"), patched(network, pair, float("inf")):
        pass
