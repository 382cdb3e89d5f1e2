"""Blocks of columns, and an oracle in numpy that goes row by row."""

import numpy as np
import torch

SETTINGS = {
    "gptq": {},
    "gptq, clipped groups": {"search": 4, "clip": True},
    "gptaq": {"pairs": 2, "outer": "quantized", "search": 4},
    "rescomp": {"pairs": 2, "cae": 0.25, "blend": 1.0, "outer": "clamped", "search": 4},
    "rescomp, unequal": {"pairs": 2, "cae": 0.25, "blend": 0.5, "outer": "clamped", "block_last": True, "search": 4},
    "rescomp at 2 bits": {"cae": 0.25, "bits": 2, "outer": "quantized", "search": 8, "start": 4},
    "foem": {"cae": 0.1, "pull": 0.1, "outer": "leftover", "search": 8},
    "foem and gptaq": {"pairs": 2, "cae": 0.2, "pull": 0.2, "outer": "leftover", "search": 4},
    "foem, all": {"cae": 0.2, "pull": 0.2, "pull_all": True, "outer": "leftover"},
}
GRIDS = ("asymmetric", "quarot", "gptq")


def inputs(block, rows, *, pairs=1, search=0, start=0, bits=3, grid="asymmetric", dtype=torch.float32, beyond=0):
    """Tensors of the operator, in its order; groups are those of the search, or two."""
    generator = torch.Generator().manual_seed(block * 1000 + rows)
    weight, original = (torch.randn(block + beyond, rows, generator=generator, dtype=torch.float64) for _ in range(2))
    original = weight[:block] + 0.1 * original[:block]
    coefficients = 0.3 * torch.randn(block, pairs, block, generator=generator, dtype=torch.float64)
    diagonal = torch.rand(block, generator=generator, dtype=torch.float64) + 0.5
    size = search or max(1, block // 2)
    groups = (torch.arange(start, start + block) // size).to(torch.int32)
    count = int(groups[-1]) + 1 if block else 1
    scale = torch.rand(count, rows, generator=generator, dtype=torch.float64) * 0.3 + 0.3
    zero = torch.full_like(scale, 2 ** (bits - 1))
    if grid == "asymmetric":
        zero = torch.randint(0, 2**bits, zero.shape, generator=generator).to(torch.float64)
    tensors = (weight, original, coefficients, diagonal, scale, zero)
    return [*(tensor.to(dtype) for tensor in tensors), groups]


def options(settings, grid):
    """Split a row of `SETTINGS` into what makes the inputs and what the operator is told."""
    told = {"bits": 3, "grid": grid, **settings}
    pairs = told.pop("pairs", 1)
    made = {"pairs": pairs, "grid": grid, **{key: told[key] for key in ("search", "start", "bits") if key in told}}
    return made, told


def oracle(
    weight, original, coefficients, diagonal, scale, zero, groups, *, bits, grid, clip=False, search=0, start=0,
    cae=0.0, blend=0.0, pull=0.0, pull_all=False, outer="current", block_last=False,
):  # fmt: skip
    """Codes, pushed values and losses in float64, one row and one column after the other; scales are changed."""
    w_all, w0, table, d = (np.asarray(t, dtype=np.float64) for t in (weight, original, coefficients, diagonal))
    s_all, z_all = scale.numpy(), zero.numpy()
    block, pairs, rows, top = len(d), table.shape[1], w_all.shape[1], 2**bits - 1
    codes, pushed, loss = np.zeros((block, rows)), np.zeros((block, pairs, rows)), np.zeros(rows)
    for row in range(rows):
        for first in range(block):
            if search and (start + first) % search == 0:
                group = (start + first) // search
                values = w_all[first : first + search, row]
                s_all[group, row], z_all[group, row] = best_grid(values, bits, grid, clip)
        w = w_all[:block, row].copy()
        for q in range(block):
            s, z = s_all[int(groups[q]), row], z_all[int(groups[q]), row]
            code = np.clip(np.round(w[q] / s) + z, 0, top)
            near, here = s * (code - z), w[q]
            inner = (here - near - cae * (here - w0[q, row]), here + blend * (w0[q, row] - here))
            for j in range(q + 1, block):
                w[j] += sum(inner[k] * table[q, k, j] for k in range(pairs))
                if pull_all or j == q + 1:
                    w[j] -= pull * (w[j] - w0[j, row])
            last = int(groups[-1]) if block_last else int(groups[q])
            low, high = -z_all[last, row] * s_all[last, row], (top - z_all[last, row]) * s_all[last, row]
            told = {"quantized": near, "clamped": np.clip(here, low, high)}.get(outer, here)
            value = here - inner[0] if outer == "leftover" else told + blend * (w0[q, row] - told)
            pushed[q, :, row] = (here - near - cae * (told - w0[q, row]), value)[:pairs]
            codes[q, row] = code
            loss[row] += (inner[0] / d[q]) ** 2 / 2
    return codes, pushed, loss


def best_grid(values, bits, grid, clip):
    """Scale and zero point of one row of one group."""
    best = None
    for step in range(80 if clip else 1):
        low, high = min(values.min(), 0.0) * (1 - step / 100), max(values.max(), 0.0) * (1 - step / 100)
        if grid == "quarot":
            s, z = max(-low, high, 1e-5 * (1 - step / 100)) / (2 ** (bits - 1) - 1), 2.0 ** (bits - 1)
        elif grid == "gptq":
            s, z = 2 * (max(-low, high) or 1.0) / (2**bits - 1), 2.0 ** (bits - 1)
        else:
            if low == high == 0.0:
                low, high = -1.0 + step / 100, 1.0 - step / 100
            s = (high - low) / (2**bits - 1)
            z = np.round(-low / s)
        found = s * (np.clip(np.round(values / s) + z, 0, 2**bits - 1) - z)
        error = (np.abs(found - values) ** 2.4).sum()
        if best is None or error < best[0]:
            best = error, s, z
    return best[1:]
