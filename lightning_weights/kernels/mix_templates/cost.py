"""Block size and memory traffic of mixing."""

from __future__ import annotations

from lightning_weights.kernels._op import Cost

PER_THREAD = 8  # elements: one 128-bit access in bf16, two in fp32
WARPS = 4


def pick_config(rows: int, columns: int, warp_size: int = 32) -> tuple[int, int, int]:
    """Choose the tile of a template that a program takes, and its warps.

    Every thread gets eight elements. A tile is one row wide, or as wide as the whole row where that is shorter, and
    has as many rows then as fill it.

    Args:
        rows: Output channels of a template.
        columns: Everything else of it: inputs times kernel.
        warp_size: Threads of a warp: 32, or 64 on AMD's data-centre GPUs.

    Returns:
        Rows and columns of a tile, both powers of two, and warps per program.

    Examples:
        >>> pick_config(64, 576), pick_config(64, 27), pick_config(1, 27)
        ((1, 1024, 4), (32, 32, 4), (1, 256, 1))
    """
    across = 1 << (columns - 1).bit_length()
    down = 1 << (rows - 1).bit_length()
    warps = WARPS
    while warps > 1 and warps // 2 * warp_size * PER_THREAD >= across * down:
        warps //= 2
    size = warps * warp_size * PER_THREAD
    across = max(PER_THREAD, min(across, size))
    down = min(down, size // across)
    return down, size // down, warps


def cost(
    rows: int,
    columns: int,
    templates: int,
    *,
    blocks: int = 4,
    sets: int = 2,
    itemsize: int = 4,
    weight_itemsize: int = 4,
    backward: bool = False,
    sums: bool = False,
) -> Cost:
    """Count what one call of the Triton kernel moves and computes.

    Args:
        rows: Output channels of a template.
        columns: Everything else of it: inputs times kernel.
        templates: K, templates of a set.
        blocks: Blocks of the weight.
        sets: Sets of templates.
        itemsize: Bytes per element of the templates.
        weight_itemsize: Bytes per element of the weight.
        backward: Whether it is the gradient.
        sums: Whether the gradients to coefficients are among it: a partial sum per program, block and template, which
            PyTorch adds.

    Returns:
        Bytes and operations: forward every template is read and every block written once; backward every block of the
        gradient is read, the gradient of every template written, and for the sums every template read, once.

    Examples:
        >>> cost(1000, 1000, 2).bytes_read, cost(1000, 1000, 2).bytes_written
        (16032000, 16000000)
    """
    down, across, _ = pick_config(rows, columns)
    programs = -(-rows // down) * -(-columns // across)
    count = rows * columns
    mixed, weight = sets * templates * count * itemsize, blocks * count * weight_itemsize
    factors = blocks * templates * 4
    operations = (2 * templates - 1) * blocks * count
    if not backward:
        return Cost(mixed + programs * factors, weight, operations)
    partial = programs * factors if sums else 0
    return Cost(
        weight + (mixed if sums else 0) + programs * factors + partial,
        mixed + partial + (factors if sums else 0),
        (2 * blocks - sets) * templates * count + (2 * blocks * templates * count if sums else 0),
    )


def cost_composition(rows: int, columns: int, templates: int, *, backward: bool = False) -> Cost:
    """Count what the plainest PyTorch moves: products, their sum, and two concatenations, and their gradients.

    Args:
        rows: Output channels of a template.
        columns: Everything else of it.
        templates: K, templates of a set; the weight has four blocks from two sets.
        backward: Whether it is the gradient, to templates and coefficients.

    Returns:
        Bytes and operations in fp32 of ``(a * T).sum(0)`` for each block, of ``hstack`` for each row of blocks and of
        one ``vstack``.

    Examples:
        >>> moved = cost_composition(1000, 1000, 2)
        >>> moved.bytes_read + moved.bytes_written
        176000000
    """
    block = 4 * rows * columns
    products = 4 * templates * block  # what the four blocks' products take
    if not backward:
        return Cost(2 * products + 8 * block, products + 12 * block, (2 * templates - 1) * rows * columns * 4)
    # A block's gradient is a view of the weight's. Its products with templates are written and summed; its products
    # with factors are the templates' gradients, of which each set has two, which are added.
    return Cost(3 * products + 8 * block, 5 * products // 2, 14 * templates * rows * columns)
