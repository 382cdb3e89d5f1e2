"""Many sweeps at once: while no weight changes its sign, a sweep is an affine map, whose powers are products.

With signs s and the matrix H = G + λ₂ I of the weights that are not zero, split into lower triangle with diagonal and
upper rest, H = L + U, a sweep moves the weights by M = -L⁻¹U times what the sweep before it moved them by. Vectors are
rows: (problems, vectors, weights).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.kernels.coordinate_descent.reference import duality_gap

PROBLEMS = 64  # of a chunk, whose powers stay in the cache
VECTORS = 16  # of a block: as many points on the way are looked at together
FINE, COARSE = 2, 6  # one point every 4 sweeps, and every 64 when that went well for a while
FINE_BLOCKS = 4
NOISE = 1e-6  # of movements and slopes, which are in single precision; it ends leaps early rather than late


class Standing(NamedTuple):
    """Where problems stand after a sweep that changed no sign: one row per problem.

    Attributes:
        fold: Which Gram matrix each has.
        weights: w, (problems, p).
        moved: By how much the last sweep moved them, likewise.
        moments: m, likewise.
        slopes: m - G w, likewise.
        kept: Which coordinates are not screened, likewise.
        l1: λ₁.
        l2: λ₂.
        power: Mean square of the target.
        limit: Most sweeps to leap over.
    """

    fold: Tensor
    weights: Tensor
    moved: Tensor
    moments: Tensor
    slopes: Tensor
    kept: Tensor
    l1: Tensor
    l2: Tensor
    power: Tensor
    limit: Tensor

    def of(self, chosen: Tensor) -> Standing:
        """Return some of the problems."""
        return Standing(*(tensor[chosen] for tensor in self))


def leap(gram: Tensor, standing: Standing, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return by how much sweeps would move the weights, and over how many of them that is.

    Args:
        gram: G, (F, p, p).
        standing: The problems.
        tolerance: Of the stopping rule.

    Returns:
        Movement, (problems, p), and number of sweeps; it ends before a sign changes and before the rule says stop.
    """
    gram = gram.float()
    shift, taken = torch.zeros_like(standing.weights), torch.zeros_like(standing.limit)
    for chosen in (standing.weights != 0.0).sum(dim=1).argsort().split(PROBLEMS):
        stretch = Stretch(gram, standing.of(chosen), tolerance)
        stretch.run()
        shift[chosen] = stretch.spread(stretch.here[:, :, :-1])[:, 0].to(shift.dtype)
        taken[chosen] = stretch.taken
    return shift, taken


