"""KNOWN's predictions as a Triton kernel: all between a weight's history and its last prediction is in registers."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._op import exact_products
from lightning_weights.kernels.nowcast.cost import SLICE, pick_config
from lightning_weights.kernels.nowcast.eager import BITS, fold
from lightning_weights.kernels.nowcast.reference import FEATURES, HIGHEST_EXPONENT, WIDTH, Stream, split_parameters

REGISTERS = 192
THREE_PRODUCTS = "tf32x3"  # NVIDIA's TF32 with the bits that it drops: deltas are small. AMD multiplies fp32 as it is
# Parameters are loaded by many threads at once, and the last stages of a pipeline repeat the loop's loads.
WIDE_LOADS = {
    "ieee": {"sm_80": 5, "sm_90": 5, "sm_100": 5, "gfx942": 4},
    THREE_PRODUCTS: {"sm_80": 4, "sm_90": 4, "sm_100": 8},
}
OPCODES = {"ieee": {"gfx942": "v_mfma"}, THREE_PRODUCTS: {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC"}}
HIGHEST_POWER = tl.constexpr(BITS * HIGHEST_EXPONENT)


@triton.jit
def _stream(
    x,  # [BLOCK, COLUMNS]: what lies outside the history or behind its 1 meets rows of zeros
    at,  # the stream's matrices, one behind the other
    row,  # of the first two matrices that belongs to the first column
    PADDED: tl.constexpr,  # rows of those
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    SLICE: tl.constexpr,
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return what goes into the leaky ReLU at a stream's end."""
    column, some, out = tl.arange(0, COLUMNS)[:, None], tl.arange(0, SLICE), tl.arange(0, OUT)[None, :]
    z = tl.dot(x, tl.load(at + (row + column) * SLICE + some[None, :]), input_precision=PRECISION)
    z = tl.where(z < 0.0, 0.0, z)  # NaN stays NaN
    at_u = at + PADDED * SLICE
    at_p = at_u + PADDED * WIDE
    at_v = at_p + 2 * SLICE * WIDE
    v = tl.dot(z, tl.load(at_v + WIDE * OUT + some[:, None] * OUT + out), input_precision=PRECISION)
    for first in range(0, WIDE, SLICE):
        part = first + some[None, :]
        u = tl.dot(x, tl.load(at_u + (row + column) * WIDE + part), input_precision=PRECISION)
        p = tl.dot(z, tl.load(at_p + some[:, None] * WIDE + part), input_precision=PRECISION)
        q = tl.dot(z, tl.load(at_p + (SLICE + some[:, None]) * WIDE + part), input_precision=PRECISION)
        power = q * u
        power = tl.where(power > HIGHEST_POWER, HIGHEST_POWER, power)
        v = tl.dot(
            p * tl.exp2(power), tl.load(at_v + (first + some[:, None]) * OUT + out), v, input_precision=PRECISION
        )
    return v


