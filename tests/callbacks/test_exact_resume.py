"""Every way to stop and resume, compared bit for bit with the run that was never stopped."""

import copy
import functools
import importlib
import itertools
import pickle
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_weights.callbacks.exact_resume import ExactResume
from tests.helpers.tiny import ROOTS, tiny_module
from tests.helpers.two_processes import run_on_two

BATCHES = 6  # per epoch, of 4 samples


class SaveAt(Callback):
    """Saves when `hook` is called for the `count`-th time, or stops the process there."""

    def __init__(self, hook: str, count: int, path: Any) -> None:
        self.count, self.path = count, path
        setattr(self, hook, self._called)

    def _called(self, trainer: Any, *args: Any) -> None:
        self.count -= not trainer.sanity_checking
        if self.count == 0:
            trainer.save_checkpoint(self.path)


class DrawInHooks(Callback):
    """Another callback that uses the generators wherever it can."""

    def on_train_start(self, *args: Any) -> None:
        torch.rand(3)

    on_fit_start = on_sanity_check_end = on_train_epoch_start = on_validation_start = on_train_start
    on_validation_epoch_end = on_train_batch_start = on_train_start


class Samples(Dataset):
    """Samples with noise from `noise`: the global generator, or one that the dataset owns."""

    def __init__(self, noise: torch.Generator | None = None, augment: bool = True) -> None:
        self.data = torch.arange(4.0 * 4 * BATCHES).sin().reshape(-1, 4)
        self.noise, self.augment = noise, augment

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data[index] + 0.1 * torch.randn(4, generator=self.noise) * self.augment


class Stream(IterableDataset):
    """A stream that draws its samples from the global generator."""

    def __iter__(self) -> Any:
        for _ in range(4 * BATCHES):
            yield torch.randn(4)


class SizedStream(Stream):
    def __len__(self) -> int:
        return 4 * BATCHES


def loader(**options: Any) -> DataLoader:
    return DataLoader(options.pop("dataset", None) or Samples(), **{"batch_size": 4, "shuffle": True, **options})


def fit(
    root: str, options: dict[str, Any], ckpt: Any = None, extra: Any = (), exact: bool = True, seed: int = 1
) -> Any:
    """Train a tiny module; a resume starts from other seeds, so that nothing is equal by accident."""
    options = dict(options)
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    module = tiny_module(root, **options.pop("module", {}))
    train, val = options.pop("train", loader), options.pop("val", None)
    around = options.pop("around", False)
    callbacks = [*([DrawInHooks()] if around else []), *([ExactResume()] if exact else [])]
    callbacks += [*([DrawInHooks()] if around else []), *extra]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    given = {"max_epochs": 3, "enable_checkpointing": False, **quiet, **options}
    trainer = importlib.import_module(root).Trainer(callbacks=callbacks, **given)
    loaders = {"train_dataloaders": train() if train else None, "val_dataloaders": val() if val else None}
    trainer.fit(module, **loaders, ckpt_path=ckpt, weights_only=None if ckpt is None else True)
    return outcome(trainer)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def outcome(trainer: Any) -> dict[str, Any]:
    state = {
        "weights": trainer.lightning_module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "metrics": trainer.callback_metrics,
        "draws": [torch.rand(3), np.random.rand(3), random.random()],
        "counts": [trainer.global_step, trainer.current_epoch, trainer.fit_loop.epoch_loop.total_batch_idx],
        "logger step": trainer.fit_loop.epoch_loop._batches_that_stepped,
    }
    return {"seen": trainer.lightning_module.seen, **flat(state)}


def differences(straight: dict[str, Any], resumed: dict[str, Any]) -> list[str]:
    """Name what differs; the resumed run must have seen the same last batches and validations."""
    a, b = straight["seen"], resumed["seen"]
    assert straight.keys() == resumed.keys()
    assert len(b) <= len(a)
    wrong = [] if a[-len(b) :] == b else ["seen"]
    states = [name for name in straight if name != "seen"]
    return wrong + [k for k in states if not np.array_equal(np.asarray(straight[k]), np.asarray(resumed[k]))]


class StatefulLoader:
    """Shuffles with its own generator and knows how to go on, as torchdata's loader does."""

    def __init__(self) -> None:
        self.order, self.position = [], 0

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = state["order"], state["position"]

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Any:
        if self.position in (0, BATCHES):
            self.order, self.position = torch.randperm(BATCHES).tolist(), 0
        while self.position < BATCHES:
            self.position += 1
            yield Samples(augment=False).data[4 * self.order[self.position - 1] :][:4]


