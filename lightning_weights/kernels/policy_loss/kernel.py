"""The policy loss as a Triton kernel: one pass that writes partial sums and the gradient."""

# Triton's language has no type annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_weights.kernels._aot import Row
from lightning_weights.kernels._op import WARP_SIZE
from lightning_weights.kernels.policy_loss.cost import pick_config, pick_vector

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
REGISTERS = 96  # budget: five programs of 128 threads share a multiprocessor


@triton.jit
def _divergence(delta, KL: tl.constexpr):
    """The divergence of log-ratios, and its gradient in the policy's log-probability."""
    if KL == 1:
        power = tl.exp(delta)
        divergence = power - delta - 1.0
        large = divergence > 10.0
        divergence = tl.where(large, 10.0, divergence)
        rise = tl.where(large, 0.0, 1.0 - power)
    else:
        divergence = 0.5 * delta * delta
        rise = -delta
    return divergence, rise


@triton.jit(do_not_specialize=["vectors", "blocks", "programs"])
def policy_loss_fwd_kernel(
    logp,  # [rows, width], contiguous, as are the next two, the mask and the gradient
    old,
    ref,
    advantages,  # fp32, [rows], or [rows, width] if PER_TOKEN
    mask,  # fp32
    gradient,  # fp32
    partials,  # fp32 [3, programs]: sums of losses, of clipped tokens and of divergences
    vectors,  # the width, counted in vectors
    blocks,  # per row
    programs,
    lowest,
    highest,
    dual,
    kl_coef,
    KL: tl.constexpr,  # 0: none, 1: k3, 2: half the square
    PER_TOKEN: tl.constexpr,
    VECTOR: tl.constexpr,  # tokens that lie inside a row or outside together: masks don't split the loads of them
    BLOCK: tl.constexpr,
):
    """Write gradient and partial sums of one block of one row; all arithmetic in fp32. Programs share nothing.

    A surrogate is -loss. A row starts where the one before has ended.
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    within = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    width = vectors * VECTOR  # a product is all that tells the compiler about divisibility
    inside = within < width
    offsets = row * width + within
    m = tl.load(mask + offsets, mask=inside, other=0.0)
    p = tl.load(logp + offsets, mask=inside, other=0.0).to(tl.float32)
    q = tl.load(old + offsets, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(advantages + offsets, mask=inside, other=0.0) if PER_TOKEN else tl.load(advantages + row)
    valid = m != 0.0
    ratio = tl.exp(tl.where(valid, p - q, 0.0))
    plain = a * ratio
    # comparisons that NaN passes through
    bounded = tl.where(ratio < lowest, lowest, tl.where(ratio > highest, highest, ratio))
    clipped = a * bounded
    stopped = clipped < plain
    surrogate = tl.where(stopped, clipped, plain)
    floor = tl.where(a < 0.0, a * dual, -float("inf"))
    capped = floor > surrogate
    loss, slope = -tl.where(capped, floor, surrogate), tl.where(stopped | capped, 0.0, -plain)
    place = partials + tl.program_id(0)
    if KL > 0:
        delta = tl.where(valid, tl.load(ref + offsets, mask=inside, other=0.0).to(tl.float32) - p, 0.0)
        divergence, rise = _divergence(delta, KL)
        loss += kl_coef * divergence
        slope += kl_coef * rise
        tl.store(place + 2 * programs, tl.sum(divergence * m))
    tl.store(gradient + offsets, slope * m, mask=inside)
    tl.store(place, tl.sum(loss * m))
    tl.store(place + programs, tl.sum(tl.where(stopped, m, 0.0)))


def launch_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    clip: tuple[float, float, float],
    kl_coef: float,
    k3: bool,
) -> tuple[Tensor, Tensor]:
    """Run the kernel; arguments and results as in the eager version."""
    rows, width = logp.shape
    gradient = torch.empty(rows, width, dtype=torch.float32, device=logp.device)
    if not rows * width:
        return torch.zeros(3, dtype=torch.float32, device=logp.device), gradient
    block, warps = pick_config(width, WARP_SIZE)
    blocks, vector = triton.cdiv(width, block), pick_vector(width)
    partials = torch.zeros(3, rows * blocks, dtype=torch.float32, device=logp.device)
    tensors = [tensor.contiguous() for tensor in (logp, old_logp, logp if ref_logp is None else ref_logp)]
    with torch.cuda.device_of(logp):
        policy_loss_fwd_kernel[(rows * blocks,)](
            *tensors,
            advantages.float().contiguous(),
            mask.contiguous(),
            gradient,
            partials,
            width // vector,
            blocks,
            rows * blocks,
            1.0 - clip[0],
            1.0 + clip[1],
            clip[2],
            kl_coef,
            KL=0 if ref_logp is None else 1 if k3 else 2,
            PER_TOKEN=advantages.ndim == 2,
            VECTOR=vector,
            BLOCK=block,
            num_warps=warps,
        )
    return partials.sum(dim=1), gradient


def aot_rows(warp_size: int) -> list[Row]:
    """Variants to compile ahead of time: with and without reference, one advantage per token, and an odd length."""
    rows = []
    for name, dtype, divergence, per_token, width in (
        ("fp32 k3", "fp32", 1, False, 2048),
        ("bf16 mse per token", "bf16", 2, True, 2048),
        ("fp32 no reference", "fp32", 0, False, 2048),
        ("fp32 k3 odd", "fp32", 1, False, 1001),
    ):
        block, warps = pick_config(width, warp_size)
        moved = {"fp32": 4, "bf16": 2}[dtype] * block
        constexprs: dict[str, Any] = {
            "KL": divergence,
            "PER_TOKEN": per_token,
            "VECTOR": pick_vector(width),
            "BLOCK": block,
        }
        rows.append(
            Row(
                name=name,
                kernel=policy_loss_fwd_kernel,
                signature={
                    **dict.fromkeys(("logp", "old", "ref"), f"*{dtype}"),
                    **dict.fromkeys(("advantages", "mask", "gradient", "partials"), "*fp32"),
                    **dict.fromkeys(("vectors", "blocks", "programs"), "i32"),
                    **dict.fromkeys(("lowest", "highest", "dual", "kl_coef"), "fp32"),
                },
                constexprs=constexprs,
                num_warps=warps,
                registers=REGISTERS,
                even=width % 8 == 0,
                loads=(4 * block, moved, moved, *([4 * block] if per_token else []), *([moved] if divergence else [])),
                stores=(4 * block,),
                fp_fusion=True,
            )
        )
    return rows