@triton.jit
def _tanh(x):
    """Return tanh(x), to the last bits also near 0, where 1 - 2 / (exp(2x) + 1) loses them."""
    square = x * x
    series = x * (1.0 - square / 3.0 * (1.0 - square * 0.4 * (1.0 - square * (17.0 / 42.0))))
    return tl.where(square < 0.0225, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def nowcast_fwd_kernel(
    history,  # [count, S]
    matrices,  # of both streams, then o, then its bias
    found,  # [count, recursions]
    count,
    leaky_slope,
    S: tl.constexpr,
    RECURSIONS: tl.constexpr,
    PADDED: tl.constexpr,
    EVEN: tl.constexpr,  # every program has BLOCK weights
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    SLICE: tl.constexpr,
    OUT: tl.constexpr,
    SIZE: tl.constexpr,  # of a stream's matrices
    BLOCK: tl.constexpr,
):
    """Predict BLOCK weights, as often as asked.

    A window is never shifted. It is the history and a 1, whose place the prediction takes, and the next 1 follows; what
    moves is which rows of the matrices its columns meet.
    """
    weight = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = None if EVEN else weight < count
    column = tl.arange(0, COLUMNS)[None, :]
    start = history + weight[:, None] * S + column
    known = (column < S) if EVEN else (column < S) & (weight[:, None] < count)
    later = (column < S - 1) if EVEN else (column < S - 1) & (weight[:, None] < count)
    w = tl.load(start, mask=known, other=0.0)
    dw = tl.load(start + 1, mask=later, other=0.0) - w
    last = tl.sum(tl.where(column == S - 1, w, 0.0), axis=1)
    w = tl.where(column == S, 1.0, w)
    dw = tl.where(column < S - 1, dw, tl.where(column == S - 1, 1.0, 0.0))
    at_o = matrices + 2 * SIZE + tl.arange(0, OUT)
    for done in range(RECURSIONS):
        row = RECURSIONS - 1 - done
        delta = tl.zeros([BLOCK], tl.float32) + tl.load(matrices + 2 * SIZE + 2 * OUT)
        for stream in range(2):  # not unrolled: the code would be twice as long
            x, at = tl.where(stream == 0, w, dw), matrices + stream * SIZE
            v = _stream(x, at, row, PADDED, COLUMNS, WIDE, SLICE, OUT, PRECISION)
            delta += tl.sum(tl.where(v < 0.0, leaky_slope * v, v) * tl.load(at_o + stream * OUT)[None, :], axis=1)
        delta = _tanh(delta)
        last += delta
        tl.store(found + weight * RECURSIONS + done, last, mask=inside)
        place = column - done
        w = tl.where(place == S, last[:, None], tl.where(place == S + 1, 1.0, w))
        dw = tl.where(place == S - 1, delta[:, None], tl.where(place == S, 1.0, dw))


def launch_nowcast(history: Tensor, parameters: Tensor, recursions: int, leaky_slope: float) -> Tensor:
    """Run the kernel; arguments and result as in the registered operator."""
    history = history.contiguous()
    count, length = history.shape
    found = history.new_empty(count, recursions)
    block, _, _ = pick_config(length, recursions)
    if count:
        with torch.cuda.device_of(history):
            nowcast_fwd_kernel[(triton.cdiv(count, block),)](
                history,
                pack(parameters, length, recursions),
                found,
                count,
                leaky_slope,
                EVEN=count % block == 0,
                PRECISION="ieee" if exact_products(torch.float32) or torch.version.hip else THREE_PRODUCTS,
                **_options(length, recursions),
            )
    return found


def pack(parameters: Tensor, length: int, recursions: int) -> Tensor:
    """Fold the parameters and put them behind each other as the kernel reads them, filled up with zeros.

    The matrices that windows meet get zeros above and below, for the columns that are not looked at.
    """
    known = split_parameters(parameters, length)
    padded = _padded(length, recursions)
    pieces = []
    for stream in (known.w, known.dw):
        pieces += _padded_matrices(stream, recursions - 1, padded)
    return torch.cat([*pieces, known.o, known.o_0.unsqueeze(0)])


def _padded_matrices(stream: Stream, above: int, padded: int) -> list[Tensor]:
    folded = fold(stream)
    pad = torch.nn.functional.pad
    rows = (above, padded - above - len(folded.u))
    below = SLICE - len(folded.p)
    matrices = (
        pad(folded.z.t(), (0, SLICE - len(folded.z), *rows)),
        pad(folded.u, (0, 0, *rows)),
        pad(folded.p, (0, 0, 0, below)),
        pad(folded.q, (0, 0, 0, below)),
        folded.v,
        pad(folded.vz, (0, 0, 0, below)),
    )
    return [matrix.flatten() for matrix in matrices]


def _padded(length: int, recursions: int) -> int:
    return recursions - 1 + pick_config(length, recursions)[1]


def _options(length: int, recursions: int) -> dict[str, int]:
    block, columns, warps = pick_config(length, recursions)
    padded = _padded(length, recursions)
    return {
        "S": length,
        "RECURSIONS": recursions,
        "PADDED": padded,
        "COLUMNS": columns,
        "WIDE": WIDTH,
        "SLICE": SLICE,
        "OUT": FEATURES,
        "SIZE": padded * (SLICE + WIDTH) + 2 * SLICE * WIDTH + (WIDTH + SLICE) * FEATURES,
        "BLOCK": block,
        "num_warps": warps,
        "enable_fp_fusion": True,
    }


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: one prediction, three with tensor cores, and a tail."""
    rows = []
    for name, length, recursions, precision, even in (
        ("S=5, once", 5, 1, "ieee", True),
        ("S=5, thrice, high", 5, 3, "ieee" if warp_size == 64 else THREE_PRODUCTS, True),
        ("S=4, twice", 4, 2, "ieee", False),
    ):
        options = _options(length, recursions)
        warps = options.pop("num_warps")
        options.pop("enable_fp_fusion")
        rows.append(
            Row(
                name=name,
                kernel=nowcast_fwd_kernel,
                signature={
                    "history": "*fp32",
                    "matrices": "*fp32",
                    "found": "*fp32",
                    "count": "i32:16" if even else "i32",
                    "leaky_slope": "fp32",
                },
                constexprs={**options, "EVEN": even, "PRECISION": precision},
                num_warps=warps,
                registers=REGISTERS,
                even=even,
                loads=(0,) * 9,
                stores=(0,),
                wide_loads=WIDE_LOADS[precision],
                opcodes=OPCODES[precision],
                fp_fusion=True,
            )
        )
    return rows
