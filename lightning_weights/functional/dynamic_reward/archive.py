"""The front of what training has reached so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_weights.errors import check_number
from lightning_weights.functional.dynamic_reward.hypervolume import Point, dominates, gains, volume


class ParetoArchive:
    """Keep vectors of objectives that dominate a reference and enlarge the volume that is dominated.

    Args:
        reference: Vector that counts as nothing reached.
        maximize: Whether each objective is to be large; None: all of them.
        scale: Unit of each objective, by which its gains are divided; None: 1 each. Volumes are products of gains, so
            that an objective in tokens outweighs one between 0 and 1 without it.
        prune: Whether a vector goes when another one dominates it, which changes no volume.

    Raises:
        ValueError: If lengths differ, or a number is out of range.

    Examples:
        >>> archive = ParetoArchive(reference=[0.0, 9.0], maximize=[True, False], scale=[1.0, 9.0])
        >>> archive.add([0.5, 4.5]), archive.add([0.25, 6.0]), archive.add([1.0, 4.5])
        (0.25, 0.0, 0.25)
        >>> archive.points, archive.hypervolume()
        ([[1.0, 4.5]], 0.5)
    """

    def __init__(
        self,
        reference: Tensor | Sequence[float],
        maximize: Sequence[bool] | None = None,
        scale: Sequence[float] | None = None,
        prune: bool = True,
    ) -> None:
        self.reference = [float(value) for value in reference]
        self.maximize = [True] * len(self.reference) if maximize is None else [bool(value) for value in maximize]
        self.scale = [1.0] * len(self.reference) if scale is None else [float(value) for value in scale]
        if not len(self.reference) == len(self.maximize) == len(self.scale):
            raise ValueError(
                f"reference has {len(self.reference)} numbers, maximize {len(self.maximize)} and scale "
                f"{len(self.scale)}; allowed is one per objective"
            )
        for value in self.scale:
            check_number("scale", value, low=0.0, low_allowed=False)
        gains([], self.reference, self.maximize)
        self.prune = prune
        self.points: list[list[float]] = []
        self._volume = 0.0

    def add(self, point: Tensor | Sequence[float]) -> float:
        """Offer a vector, which is kept if it enlarges the dominated volume.

        Args:
            point: One number per objective.

        Returns:
            By how much the volume has grown, at least 0.

        Raises:
            ValueError: If there are more or fewer numbers, or one is not finite.
        """
        (offered,) = self._gains([point])
        known = self._gains(self.points)
        if min(offered) <= 0.0 or any(dominates(other, offered) for other in known):
            return 0.0
        # the new box without what others dominate of it: more exact than a difference of two whole volumes
        gain = max(volume([offered]) - volume([tuple(map(min, other, offered)) for other in known]), 0.0)
        if self.prune:
            kept = [place for place, other in enumerate(known) if not dominates(offered, other)]
            self.points, known = [self.points[place] for place in kept], [known[place] for place in kept]
        self.points.append([float(value) for value in point])
        self._volume = volume([*known, offered])
        return gain

    def hypervolume(self) -> float:
        """Return the volume that the vectors dominate, in units of ``scale``."""
        return self._volume

    def state_dict(self) -> dict[str, Any]:
        """Return the reference and the vectors, as plain lists."""
        return {"reference": list(self.reference), "points": [list(point) for point in self.points]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Args:
            state: The lists; objectives, their directions and units are those of the constructor.
        """
        self.reference, self.points = list(state["reference"]), [list(point) for point in state["points"]]
        self._volume = volume(self._gains(self.points))

    def _gains(self, points: Sequence[Tensor | Sequence[float]]) -> list[Point]:
        found = gains(points, self.reference, self.maximize)  # type: ignore[arg-type]
        return [tuple(gain / unit for gain, unit in zip(row, self.scale, strict=True)) for row in found]