SAVE = {
    "first epoch": ("on_train_batch_end", 2),
    "second epoch": ("on_train_batch_end", BATCHES + 4),
    "fourth batch": ("on_train_batch_end", 4),
    "last batch": ("on_train_batch_end", BATCHES),
    "epoch end": ("on_train_epoch_end", 1),
    "epoch start": ("on_train_epoch_start", 2),
    "second epoch end": ("on_train_epoch_end", 2),
    "validation end": ("on_validation_end", 1),
    "second validation end": ("on_validation_end", 2),
}
FEW = ("first epoch", "second epoch", "epoch end")
MANY = (*FEW, "last batch", "second epoch end")
ALL = (*MANY, "fourth batch", "validation end", "second validation end")
val = {"val": lambda: loader(shuffle=False)}
owned = {"train": lambda: loader(**generator())}
split = {"train": None, "module": {"train_dataloader": lambda self: loader(dataset=half(Samples()), batch_size=2)}}


SEEDS = itertools.count()


def generator() -> dict[str, Any]:
    """Seeded differently each time, as if the process had drawn from it already."""
    return {"generator": torch.Generator().manual_seed(next(SEEDS))}


def half(dataset: Dataset) -> Dataset:
    return torch.utils.data.random_split(dataset, [0.5, 0.5])[0]


def draw(module: Any) -> None:
    torch.rand(1)


def iterator_step(module: Any, dataloader_iter: Any) -> torch.Tensor:
    return module.loss(next(dataloader_iter)[0])


def manual_step(module: Any, batch: Any, batch_idx: int) -> None:
    loss = type(module).__mro__[1].training_step(module, batch, batch_idx)
    module.optimizers().zero_grad()
    module.manual_backward(loss)
    module.optimizers().step()


