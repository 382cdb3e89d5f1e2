"""Weights plus packed signatures on the CPU: reference, chunks, registration and cost model."""

import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.functional.bit_packing import pack_bits
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.apply_signature import (
    apply_signature,
    apply_signature_reference,
    dequantize_codes,
    eager,
)
from lightning_weights.kernels.apply_signature.cost import cost, cost_composed, pick_config
from lightning_weights.kernels.apply_signature.reference import grid_values, packed_bytes, unpack_codes
from tests.kernels.buffers import guarded, strided
from tests.kernels.signature_cases import BITS, oracle, packed, problem
from tests.kernels.traffic import Traffic

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def applied(arguments, outs=None):
    outs = [torch.full_like(base, torch.nan) for base in arguments["bases"]] if outs is None else outs
    apply_signature(outs, **arguments)
    return outs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [64, 1 << 16])
def test_every_bit_of_the_sums(dtype, chunk, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", chunk)
    arguments = problem(dtype)
    want = oracle(arguments.pop("held"), **arguments)
    for found in (applied(arguments), apply_signature_reference(**arguments)):
        assert [part.dtype for part in found] == [dtype] * len(want)
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_fp64_stays_fp64():
    arguments = problem(torch.float64, shapes=[(11,)], bits=[5])
    want = arguments["bases"][0] + 0.7 * dequantize_codes(
        arguments["codes"][0][0], arguments["low"][0, 0], arguments["high"][0, 0], 5, 11
    )
    del arguments["held"]
    torch.testing.assert_close(applied(arguments)[0], want, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("bits", BITS)
def test_codes_come_back(bits):
    for count in (0, 1, 8, 31, 100):
        codes = torch.randint(2**bits, (count,))
        stream = packed(codes.tolist(), bits)
        assert len(stream) == packed_bytes(count, bits)
        assert torch.equal(unpack_codes(stream, bits, count), codes)
        words = pack_bits(codes, bits)  # is the same order, filled up to 32-bit words
        assert torch.equal(words.view(torch.uint8)[: len(stream)], stream)


@pytest.mark.parametrize("bits", BITS)
def test_grids_are_even_and_hold_both_ends(bits):
    for _ in range(50):
        low, high = torch.randn(2).sort().values
        values = grid_values(low, high, bits)
        assert (values[0], values[-1]) == (low, high)
        torch.testing.assert_close(
            values.double(), torch.linspace(low, high, 2**bits, dtype=torch.float64), rtol=0, atol=1e-6
        )
        top = 2**bits - 1
        again = ((values - low) / (high - low) * top).round().long()
        assert again.tolist() == list(range(top + 1))
    assert torch.equal(grid_values(low, low, bits), low.expand(2**bits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_zero_and_no_signature_change_no_bit(dtype):
    arguments = problem(dtype, bits=[4, 3], shapes=[(100,)])
    del arguments["held"]
    arguments["bases"][0][:3] = torch.tensor([-0.0, torch.inf, torch.nan])
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    want = arguments["bases"][0].view(bits)
    assert torch.equal(applied({**arguments, "scales": [0.0, 0.0]})[0].view(bits), want)
    nothing = {"codes": [], "low": torch.ones(0, 1), "high": torch.ones(0, 1), "scales": [], "bits": []}
    assert torch.equal(applied({**arguments, **nothing})[0].view(bits), want)


def test_scaling_again_starts_from_the_clean_weights():
    arguments = problem(shapes=[(1000,), (7,)])
    del arguments["held"]
    again = applied({**arguments, "scales": [9.0] * 7})
    assert all(map(torch.equal, applied(arguments, again), applied(arguments)))


def test_any_layout_in_place_and_nothing_outside():
    arguments = problem(shapes=[(6, 10), (2, 3, 4, 4)], bits=[3, 4])
    want = oracle(arguments.pop("held"), **arguments)
    bases = arguments["bases"]
    last = [bases[0].t().contiguous().t(), bases[1].contiguous(memory_format=torch.channels_last)]
    for layout in ([strided(x) for x in bases], last, [x.clone() for x in bases]):
        for outs in (applied({**arguments, "bases": layout}), applied({**arguments, "bases": layout}, layout)):
            assert all(map(torch.equal, outs, want))
    for shift in (0, 1):
        copies, clean = guarded(bases, shift)
        outs, clean_outs = guarded(bases, shift)
        applied({**arguments, "bases": copies}, outs)
        assert all(map(torch.equal, outs, want))
        assert clean()
        assert clean_outs()


def test_parameters_are_written_without_a_graph():
    arguments = problem(shapes=[(5,)], bits=[4])
    want = oracle(arguments.pop("held"), **arguments)
    parameter = torch.nn.Parameter(torch.zeros(5))
    address = parameter.data_ptr()
    applied(arguments, [parameter])
    assert torch.equal(parameter.detach(), want[0])
    assert (parameter.requires_grad, parameter.grad_fn, parameter.data_ptr()) == (True, None, address)


def test_opcheck():
    arguments = problem(shapes=[(5,), (3, 2)], bits=[4, 3])
    streams = [torch.empty(0, dtype=torch.uint8) if x is None else x for row in arguments["codes"] for x in row]
    outs = [torch.zeros_like(base) for base in arguments["bases"]]
    inputs = (outs, arguments["bases"], streams, *(arguments[name] for name in ("low", "high", "scales", "bits")))
    results = torch.library.opcheck(torch.ops.lightning_weights.apply_signature.default, inputs)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": [4]}, "1 bits"),
        ({"bits": [4, 9]}, r"bits\[1\] is 9"),
        ({"bits": [4, 1]}, r"bits\[1\] is 1"),
        ({"bits": [4, 5]}, r"codes\[1\]\[0\] are \(4,\) of torch.uint8; allowed for 10 weights of 5 bits are \(7,\)"),
        ({"low": torch.ones(2, 2)}, r"low \(2, 2\)"),
        ({"scales": [1.0]}, "1 scales"),
        ({"codes": [[None]]}, "2 rows of 1"),
        ({"bases": [torch.ones(9)]}, "shapes, floating types"),
        ({"bases": [torch.ones(10).half()]}, "shapes, floating types"),
    ],
)
def test_bad_input_changes_nothing(change, message):
    arguments = problem(shapes=[(10,)], bits=[4, 3])
    del arguments["held"]
    outs = [torch.zeros(10)]
    with pytest.raises(ValueError, match=message):
        apply_signature(outs, **{**arguments, **change})
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        apply_signature(outs, **arguments)
    assert not outs[0].any()


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_the_cost_model_is_what_moves(dtype):
    block, warps = pick_config()
    assert block == 8 * 32 * warps
    arguments = problem(dtype, bits=[4, 3], shapes=[(5000,), (64,)])
    del arguments["held"]
    arguments["codes"] = [[packed([0] * numel, each) for numel in (5000, 64)] for each in (4, 3)]
    moved = cost([5000, 64], [4, 3], itemsize=dtype.itemsize)
    programs = -(-5000 // block) + 1
    streams = sum(len(stream) for row in arguments["codes"] for stream in row)
    tables = 24 * programs + 2 * 8 * 4 + 2 * 2 * 16
    assert moved.bytes_read == sum(base.nbytes for base in arguments["bases"]) + streams + tables
    assert moved.bytes_written == sum(out.nbytes for out in applied(arguments))
    with Traffic() as traffic:
        for t, base in enumerate(arguments["bases"]):
            total = base.float() if dtype != torch.float32 else base
            for i in range(2):
                codes = torch.zeros(base.numel(), dtype=torch.uint8)  # stands for the unpacking
                traffic.read += len(arguments["codes"][i][t])
                total = total.add(codes.float().mul_(0.1).add_(0.2), alpha=0.5)
            if dtype != torch.float32:
                total.to(dtype)
    composed = cost_composed([5000, 64], [4, 3], itemsize=dtype.itemsize)
    assert (traffic.read, traffic.written) == pytest.approx((composed.bytes_read, composed.bytes_written), rel=0.01)
    assert 4 * (moved.bytes_read + moved.bytes_written) < composed.bytes_read + composed.bytes_written