class Stretch:
    """Problems on the way through sweeps that keep all signs."""

    def __init__(self, gram: Tensor, standing: Standing, tolerance: float) -> None:
        self.standing, self.tolerance = standing, tolerance
        active = standing.weights != 0.0
        count = active.sum(dim=1, keepdim=True)
        width = max(1, int(count.max()))
        self.order = (~active).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        self.real = torch.arange(width, device=count.device) < count
        rows = gram[standing.fold[:, None], self.order]
        self.rows = rows.mul_(self.real[:, :, None])
        self.start = standing.weights.gather(1, self.order).masked_fill(~self.real, 1.0).float()
        self.powers = [self._sweep(standing.moved.gather(1, self.order).float())]
        resting = (~active) & standing.kept
        self.outlook = self._outlook(resting / standing.l1[:, None])
        self.back = self.real / -self.start
        self.here = torch.zeros_like(self.powers[0][:, :1])
        self.here[:, :, -1] = 1.0
        self.taken = torch.zeros_like(standing.limit)

    def _sweep(self, moved: Tensor) -> Tensor:
        """Return the map of one sweep for rows of movements, ending in 1."""
        width = self.order.shape[1]
        h = self.rows.gather(2, self.order[:, None, :].expand(-1, width, -1)) * self.real[:, None, :]
        h.diagonal(dim1=1, dim2=2).add_(torch.where(self.real, self.standing.l2[:, None], 1.0))
        once: Tensor = torch.linalg.solve_triangular(h.triu(), h.tril(-1), upper=True, left=False).neg_()
        whole = once.new_zeros(len(once), width + 1, width + 1)
        whole[:, :width, :width] = once
        whole[:, width:, :width] = (moved * self.real)[:, None, :] @ once
        whole[:, width, width] = 1.0
        return whole

    def _outlook(self, scale: Tensor) -> Tensor:
        """Return the map to what the next sweep finds at the coordinates that are zero, when it is their turn.

        In multiples of l1: what is above 1 lets go of zero. What is not zero, or screened, is given as 0.
        """
        before = self.order[:, :, None] < torch.arange(self.rows.shape[2], device=self.order.device)
        earlier = self.rows * before
        outlook = torch.cat([earlier - self.rows, self.standing.slopes[:, None].float()], dim=1)
        return outlook.baddbmm_(self.powers[0][:, :, :-1], earlier, alpha=-1.0).mul_(scale[:, None].float())

    def power(self, k: int) -> Tensor:
        """Return the map of 2ᵏ sweeps."""
        while len(self.powers) <= k:
            self.powers.append(self.powers[-1] @ self.powers[-1])
        return self.powers[k]

    def run(self) -> None:
        """Go as far as possible; where small steps turn out to be too many, look at the stopping rule in between."""
        start = self.here
        self.go(watch=False)
        late = (self.over(self.here)[:, 0] & (self.taken > 0)).nonzero().flatten()
        if len(late):
            again = self.some(late)
            again.here, again.taken = start[late], torch.zeros_like(late)
            again.go(watch=True)
            self.here[late], self.taken[late] = again.here, again.taken

    def go(self, watch: bool) -> None:
        """Go on in small steps, in large ones where many small ones went well, and in single sweeps at the end."""
        further = self.climb(FINE, FINE_BLOCKS, watch).nonzero().flatten()
        if len(further):
            self.power(FINE + 4)
            rest = self.some(further)
            rest.climb(COARSE, 1 << 20, watch=True)
            rest.climb(FINE, 1, watch)
            self.here[further], self.taken[further] = rest.here, rest.taken
        self.climb(0, 1, watch, 2**FINE - 1)

    def some(self, chosen: Tensor, powers: int | None = None) -> Stretch:
        """Return some of the problems, with as many of the powers."""
        other = object.__new__(Stretch)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = value[chosen]
            elif isinstance(value, Standing):
                value = value.of(chosen)
            elif isinstance(value, list):
                value = [tensor[chosen] for tensor in value[:powers]]
            setattr(other, name, value)
        return other

    def climb(self, k: int, blocks: int, watch: bool, vectors: int = VECTORS) -> Tensor:
        """Go on by points 2ᵏ sweeps apart; return who could go through all blocks."""
        block = self.here @ self.power(k)
        for doubling in range(4):
            block = torch.cat([block, block @ self.power(k + doubling)], dim=1)[:, :vectors]
            if block.shape[1] == vectors:
                break
        steps = torch.arange(1, vectors + 1, device=block.device) << k
        goes_on = torch.ones_like(self.taken, dtype=torch.bool)
        for number in range(blocks):
            if number:
                block = block @ self.power(k + 4)
            good = self.good(block, self.taken[:, None] + steps, watch) * goes_on
            at = (good - 1).clamp_(min=0)[:, None, None].expand(-1, 1, block.shape[2])
            self.here = torch.where((good > 0)[:, None, None], block.gather(1, at), self.here)
            self.taken += good << k
            goes_on &= good == vectors
            if not bool(goes_on.any()):
                break
        return goes_on

    def good(self, block: Tensor, steps: Tensor, watch: bool) -> Tensor:
        """Return how many points come before a sign changes, the limit, or, if watched, the stopping rule's end."""
        turned = (block[:, :, :-1] * self.back[:, None, :]).amax(dim=2)
        released = (block @ self.outlook).abs_().amax(dim=2)
        fine = (turned < 1.0) & (released <= 1.0)
        fine &= steps <= self.standing.limit[:, None]
        good = fine.cumprod(dim=1).sum(dim=1)
        if not watch:
            return good
        at = (good - 1).clamp(min=0)[:, None, None].expand(-1, 1, block.shape[2])
        late = (self.over(block.gather(1, at))[:, 0] & (good > 0)).nonzero().flatten()
        if len(late):
            before = ~self.some(late, powers=1).over(block[late])
            good[late] = torch.minimum(good[late] - 1, before.cumprod(dim=1).sum(dim=1))
        return good

    def over(self, block: Tensor) -> Tensor:
        """Say of every point whether the stopping rule would hold."""
        moved, some = block[:, :, :-1], self.standing
        step = ((block @ self.powers[0])[:, :, :-1] - moved).abs_().amax(dim=2)
        largest = ((self.start * self.real)[:, None, :] + moved).abs_().amax(dim=2)
        near = step <= self.tolerance * largest + NOISE * moved.abs().amax(dim=2)
        if bool(near.any()):
            weights = some.weights[:, None, :] + self.spread(moved).to(some.weights.dtype)
            change = (moved @ self.rows).to(some.slopes.dtype)
            slopes, noise = some.slopes[:, None, :] - change, NOISE * change.abs().amax(dim=2)
            columns = [tensor.permute(2, 0, 1) for tensor in (weights, slopes, some.moments[:, None, :])]
            penalties = [tensor[:, None] for tensor in (some.l1, some.l2, some.power)]
            gap, _ = duality_gap(*columns, *penalties)
            near &= gap <= self.tolerance * penalties[2] + noise * weights.abs().sum(dim=2)
        return near

    def spread(self, moved: Tensor) -> Tensor:
        """Return movements of all coordinates, given those of the ones that are not zero."""
        whole = moved.new_zeros(*moved.shape[:2], self.standing.weights.shape[1])
        return whole.scatter_(2, self.order[:, None].expand_as(moved), moved * self.real[:, None])
