"""The command line: LightningCLI in full subclass mode, with this package's classes known by their bare names."""

import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import get_loader, set_parsing_settings
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

# Imported for their classes: jsonargparse finds a subclass by its bare name once its module is loaded.
from lightning_weights import callbacks, data, metrics, modules, optimizers, strategies  # noqa: F401
from lightning_weights.data import ClassificationData
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.runners import IncrementalRunner, QuantizationRunner, StackingRunner

DESCRIPTION = """Train any LightningModule with the methods of lightning-weights.

Two more commands:  lightning-weights methods  lists the methods and what was measured,
lightning-weights doctor  tells which kernels run on this machine."""

# Results of `increments`, `quantize` and `stack` are the same whatever these are.
WITHOUT_EFFECT = {"folder", "compare"} | {
    f"trainer.{name}"
    for name in (
        "default_root_dir",
        "enable_model_summary",
        "enable_progress_bar",
        "log_every_n_steps",
        "logger",
        "profiler",
    )
}


class CommandLine(LightningCLI):
    """LightningCLI with three commands more.

    ``increments`` trains on groups of classes one after another, ``quantize`` quantizes a network and measures it, and
    ``stack`` trains with several seeds, once per fold, and combines the models.
    """

    runner: IncrementalRunner | QuantizationRunner | StackingRunner

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        about = "Trains on groups of classes one after another, with a fit for each."
        self._add_runner(parser, "increments", about, IncrementalRunner)
        about = "Quantizes a trained network, and evaluates it before and after."
        self._add_runner(parser, "quantize", about, QuantizationRunner)
        about = "Trains with several seeds, once per fold, and combines the models by regularized stacking."
        self._add_runner(parser, "stack", about, StackingRunner)

    def _add_runner(self, parser: LightningArgumentParser, name: str, about: str, runner: type[Any]) -> None:
        command = self.init_parser(description=about)
        self.add_default_arguments_to_parser(command)
        # without an optimizer: LightningCLI would make a single one, and every fit needs its own
        self.add_core_arguments_to_parser(command)
        given = {"trainer", "trainer_kwargs", "module", "datamodule", "seed", "make_module", "data"}
        given &= set(inspect.signature(runner).parameters)
        command.add_class_arguments(runner, as_group=False, skip=given, instantiate=False)
        self._subcommand_parsers[name] = command
        parser._subcommands_action.add_subcommand(name, command, help=about)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "increments":
            self._run_increments()
        elif subcommand == "quantize":
            self._run_quantize()
        elif subcommand == "stack":
            self._run_stack()
        else:
            super()._run_subcommand(subcommand)

    def _run_quantize(self) -> None:
        given = self.trainer.callbacks
        self.trainer.callbacks = [callback for callback in given if not isinstance(callback, SaveConfigCallback)]
        folder, ckpt_path, compare = (self._get(self.config, name) for name in ("folder", "ckpt_path", "compare"))
        self.runner = QuantizationRunner(self.trainer, self.model, self.datamodule, folder, ckpt_path, compare)
        if folder is not None:
            self._keep_config(Path(folder, "config.yaml"))
        self.runner.run()

    def _run_stack(self) -> None:
        names = ("folder", "seeds", "n_folds", "fold_seed", "stage", "weights", "test")
        given = {name: self._get(self.config, name) for name in names}
        stacking = self._get(self.config_init, "stacking")
        options = self._trainer_kwargs()
        # every fold would write its file, and the runner has one per fold
        options["callbacks"] = [part for part in options["callbacks"] if not isinstance(part, callbacks.CollectOOF)]
        self.runner = StackingRunner(self._new_model, self.datamodule, options, **given, stacking=stacking)
        self._keep_config(Path(given["folder"], "config.yaml"))
        self.runner.run()

    def _new_model(self) -> LightningModule:
        """Return the model of the config, made anew."""
        return self._get(self._parser(self.subcommand).instantiate_classes(self.config[self.subcommand]), "model")

    def _trainer_kwargs(self) -> dict[str, Any]:
        options = dict(self._get(self.config_init, "trainer"))
        given = options["callbacks"] or []
        options["callbacks"] = [callback for callback in given if not isinstance(callback, SaveConfigCallback)]
        return options

    def _run_increments(self) -> None:
        options = self._trainer_kwargs()
        folder = self._get(self.config, "folder")
        seed = self._get(self.config, "seed_everything") or 0
        self.runner = IncrementalRunner(options, self.model, self.datamodule, folder, seed)
        if folder is not None:
            self._keep_config(Path(folder, "config.yaml"))
        self.runner.run()

    def _keep_config(self, path: Path) -> None:
        """Write the run's settings to its folder, unless it was begun with others."""
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        if path.exists():
            before, now = _settings(path.read_text()), _settings(text)
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            if changed:
                listed = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed)
                raise ValueError(
                    f"the run in {path.parent} was begun with other settings: {listed}. Go on with those in {path}, "
                    f"give another --folder, or remove this one"
                )
        if rank_zero_only.rank == 0:
            with replacing_file(path) as part:
                part.write_text(text, "utf-8")


def _settings(text: str) -> dict[str, Any]:
    """Return the settings in a config that results depend on, by dotted name."""
    found: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if name in WITHOUT_EFFECT:
            return
        if isinstance(value, (dict, list)) and value:
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{name}.{key}" if name else str(key), part)
        else:
            found[name] = value

    walk("", get_loader("yaml")(text))
    return found


def run(args: list[str] | None = None) -> LightningCLI:
    """Parse a command line and run it.

    Args:
        args: Command line without the program's name, such as ``["fit", "--config", "configs/classp.yaml"]``; None
            takes ``sys.argv``.

    Returns:
        The CLI object, whose ``trainer``, ``model`` and ``datamodule`` were used.

    Examples:
        ```console
        $ lightning-weights fit --config configs/classp.yaml --optimizer.lr 0.05
        $ lightning-weights fit --config configs/classp.yaml --print_config
        $ lightning-weights fit --optimizer.help CLASSP
        $ lightning-weights increments --config configs/weight_align.yaml
        $ lightning-weights quantize --config configs/rescomp.yaml
        $ lightning-weights stack --config configs/regularized_stacking.yaml
        ```
    """
    set_parsing_settings(add_print_completion_argument=True)
    # Completion follows the arguments of every class that an argument takes. Modules and data take their like: it would
    # not end.
    words = sys.argv if args is None else args
    if any(word.removeprefix("--print_completion=").startswith("shtab-") for word in words):
        disabled = [nn.Module, Tensor, ClassificationData]
        set_parsing_settings(subclasses_disabled=disabled, subclasses_enabled=[LightningModule])
    # Lightning 2.6 on torch 2.13 repeats this at every batch, and no user can act on it.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")
    return CommandLine(
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=args,
        save_config_kwargs={"overwrite": True},  # without a logger the file lands in the working directory every time
        parser_kwargs={"prog": "lightning-weights", "description": DESCRIPTION},
    )
