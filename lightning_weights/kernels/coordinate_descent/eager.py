"""Coordinate descent without Triton: all paths side by side, one coordinate after the other, with leaps in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_weights.kernels.coordinate_descent.leaps import Standing, leap
from lightning_weights.kernels.coordinate_descent.reference import Solutions, duality_gap

BLOCK = 16  # coordinates whose slopes are kept up to date one by one; blocks get them from a product
CALM = 4  # sweeps without a change of sign before a leap is tried


@dataclass
class Task:
    """Arguments of the operator."""

    gram: Tensor
    moments: Tensor
    path_gram: Tensor
    l1: Tensor
    l2: Tensor
    power: Tensor
    starts: Tensor | None
    tolerance: float
    max_sweeps: int


@torch.no_grad()
def solve_side_by_side(
    gram: Tensor,
    moments: Tensor,
    path_gram: Tensor,
    l1: Tensor,
    l2: Tensor,
    target_power: Tensor,
    starts: Tensor | None,
    tolerance: float,
    max_sweeps: int,
) -> Solutions:
    """Solve all problems; arguments and results as those of the registered operator."""
    task = Task(gram, moments, path_gram, l1, l2, target_power, starts, tolerance, max_sweeps)
    solutions = gram.new_zeros(*l1.shape, gram.shape[1]), torch.zeros_like(l1, dtype=torch.int64), torch.zeros_like(l1)
    if l1.numel() == 0:
        return solutions
    cells = Cells(task, solutions, torch.arange(len(l1), device=l1.device))
    cells.begin(cells.live.nonzero().flatten())
    while left := int(cells.live.sum()):
        if 2 * left <= len(cells.live):
            cells = cells.without_the_done()
        for _ in range(CALM):
            cells.sweep()
        cells.leap()
    return solutions


class Cells:
    """Problems side by side, as columns of (p, cells): paths of one Gram matrix are neighbours, of each as many."""

    def __init__(self, task: Task, solutions: Solutions, paths: Tensor) -> None:
        self.task, self.solutions = task, solutions
        place, self.live, folds = _arrange(task.path_gram[paths])
        self.path = paths[place]
        size, cells = task.gram.shape[1], len(place)
        self.gram = task.gram[folds]
        self.fold = torch.arange(len(folds), device=folds.device).repeat_interleave(cells // len(folds))
        self.moments = task.moments[folds].T[:, self.fold].contiguous()
        self.diagonal = self.gram.diagonal(dim1=1, dim2=2).T[:, self.fold]
        self.power = task.power[folds][self.fold]
        self.weights, self.moved, self.inverse = (self.gram.new_zeros(size, cells) for _ in range(3))
        if task.starts is not None:
            self.weights.copy_(task.starts[self.path].T)
        self.signs = self.weights.sign()
        self.step, self.count, self.calm = (torch.zeros_like(self.path) for _ in range(3))
        self.l1, self.l2 = task.l1[self.path, 0], task.l2[self.path, 0]
        self._cut()

    def _cut(self) -> None:
        """Prepare the views that a sweep goes through."""
        size, shape = len(self.weights), (len(self.gram), -1)
        self.columns = self.weights.view(size, *shape).transpose(0, 1)
        others = self.gram - torch.diag_embed(self.gram.diagonal(dim1=1, dim2=2))
        self.blocks = []
        for start in range(0, size, BLOCK):
            block = slice(start, start + BLOCK)
            rest, back = torch.empty_like(self.weights[block]), torch.empty_like(self.weights[block])
            near = self.gram[:, block, block].permute(2, 1, 0)
            later = [(rest[i + 1 :], near[i, i + 1 :][:, self.fold]) for i in range(len(rest))]
            rows = list(zip(rest, back, self.inverse[block], self.moved[block], later, strict=True))
            views = [tensor.view(len(rest), *shape) for tensor in (self.moments[block], rest)]
            ends = self.weights[block], self.moved[block], back
            self.blocks.append((others[:, block], views, ends, rows))

    def without_the_done(self) -> Cells:
        """Return the paths that go on, in a table of their own."""
        at = self.live.nonzero().flatten()
        rest = Cells(self.task, self.solutions, self.path[at])
        old = torch.zeros(len(self.task.l1), dtype=torch.int64, device=at.device).index_put_((self.path[at],), at)
        for name in ("weights", "moved", "inverse", "signs", "step", "count", "calm", "l1", "l2"):
            getattr(rest, name).copy_(getattr(self, name)[..., old[rest.path]])
        return rest

    def sweep(self) -> None:
        """Change every coordinate of all problems once, and see who is done."""
        lowest, buffer = -self.l1, torch.empty_like(self.l1)
        for others, (moments, target), (weights, block_moved, back), rows in self.blocks:
            torch.sub(moments, (others @ self.columns).transpose(0, 1), out=target)
            torch.neg(weights, out=back)
            for own, before, inverse, moved, (later, neighbours) in rows:
                torch.clamp(own, lowest, self.l1, out=buffer)
                torch.sub(own, buffer, out=buffer)
                torch.addcmul(before, buffer, inverse, out=moved)
                later.addcmul_(neighbours, moved, value=-1.0)
            weights.add_(block_moved)
        signs = self.weights.sign()
        self.calm = (self.calm + 1).mul_((signs == self.signs).all(dim=0))
        self.signs, self.count = signs, self.count + 1
        small = self.moved.abs().amax(dim=0) <= self.task.tolerance * self.weights.abs().amax(dim=0)
        last = self.count >= self.task.max_sweeps
        at = (self.live & (small | last)).nonzero().flatten()
        if len(at):
            self.begin(at[self.close(at, self.slopes(at), last[at])])

    def leap(self) -> None:
        """Leap over the sweeps of the problems whose signs have settled."""
        ready = self.live & (self.calm >= CALM) & (self.count < self.task.max_sweeps - 1)
        at = ready.nonzero().flatten()
        if len(at) == 0:
            return
        standing = Standing(
            fold=self.fold[at],
            weights=self.weights[:, at].T,
            moved=self.moved[:, at].T,
            moments=self.moments[:, at].T,
            slopes=self.slopes(at).T,
            kept=self.inverse[:, at].T > 0.0,
            l1=self.l1[at],
            l2=self.l2[at],
            power=self.power[at],
            limit=self.task.max_sweeps - 1 - self.count[at],
        )
        shift, taken = leap(self.gram, standing, self.task.tolerance)
        self.weights[:, at] += shift.T
        self.count[at] += taken

    def slopes(self, at: Tensor) -> Tensor:
        """Return m - G w of some cells."""
        return (self.moments - (self.gram @ self.columns).transpose(0, 1).reshape(self.moments.shape))[:, at]

    def close(self, at: Tensor, slopes: Tensor, last: Tensor | None) -> Tensor:
        """End problems that are solved, or out of sweeps, and screen the others; return which of them ended."""
        weights, l1, l2 = self.weights[:, at], self.l1[at], self.l2[at]
        gap, largest = duality_gap(weights, slopes, self.moments[:, at], l1, l2, self.power[at])
        solved = gap <= self.task.tolerance * self.power[at]
        if last is None:  # nothing was swept, yet
            solved &= gap >= 0.0
        reach = (slopes - l2 * weights).abs_() / torch.maximum(l1, largest)
        far = reach.neg_().add_(1.0) / (self.diagonal[:, at] + l2).sqrt_() > (2.0 * gap.abs()).sqrt_() / l1
        keep = ~far | solved
        self.weights[:, at] = weights * keep
        self.inverse[:, at] *= keep
        over = solved if last is None else solved | last
        done = at[over]
        path, step = self.path[done], self.step[done]
        for results, found in zip(self.solutions, (self.weights[:, done].T, self.count[done], gap[over]), strict=True):
            results[path, step] = found
        self.step[done] += 1
        self.live[done] = self.step[done] < self.task.l1.shape[1]
        return over

    def begin(self, at: Tensor) -> None:
        """Begin the next problems of some cells, again and again if they are solved without a sweep."""
        at = at[self.live[at]]
        while len(at):
            path, step = self.path[at], self.step[at]
            self.l1[at], self.l2[at] = self.task.l1[path, step], self.task.l2[path, step]
            self.count[at], self.calm[at] = 0, 0
            diagonal = self.diagonal[:, at]
            self.inverse[:, at] = torch.where(diagonal > 0.0, 1.0 / (diagonal + self.l2[at]), 0.0)
            at = at[self.close(at, self.slopes(at), None)]
            at = at[self.live[at]]


def _arrange(path_gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the path of every cell, whether it counts, and the Gram matrices; all have as many cells."""
    folds, place, counts = path_gram.unique(return_inverse=True, return_counts=True)
    order, width = place.argsort(stable=True), int(counts.max())
    first = counts.cumsum(0) - counts
    path = order[first].repeat_interleave(width)  # what is left over repeats a path
    live = torch.zeros_like(path, dtype=torch.bool)
    cell = place[order] * width + torch.arange(len(order), device=order.device) - first[place[order]]
    path[cell], live[cell] = order, True
    return path, live, folds