SITUATIONS = {
    "shuffled": ({}, (*MANY, "epoch start")),
    "validation": ({**val, "around": True}, ALL),
    "validation inside": ({**val, "val_check_interval": 2}, ALL),
    "validation now and then": ({**val, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}, MANY),
    "own generator": (owned, FEW),
    "other callbacks draw": ({"around": True}, FEW),
    "limited": ({"limit_train_batches": 4}, ("first epoch", "fourth batch", "last batch", "epoch end")),
    "steps": ({"max_epochs": None, "max_steps": 17, **val}, ALL),
    "accumulated": ({"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, MANY),
    "plateau": ({**val, "module": {"plateau": True}}, ALL),
    "plateau of training": ({"module": {"plateau": True, "plateau_monitor": "train_loss_epoch"}}, MANY),
    "workers": ({"train": lambda: loader(num_workers=2), **val}, ("second epoch", "epoch end")),
    "kept workers": (
        {"train": lambda: loader(dataset=Samples(augment=False), num_workers=1, persistent_workers=True)},
        FEW,
    ),
    "workers with own generator": (
        {"train": lambda: loader(num_workers=1, **generator())},
        ("first epoch", "second epoch", "epoch end"),
    ),
    "two loaders": ({"train": lambda: {"a": loader(), "b": loader(batch_size=8, **generator())}}, FEW),
    "reloaded": ({**split, "reload_dataloaders_every_n_epochs": 1, **val}, MANY),
    "reloaded now and then": ({**split, "reload_dataloaders_every_n_epochs": 2, "max_epochs": 5}, FEW),
    "split in the hook": (split, FEW),
    "stream": ({"train": lambda: loader(dataset=Stream(), shuffle=None)}, MANY),
    "sized stream": ({"train": lambda: loader(dataset=SizedStream(), shuffle=None), **val}, FEW),
    "own noise": (
        {"train": lambda: loader(dataset=Samples(noise=generator()["generator"]))},
        ("epoch end", "second epoch"),
    ),
    "stateful": ({"train": StatefulLoader}, FEW),
    "module draws": ({"module": {"on_train_epoch_start": draw, "on_train_start": draw}}, FEW),
    "manual": ({"module": {"automatic_optimization": False, "training_step": manual_step}}, FEW),
    "iterator in the step": (
        {"module": {"training_step": iterator_step, "on_train_epoch_end": lambda self: None}},
        FEW,
    ),
}


# one situation shows that the other root is the same code
IN_ROOTS = [*((name, ROOTS[0]) for name in SITUATIONS), ("validation inside", ROOTS[1])]


@pytest.mark.parametrize(("name", "root"), IN_ROOTS)
def test_resume_equals_straight_through(name: str, root: str, tmp_path: Any) -> None:
    options, places = SITUATIONS[name]
    saves = [SaveAt(*SAVE[place], tmp_path / place) for place in places]
    straight = fit(root, options, extra=saves)
    failed = {p: differences(straight, fit(root, options, ckpt=tmp_path / p, seed=99)) for p in places}
    assert not any(failed.values()), failed


def test_the_comparison_can_fail(tmp_path: Any) -> None:
    save = SaveAt("on_train_batch_end", 8, tmp_path / "ckpt")
    straight = fit(ROOTS[0], {}, extra=[save])
    resumed = fit(ROOTS[0], {}, ckpt=tmp_path / "ckpt", exact=False, seed=1)
    assert ".weights.net.0.weight" in differences(straight, resumed)


@pytest.mark.parametrize("name", ["validation inside", "workers", "reloaded", "stream"])
def test_adding_the_callback_changes_nothing(name: str) -> None:
    options = {"max_epochs": 2, **SITUATIONS[name][0]}
    first = next(SEEDS)
    with_callback = fit(ROOTS[0], options)
    globals()["SEEDS"] = itertools.count(first + 1)
    assert not differences(with_callback, fit(ROOTS[0], options, exact=False))


class Crash(Callback):
    """Raises where it is told to, once."""

    def __init__(self, hook: str, count: int) -> None:
        self.count = count
        setattr(self, hook, self._called)

    def _called(self, trainer: Any, *args: Any) -> None:
        self.count -= not trainer.sanity_checking
        if self.count == 0:
            torch.rand(1), np.random.rand(1), random.random()
            raise OSError("disk full")


CRASHES = [("on_before_backward", 9), ("on_before_optimizer_step", 2), ("on_train_batch_start", 6)]
CRASHES += [("on_validation_batch_end", 8), ("on_train_batch_start", 7)]
DATA = {"shuffled": loader, "stream": lambda: loader(dataset=Stream(), shuffle=None)}
# as above, one crash is enough for the other root
CRASHED = [(data, *crash, ROOTS[0]) for data in DATA for crash in CRASHES] + [("shuffled", *CRASHES[-1], ROOTS[1])]


def without_averages(data: str, normalized: bool) -> dict[str, Any]:
    return {"train": DATA[data], **val, "module": {"on_train_epoch_end": lambda self: None, "normalized": normalized}}


@functools.cache
def never_crashed(data: str, normalized: bool) -> dict[str, Any]:
    return fit(ROOTS[0], without_averages(data, normalized))


@pytest.mark.parametrize(("data", "hook", "count", "root"), CRASHED)
def test_crash_checkpoints(data: str, hook: str, count: int, root: str, tmp_path: Any) -> None:
    # what the failing batch's forward has done to running statistics can't be undone
    normalized = not hook.startswith("on_before")
    options = without_averages(data, normalized) | {"enable_checkpointing": True, "default_root_dir": tmp_path}
    checkpoint = importlib.import_module(root).callbacks.ModelCheckpoint
    straight = never_crashed(data, normalized)
    keep = checkpoint(tmp_path, filename="crash", every_n_train_steps=1000, save_on_exception=True)
    with pytest.raises(OSError, match="disk full"):
        fit(root, options, extra=[keep, Crash(hook, count)])
    assert not differences(straight, fit(root, options, ckpt=tmp_path / "crash.ckpt", seed=99))


def test_model_checkpoint_and_a_second_resume(tmp_path: Any) -> None:
    options = {**val, "accumulate_grad_batches": 2, "enable_checkpointing": True, "default_root_dir": tmp_path}
    every = {"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}
    straight = fit(ROOTS[0], options, extra=[ModelCheckpoint(tmp_path / "a", **every)])
    second = [ModelCheckpoint(tmp_path / "b", **every)]
    assert not differences(straight, fit(ROOTS[0], options, extra=second, ckpt=tmp_path / "a/step=2.ckpt", seed=99))
    for step in (4, 6, 8):
        assert not differences(straight, fit(ROOTS[0], options, ckpt=tmp_path / f"b/step={step}.ckpt", seed=98))


@pytest.mark.parametrize("stop", [{"max_steps": 8}, {"max_steps": BATCHES}, {"max_epochs": 2}])
def test_a_finished_run_is_prolonged(stop: dict[str, int], tmp_path: Any) -> None:
    options = without_averages("shuffled", normalized=True)
    trainers = []
    remember = SaveAt("on_fit_end", 0, None)
    remember.on_train_end = lambda trainer, module: trainers.append(trainer)
    fit(ROOTS[0], {**options, **stop}, extra=[remember])  # its outcome is read with draws that the run does not know
    trainers[0].save_checkpoint(tmp_path / "ckpt")
    straight = never_crashed("shuffled", normalized=True)
    wrong = differences(straight, fit(ROOTS[0], options, ckpt=tmp_path / "ckpt", seed=99))
    # the average of an epoch that `max_steps` ended starts anew
    assert all(name.startswith(".metrics.train_") for name in wrong)


def fit_in_two_processes(rank: int, folder: Any) -> dict[str, Any]:
    options = {"strategy": "ddp", "devices": 2, "max_epochs": 2, "val": val["val"]}
    places = {"inside": ("on_train_batch_end", 2), "end": ("on_train_epoch_end", 1)}
    saves = [SaveAt(*place, folder / name) for name, place in places.items()]
    straight = fit(ROOTS[0], options, extra=saves, seed=1 + rank)
    for name in places:
        wrong = differences(straight, fit(ROOTS[0], options, ckpt=folder / name, seed=50 + rank))
        assert not wrong, f"rank {rank}, {name}: {wrong}"
    return {}


@pytest.mark.slow
def test_each_process_gets_its_own_generators_back(tmp_path: Any) -> None:
    run_on_two(fit_in_two_processes, tmp_path)
    ranks = torch.load(tmp_path / "inside", weights_only=True)["callbacks"]["ExactResume"]["ranks"]
    assert not torch.equal(ranks[0]["now"]["torch"], ranks[1]["now"]["torch"])
    with pytest.warns(UserWarning, match="saved by 2 processes and there are 1"):
        fit(ROOTS[0], {"max_epochs": 2}, ckpt=tmp_path / "end")


def test_a_checkpoint_without_state_is_resumed_with_a_warning(tmp_path: Any) -> None:
    fit(ROOTS[0], {"max_epochs": 1}, exact=False, extra=[SaveAt("on_train_batch_end", 2, tmp_path / "ckpt")])
    with pytest.warns(UserWarning, match="not exact: the checkpoint was saved without `ExactResume`"):
        resumed = fit(ROOTS[0], {"max_epochs": 1}, ckpt=tmp_path / "ckpt")
    assert [name for name, *_ in resumed["seen"]] == ["train"] * (BATCHES - 2) + ["epoch"]


def test_a_pending_accumulation_is_warned_about_once(tmp_path: Any) -> None:
    saves = [SaveAt("on_train_batch_end", count, tmp_path / str(count)) for count in (1, 2, 3, 6)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(ROOTS[0], {"accumulate_grad_batches": 2}, extra=saves)
    assert [str(w.message)[:40] for w in caught if "pending" in str(w.message)] == [
        "This checkpoint was saved after batch 1,"
    ]


def test_an_exact_resume_is_silent(tmp_path: Any) -> None:
    fit(ROOTS[0], {}, extra=[SaveAt("on_train_batch_end", 2, tmp_path / "ckpt")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(ROOTS[0], {}, ckpt=tmp_path / "ckpt")
    assert not [w for w in caught if "resum" in str(w.message)]


def test_misuse_is_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="more than one `ExactResume`"):
        fit(ROOTS[0], {}, extra=[ExactResume()])
    fit(ROOTS[0], {}, extra=[SaveAt("on_train_batch_end", 5, tmp_path / "ckpt")])
    with pytest.raises(RuntimeError, match="ended after 3 batches, but the checkpoint was saved after 5"):
        fit(ROOTS[0], {"train": lambda: loader(batch_size=8)}, ckpt=tmp_path / "ckpt")


def test_state_is_plain_and_the_object_lean(tmp_path: Any) -> None:
    callback = ExactResume()
    fit(ROOTS[0], val, exact=False, extra=[callback, SaveAt("on_validation_end", 1, tmp_path / "ckpt")])
    state = torch.load(tmp_path / "ckpt", weights_only=True)["callbacks"][callback.state_key]
    assert {type(leaf) for leaf in flat(state).values()} <= {torch.Tensor, int, float, str, bool}
    assert (tmp_path / "ckpt").stat().st_size < 100_000
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert (twin.state_key, vars(twin)) == ("ExactResume", vars(ExactResume()))
    assert len(pickle.dumps(callback)) < 200
