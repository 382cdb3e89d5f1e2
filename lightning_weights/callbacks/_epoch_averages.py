"""What a training epoch has averaged so far, as plain state: Lightning forgets it when it resumes inside an epoch."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import Metric

# what `self.log` was told, and must be told again in the same words
_OPTIONS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
_VALUES = ("value", "cumulated_batch_size", "_forward_cache")


def read_averages(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Read the tensors logged since the epoch began and the states of the module's torchmetrics objects."""
    logged = []
    for metric in trainer.fit_loop.epoch_loop._results.values():
        reduction = metric.meta.reduce_fx
        restorable = metric.meta.sync.group is None and reduction is getattr(torch, reduction.__name__, None)
        if metric.is_tensor and not metric.has_reset and restorable:
            options = {name: getattr(metric.meta, name) for name in _OPTIONS}
            options.update(reduce_fx=reduction.__name__, rank_zero_only=metric.meta.sync.rank_zero_only)
            values = {name: getattr(metric, name, None) for name in _VALUES}
            values = {name: value.cpu().clone() for name, value in values.items() if value is not None}
            logged.append({"options": options, "sync_dist": metric.meta.sync.should, "values": values})
    metrics = {}
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and metric.update_called:
            states = {key: _copied(state, "cpu") for key, state in metric.metric_state.items()}
            metrics[name] = {"updates": metric.update_count, "states": states}
    return {"logged": logged, "metrics": metrics}


def write_averages(trainer: Trainer, module: LightningModule, averages: dict[str, Any]) -> None:
    """Put back what `read_averages` read."""
    results, device = trainer.fit_loop.epoch_loop._results, trainer.strategy.root_device
    # the first batch after a start would reset the entries as those of an earlier epoch
    trainer._logger_connector._first_loop_iter = False
    for entry in averages["logged"]:
        options, values = entry["options"], entry["values"]
        # without synchronization: this call only creates the entry
        options = {**options, "sync_dist": False, "sync_dist_fn": trainer.strategy.reduce, "batch_size": 1}
        results.log(value=values["value"].to(device), **options)
        metric = results[f"{options['fx']}.{options['name']}"]
        metric.meta.sync.should = entry["sync_dist"]
        for name, value in values.items():
            setattr(metric, name, value.to(device))
    for name, entry in averages["metrics"].items():
        metric = module.get_submodule(name)
        metric._update_count = entry["updates"]
        for key, state in entry["states"].items():
            setattr(metric, key, _copied(state, metric.device))


def _copied(state: Any, device: Any) -> Any:
    """Copy the state of a torchmetrics object: a tensor or a list of tensors."""
    return [item.to(device, copy=True) for item in state] if isinstance(state, list) else state.to(device, copy=True)
