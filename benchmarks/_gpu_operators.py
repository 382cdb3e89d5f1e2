"""The operators that `gpu.py` times, on tensors far larger than a GPU's caches, and what each has to move."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.kernels import Cost
from lightning_weights.kernels.apply_signature import apply_signature
from lightning_weights.kernels.apply_signature import cost as signature_costs
from lightning_weights.kernels.block_affine import block_affine
from lightning_weights.kernels.block_affine import cost as block_costs
from lightning_weights.kernels.classp_step import classp_step
from lightning_weights.kernels.classp_step import cost as classp_costs
from lightning_weights.kernels.compand import compand
from lightning_weights.kernels.compand import cost as compand_costs
from lightning_weights.kernels.coordinate_descent import coordinate_descent
from lightning_weights.kernels.distillation_loss import cost as distillation_costs
from lightning_weights.kernels.distillation_loss import distillation_loss
from lightning_weights.kernels.fiber_conv import cost as fiber_costs
from lightning_weights.kernels.fiber_conv import fiber_conv, sort_edges
from lightning_weights.kernels.gradient_gram import cost as gram_costs
from lightning_weights.kernels.gradient_gram import gradient_gram
from lightning_weights.kernels.interval_affine import cost as interval_costs
from lightning_weights.kernels.interval_affine import interval_affine
from lightning_weights.kernels.mix_templates import cost as mix_costs
from lightning_weights.kernels.mix_templates import mix_templates
from lightning_weights.kernels.nowcast import cost as nowcast_costs
from lightning_weights.kernels.nowcast import nowcast, parameter_count
from lightning_weights.kernels.per_sample_lora import cost as lora_costs
from lightning_weights.kernels.per_sample_lora import per_sample_lora
from lightning_weights.kernels.policy_loss import cost as policy_costs
from lightning_weights.kernels.policy_loss import policy_loss
from lightning_weights.kernels.projected_adam import cost as projected_costs
from lightning_weights.kernels.projected_adam import projected_adam
from lightning_weights.kernels.pulse_update import PulseRule, Response, pulse_update
from lightning_weights.kernels.pulse_update import cost as pulse_costs
from lightning_weights.kernels.sparse_adamw import cost as sparse_costs
from lightning_weights.kernels.sparse_adamw import sparse_adamw
from lightning_weights.kernels.statsq import cost as statsq_costs
from lightning_weights.kernels.statsq import statsq
from lightning_weights.kernels.transformed_l1 import cost as tl1_costs
from lightning_weights.kernels.transformed_l1 import transformed_l1
from lightning_weights.kernels.weight_norm_rows import cost as norm_costs
from lightning_weights.kernels.weight_norm_rows import weight_norm_rows
from lightning_weights.kernels.weighted_cross_entropy import cost as entropy_costs
from lightning_weights.kernels.weighted_cross_entropy import weighted_cross_entropy

GPU = "cuda"
SIDE, INNER = 16384, 4096  # of weights that are streamed, and of those that are multiplied


class Work(NamedTuple):
    """A call, and what it has to move; without the latter only times are compared."""

    run: Callable[[], object]
    moved: tuple[Cost, ...] = ()


def random(*shape: int, grad: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers on the GPU."""
    return torch.randn(*shape, device=GPU, dtype=dtype).requires_grad_(grad)


def there_and_back(function: Callable[..., Tensor], *leaves: Tensor, like: tuple[int, ...]) -> Callable[[], object]:
    """Return a call that computes a result and its gradients."""
    upstream = random(*like, dtype=leaves[0].dtype)
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)


