"""Subsets of a data set that lie inside each other."""

import math
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset

from lightning_weights.errors import check_number


def nested_size(samples: int, rate: float, session: int) -> int:
    r"""Return how many samples a session sees.

    $$|D_s| = \lfloor |D_0| \, r^s \rfloor$$

    Args:
        samples: Samples |D_0| of the whole data set.
        rate: Share r that each session keeps of the one before.
        session: Number s of the session, from 0.

    Examples:
        >>> [nested_size(1000, 0.5, session) for session in range(5)]
        [1000, 500, 250, 125, 62]
    """
    return math.floor(samples * rate**session)


class NestedSubset(Subset[Any]):
    """Serve the first samples of one fixed shuffle: every session a part of the one before.

    Samples keep their place from session to session, since D_{s+1} is the beginning of D_s; only the length changes.

    Args:
        dataset: A map-style data set D_0.
        rate: Share r ∈ (0, 1) that each session keeps of the one before.
        session: Number s of the session; 0 is the whole data set.
        seed: Seed of the shuffle, which nothing else enters.

    Raises:
        ValueError: If an argument is out of range, the data set can only be iterated, or no sample is left.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059.

    Examples:
        >>> whole, half = (NestedSubset(range(10), rate=0.5, session=session) for session in (0, 1))
        >>> len(whole), list(half) == list(whole)[:5]
        (10, True)
    """

    def __init__(self, dataset: Any, rate: float = 0.5, session: int = 0, seed: int = 0) -> None:
        check_number("rate", rate, low=0.0, high=1.0, low_allowed=False)
        check_number("session", session, low=0, whole=True)
        check_number("seed", seed, low=0, high=2**63, whole=True)
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise ValueError(
                f"dataset is a {type(dataset).__name__}, of which no fixed part can be taken: allowed is a map-style "
                f"data set, which has a length and gives a sample by its index"
            )
        size = nested_size(len(dataset), rate, session)
        if size == 0:
            raise ValueError(
                f"session {session} is empty: rate={rate} leaves none of the {len(dataset)} samples; give a larger "
                f"rate or fewer sessions"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(dataset), generator=generator, device="cpu")
        super().__init__(dataset, order[:size].tolist())
        self.rate = rate
        self.session = session
        self.seed = seed
