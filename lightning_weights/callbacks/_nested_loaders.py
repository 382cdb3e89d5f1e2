"""Training loaders of any make, on a part of their data."""

import copy
from collections.abc import Iterator
from typing import Any

from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from lightning_weights.data.nested_subset import NestedSubset, nested_size


def check_loaders(loaders: Any, rate: float, sessions: int, seed: int, processes: int, classes: int) -> list[int]:
    """Check that every session can train, and return the number of samples of every loader.

    Args:
        loaders: What ``train_dataloader`` gives: a loader, or several in lists, mappings or a CombinedLoader.
        rate: Share that each session keeps of the one before.
        sessions: Number of sessions.
        seed: Seed of the shuffle.
        processes: Number of processes that share the data.
        classes: Number of classes, 0 if it isn't known.

    Raises:
        ValueError: If a loader can't be put on a subset, or a session has too few samples.
    """
    on_subset(loaders, rate, 1, seed)  # finds what can't be taken apart now rather than after the first session
    sizes = []
    for loader in _leaves(loaders):
        whole = len(loader.dataset)
        batches = loader if loader.batch_sampler is None else loader.batch_sampler
        batch = (batches.batch_size or 1) * (processes if batches.drop_last else 1)
        for session in range(sessions):
            size = nested_size(whole, rate, session)
            few = f"a batch of {batch}" if size < batch else f"the {classes} classes"
            if size < max(batch, classes):
                raise ValueError(
                    f"session {session} is empty: rate={rate} leaves {size} of {whole} samples, fewer than {few}; give "
                    f"a larger rate, fewer sessions or smaller batches"
                )
        sizes.append(whole)
    return sizes


def on_subset(loaders: Any, rate: float, session: int, seed: int) -> Any:
    """Return loaders like those given, on the part of their data that belongs to a session.

    Everything else is that of the given loader, and of its class: batches, workers, collation, generators, and how it
    shuffles.

    Args:
        loaders: What ``train_dataloader`` gives.
        rate: Share that each session keeps of the one before.
        session: Number of the session; 0 gives the loaders themselves.
        seed: Seed of the shuffle.

    Raises:
        ValueError: If a loader has data or a sampler of which no part can be taken.
    """
    if session == 0:
        return loaders
    if hasattr(loaders, "flattened"):  # a CombinedLoader of either root
        twin = copy.copy(loaders)
        twin.flattened = [_loader_on(part, rate, session, seed) for part in loaders.flattened]
        return twin
    return tree_map(lambda loader: _loader_on(loader, rate, session, seed), loaders)


def _leaves(loaders: Any) -> Iterator[Any]:
    yield from loaders.flattened if hasattr(loaders, "flattened") else tree_leaves(loaders)


def _loader_on(loader: Any, rate: float, session: int, seed: int) -> Any:
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"the training data comes from a {type(loader).__name__}, of which no part can be taken; give a "
            f"torch.utils.data.DataLoader"
        )
    subset = NestedSubset(loader.dataset, rate, session, seed)
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        raise ValueError(
            f"the training loader has a {type(batches).__name__} that makes batches of the whole data; give batch_size "
            f"and let the loader make them"
        )
    sampler = _sampler_on(loader.sampler if batches is None else batches.sampler, subset)
    twin = copy.copy(loader)
    new = {"dataset": subset, "sampler": sampler, "_iterator": None}
    if batches is not None:
        new |= {"batch_size": batches.batch_size, "drop_last": batches.drop_last}
        new["batch_sampler"] = BatchSampler(sampler, batches.batch_size, batches.drop_last)
    # past the loader's own guard, and without what Lightning remembers of the whole data's loader to build it again
    vars(twin).update(new)
    for name in [name for name in vars(twin) if name.startswith("__")]:
        del vars(twin)[name]
    return twin


def _sampler_on(sampler: Any, subset: NestedSubset) -> Any:
    kind = type(sampler)
    if kind is SequentialSampler:
        return SequentialSampler(subset)
    if kind is RandomSampler:
        return RandomSampler(subset, sampler.replacement, sampler._num_samples, sampler.generator)
    if kind is DistributedSampler:
        shares = sampler.num_replicas, sampler.rank
        return DistributedSampler(subset, *shares, sampler.shuffle, sampler.seed, sampler.drop_last)
    raise ValueError(
        f"the training loader has a {kind.__name__}, which knows the whole data only; allowed are shuffle=True or "
        f"False and a DistributedSampler"
    )
