"""Answers of a network that is equivariant only roughly, averaged over rotations of the question."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_weights.functional.ponita import random_rotations
from lightning_weights.functional.rotated import rotated
from lightning_weights.modules.ponita import GraphInputs, PonitaOutput

ROTATION_SEED = 0  # the same rotations for every batch: an answer does not depend on what else is asked


def averaged_over_rotations(
    respond: Callable[[GraphInputs], PonitaOutput], inputs: GraphInputs, count: int
) -> PonitaOutput:
    """Return the mean of answers to rotated copies, vectors turned back.

    Args:
        respond: Answers with scalars and vectors, or ``None`` for one of them.
        inputs: The graphs.
        count: Number of rotations, drawn with a seed of their own; with 0 there is one answer, to the graphs as given.
    """
    if count == 0:
        return respond(inputs)
    pos, vectors = inputs.pos, inputs.vectors
    rotations = random_rotations(count, pos.shape[-1], generator=torch.Generator().manual_seed(ROTATION_SEED))
    answers = []
    for rotation in rotations:
        turned = None if vectors is None else rotated(vectors, rotation)
        answer = respond(inputs._replace(pos=rotated(pos, rotation), vectors=turned))
        back = None if answer.vectors is None else rotated(answer.vectors, rotation.mT)
        answers.append((answer.scalars, back))
    return PonitaOutput(*map(_mean, zip(*answers, strict=True)))


def _mean(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if parts[0] is None else torch.stack(parts).mean(0)