def steps() -> dict[str, Work]:
    """Return the optimizers' operators."""
    n, few = SIDE * SIDE, SIDE * SIDE // 20
    w, g, m = ([random(SIDE, SIDE).abs_()] for _ in range(3))
    counts = torch.zeros(4, dtype=torch.int64, device=GPU)
    chosen = torch.randperm(n, device=GPU)[:few].sort().values.int()
    first, second, rule = random(few), random(few).abs_(), {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    basis = torch.linalg.qr(random(SIDE, 32))[0].T.contiguous()
    low, lows = [random(SIDE, 32)], [random(SIDE, 32).abs_()]
    states = [torch.rand(SIDE, SIDE, device=GPU) for _ in range(2)]
    soft = {"response": Response("soft", nu_up=2.0, nu_down=2.0), "mode": "rising", "rule": PulseRule()}
    return {
        "classp_step": Work(
            lambda: classp_step(w, g, m, counts[:2], lr=1e-4, threshold=0.1, power=1.0, eps=1e-5),
            (classp_costs.cost([n]),),
        ),
        "sparse_adamw, 5 %": Work(
            lambda: sparse_adamw(w, [chosen], g, [first], [second], [1e-4], **rule), (sparse_costs.cost([few]),)
        ),
        "projected_adam, rank 32": Work(
            lambda: projected_adam(w, g, low, lows, rights=[basis], step_sizes=[1e-4], **rule),
            (projected_costs.cost(SIDE, SIDE, 32),),
        ),
        "pulse_update": Work(
            lambda: pulse_update(w[0], g[0], states, counts, gain=-1.0, w_scale=1.0, **soft), (pulse_costs.cost(n),)
        ),
    }


def weights() -> dict[str, Work]:
    """Return the operators on one weight."""
    square, w = (SIDE, SIDE), random(SIDE, SIDE, grad=True)
    half, block = random(SIDE, SIDE, grad=True, dtype=torch.bfloat16), random(SIDE // 64, 1, 64, 64)
    a, b = (torch.rand(SIDE, device=GPU).add_(0.5).requires_grad_() for _ in range(2))
    keep = torch.rand(SIDE, device=GPU).requires_grad_()
    i, j, known = random(SIDE, 64), random(64, SIDE), torch.rand(SIDE, device=GPU) * SIDE
    sets = [random(2, SIDE // 2, SIDE // 2, grad=True) for _ in range(2)]
    codes = [[torch.randint(256, (SIDE * SIDE // 2,), device=GPU, dtype=torch.uint8)] for _ in range(3)]
    patch = torch.empty(square, device=GPU), codes, torch.zeros(3, 1, device=GPU), torch.ones(3, 1, device=GPU)
    mixed = there_and_back(
        lambda *t: mix_templates(t[:2], t[2], (0, 1, 0, 1), 2), *sets, random(4, 2, grad=True), like=square
    )
    both = {"itemsize": 2}
    return {
        "block_affine, bf16": Work(
            there_and_back(block_affine, half, block.requires_grad_(), like=square),
            tuple(block_costs.cost(*square, 64, (SIDE // 64, 1), **both, backward=back) for back in (False, True)),
        ),
        "compand": Work(
            there_and_back(compand, w, a, b, like=square),
            (compand_costs.cost(*square), compand_costs.cost(*square, backward=True, sums=True)),
        ),
        "transformed_l1": Work(
            there_and_back(lambda *t: transformed_l1(*t, precision=1e-3, l0=1e-4, a=1.0), w, keep, like=(SIDE,)),
            (tl1_costs.cost(*square), tl1_costs.cost(*square, backward=True)),
        ),
        "apply_signature, 3 of 4 bits": Work(
            lambda: apply_signature([patch[0]], [w.detach()], *patch[1:], scales=[0.5] * 3, bits=[4] * 3),
            (signature_costs.cost([SIDE * SIDE], [4] * 3),),
        ),
        "statsq": Work(lambda: statsq(w.detach(), 4), (statsq_costs.cost(*square),)),
        "weight_norm_rows, rank 64": Work(
            lambda: weight_norm_rows(w.detach(), i, j, scale=2.0, weight_norm_sq=known),
            (norm_costs.cost(*square, 64),),
        ),
        "mix_templates": Work(
            mixed,
            (
                mix_costs.cost(SIDE // 2, SIDE // 2, 2),
                mix_costs.cost(SIDE // 2, SIDE // 2, 2, backward=True, sums=True),
            ),
        ),
    }


def activations() -> dict[str, Work]:
    """Return the operators on a batch."""
    rows, words = INNER, 12 * INNER
    student, teacher = (random(rows, words, dtype=torch.bfloat16) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(words, (rows,), device=GPU)
    centre, radius, weight = random(512, INNER, grad=True), random(512, INNER).abs_(), random(INNER, INNER, grad=True)
    scale, shift = random(INNER), random(INNER)

    def intervals() -> object:
        found = interval_affine(centre, radius, weight, scale=scale, shift=shift, relu=True)
        return torch.autograd.grad(found.center.sum() + found.radius.sum(), (centre, weight))

    features, own = random(33, INNER, 64), torch.arange(231, device=GPU) // 7
    grams, l1 = features.mT @ features / INNER, torch.full((231, 1), 1e-3, device=GPU)

    def sweeps() -> object:
        moments, power = grams[:, 0].contiguous(), torch.ones(33, device=GPU)
        return coordinate_descent(grams, moments, own, l1, l1, power, tolerance=0.0, max_sweeps=100)

    graphs, points, orientations, channels, basis = 16, 20, 16, 128, 256
    ends = torch.arange(graphs * points, device=GPU).view(graphs, points)
    senders, receivers = (
        ends[:, None, :].expand(-1, points, -1).flatten(),
        ends[:, :, None].expand(-1, -1, points).flatten(),
    )
    edges, nodes = sort_edges(torch.stack([senders, receivers]), graphs * points), graphs * points
    shapes = ((nodes, orientations, channels), (nodes * points, orientations, basis), (channels, basis))
    leaves = [random(*shape, grad=True) for shape in (*shapes, (orientations, orientations, channels), (channels,))]
    history, known = random(INNER * INNER, 5), random(parameter_count(5)).mul_(0.1)
    return {
        "distillation_loss, bf16": Work(
            lambda: torch.autograd.grad(distillation_loss(student, teacher, labels, weight=0.5), student),
            distillation_costs.cost(rows, words, words, itemsize=2, teacher_itemsize=2),
        ),
        "interval_affine": Work(intervals, (interval_costs.cost(512, INNER, INNER, bias=False),)),
        "fiber_conv": Work(
            there_and_back(lambda *t: fiber_conv(*t, edges=edges), *leaves, like=shapes[0]),
            fiber_costs.cost(nodes, nodes * points, orientations, channels, basis),
        ),
        "coordinate_descent, 100 sweeps": Work(sweeps),
        "nowcast, 3 times": Work(lambda: nowcast(history, known, 3), (nowcast_costs.cost(INNER * INNER, 5, 3),)),
    }


def post_training() -> dict[str, Work]:
    """Return the operators for language models."""
    samples, tokens, words, r = 8, INNER // 8, 12 * INNER, 16
    logits = random(samples, tokens, words, grad=True, dtype=torch.bfloat16)
    labels, weight = torch.randint(words, (samples, tokens), device=GPU), torch.rand(samples, device=GPU)
    logp, old, reference = (-random(SIDE, INNER).abs_() for _ in range(3))
    logp.requires_grad_()
    advantages, mask = random(SIDE), torch.ones(SIDE, INNER, device=GPU)
    gradients = [[random(INNER, INNER) for _ in range(4)] for _ in range(3)]
    shapes = (samples, INNER, INNER), (samples, INNER, INNER), (samples, r, INNER), (samples, INNER, r)
    adapted = [random(*shape, dtype=torch.bfloat16) for shape in shapes]

    def policy() -> object:
        found = policy_loss(logp, old, advantages, mask, ref_logp=reference, kl_coef=0.1)
        return torch.autograd.grad(found.loss, logp)

    return {
        "weighted_cross_entropy, bf16": Work(
            lambda: torch.autograd.grad(weight @ weighted_cross_entropy(logits, labels), logits),
            entropy_costs.cost(samples * tokens, words),
        ),
        "policy_loss": Work(policy, (policy_costs.cost(SIDE, INNER),)),
        "gradient_gram, 3 gradients": Work(
            lambda: gradient_gram(gradients), (gram_costs.cost([INNER * INNER] * 4, len(gradients)),)
        ),
        "per_sample_lora, bf16": Work(
            lambda: per_sample_lora(*adapted, 1.0),
            (lora_costs.cost(samples, INNER, INNER, INNER, r, itemsize=2),),
        ),
    }
