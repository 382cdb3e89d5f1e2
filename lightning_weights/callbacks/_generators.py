"""Random generators as plain state: dicts, lists, numbers, strings and tensors that load with `weights_only=True`."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer


def _to_plain(state: Any) -> Any:
    """Turn a numpy bit generator's state into dicts, numbers, strings and tensors of signed integers."""
    if isinstance(state, dict):
        return {key: _to_plain(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.view(f"i{state.itemsize}").copy())
    return state


def _from_plain(state: Any) -> Any:
    """Undo `_to_plain`."""
    if isinstance(state, dict):
        return {key: _from_plain(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        array = state.numpy()
        return array.view(f"u{array.itemsize}")
    return state


def get_state(generator: Any) -> Any:
    """Read a torch, numpy or python generator; the modules `numpy.random` and `random` stand for their global one."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _to_plain(generator.bit_generator.state)
    if hasattr(generator, "get_state"):
        return _to_plain(generator.get_state(legacy=False))
    version, words, gauss = generator.getstate()
    return {"version": version, "words": list(words), "gauss": [] if gauss is None else [gauss]}


def set_state(generator: Any, state: Any) -> None:
    """Put a state read by `get_state` back."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _from_plain(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(_from_plain(state))
    else:
        generator.setstate((state["version"], tuple(state["words"]), (state["gauss"] or [None])[0]))


def loader_generators(combined_loader: Any) -> list[Any]:
    """Return the generators that loaders, their samplers and their datasets keep as attributes, each one once."""
    found = {}
    for loader in combined_loader.flattened if combined_loader is not None else []:
        batch_sampler = getattr(loader, "batch_sampler", None)
        dataset = getattr(loader, "dataset", None)
        # what is inside a part of a data set draws like the data set itself
        owners = [loader, getattr(loader, "sampler", None), batch_sampler, dataset, getattr(dataset, "dataset", None)]
        for owner in [*owners, getattr(batch_sampler, "sampler", None)]:
            for value in getattr(owner, "__dict__", {}).values():
                if isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
                    found[id(value)] = value
    return list(found.values())


def _loaders(trainer: Trainer) -> dict[str, Any]:
    """Return the combined loaders; only these hold the loaders as they are iterated (with Lightning's samplers)."""
    fit_loop = trainer.fit_loop
    return {"train": fit_loop._combined_loader, "val": fit_loop.epoch_loop.val_loop._combined_loader}


def _device_module() -> Any:
    """Return the accelerator's module of torch, if there is an accelerator with generators of its own."""
    if not torch.accelerator.is_available():
        return None
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    return module if hasattr(module, "set_rng_state_all") else None


def read_generators(trainer: Trainer) -> dict[str, Any]:
    """Read all generators without drawing from them."""
    return {
        "python": get_state(random),
        "numpy": get_state(np.random),
        "torch": torch.get_rng_state(),
        "accelerator": device.get_rng_state_all() if (device := _device_module()) else [],
        **{name: [get_state(g) for g in loader_generators(loader)] for name, loader in _loaders(trainer).items()},
    }


def write_generators(trainer: Trainer, states: dict[str, Any]) -> None:
    """Set all generators to states read by `read_generators`."""
    set_state(random, states["python"])
    set_state(np.random, states["numpy"])
    torch.set_rng_state(states["torch"])
    device = _device_module()
    if device and len(states["accelerator"]) == device.device_count():
        device.set_rng_state_all(states["accelerator"])
    for name, loader in _loaders(trainer).items():
        for generator, state in zip(loader_generators(loader), states[name], strict=False):
            set_state(generator, state)
