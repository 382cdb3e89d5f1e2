"""The kernel of packed signatures in Triton's interpreter, against numpy, bit by bit."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.apply_signature import apply_signature, kernel
from tests.kernels.buffers import guarded, strided
from tests.kernels.signature_cases import BITS, oracle, problem


@pytest.fixture(autouse=True)
def _triton():
    with use_kernels("triton"):
        yield


def applied(arguments, outs=None):
    outs = [torch.full_like(base, torch.nan) for base in arguments["bases"]] if outs is None else outs
    apply_signature(outs, **arguments)
    return outs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bits", [BITS, (4, 4)], ids=str)
def test_every_bit_of_the_sums(bits, dtype, monkeypatch):
    monkeypatch.setattr(kernel, "pick_config", lambda warp_size: (256, 1))
    arguments = problem(dtype, bits, [(0,), (7,), (256,), (3, 200)])
    want = oracle(arguments.pop("held"), **arguments)
    assert all(map(torch.equal, applied(arguments), want))


def test_bf16_within_one_step():
    arguments = problem(torch.bfloat16, [4, 3], [(7,), (1100,)])
    want = oracle(arguments.pop("held"), **arguments)
    for a, b in zip(applied(arguments), want, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=0.0)


def test_types_and_alignments_in_one_call():
    arguments = problem(shapes=[(1100,), (40,), (9,)], bits=[3, 8])
    arguments["bases"][1] = arguments["bases"][1].half()
    want = oracle(arguments.pop("held"), **arguments)
    for shift in (0, 1):
        bases, clean = guarded(arguments["bases"], shift)
        outs, clean_outs = guarded(arguments["bases"], shift)
        assert all(map(torch.equal, applied({**arguments, "bases": bases}, outs), want))
        assert clean()
        assert clean_outs()


def test_streams_at_odd_addresses_end_where_they_end():
    arguments = problem(shapes=[(1030,), (13,)], bits=[3, 5])
    want = oracle(arguments.pop("held"), **arguments)
    streams = [x for row in arguments["codes"] for x in row if x is not None]
    whole = torch.cat([torch.full((1,), 255, dtype=torch.uint8), *streams, torch.full((9,), 255, dtype=torch.uint8)])
    parts = iter(whole[1:-9].split([len(x) for x in streams]))
    arguments["codes"] = [[None if x is None else next(parts) for x in row] for row in arguments["codes"]]
    assert all(map(torch.equal, applied(arguments), want))


def test_layouts_scale_zero_and_opcheck():
    arguments = problem(shapes=[(6, 10), (33,)], bits=[3, 4])
    want = oracle(arguments.pop("held"), **arguments)
    layout = [strided(arguments["bases"][0]), arguments["bases"][1].clone()]
    assert all(map(torch.equal, applied({**arguments, "bases": layout}, layout), want))
    arguments["bases"][1][:2] = -0.0
    same = applied({**arguments, "scales": [0.0, 0.0]})
    assert torch.equal(same[1].view(torch.int32), arguments["bases"][1].view(torch.int32))
    streams = [torch.empty(0, dtype=torch.uint8) if x is None else x for row in arguments["codes"] for x in row]
    inputs = (same, arguments["bases"], streams, *(arguments[name] for name in ("low", "high", "scales", "bits")))
    results = torch.library.opcheck(torch.ops.lightning_weights.apply_signature.default, inputs)
    assert set(results.values()) == {"SUCCESS"}
    with pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        applied({**arguments, "bases": [base.double() for base in arguments["bases"]]})
