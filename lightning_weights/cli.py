"""The command line: LightningCLI in full subclass mode, with this package's classes known by their bare names."""

import sys
import warnings

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

# Imported for their classes: jsonargparse finds a subclass by its bare name once its module is loaded.
from lightning_weights import callbacks, data, metrics, modules, optimizers  # noqa: F401

DESCRIPTION = """Train any LightningModule with the methods of lightning-weights.

Two more commands:  lightning-weights methods  lists the methods and what was measured,
lightning-weights doctor  tells which kernels run on this machine."""


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
        ```
    """
    set_parsing_settings(add_print_completion_argument=True)
    # Completion follows the arguments of every class that an argument takes. Modules take modules: it would not end.
    words = sys.argv if args is None else args
    if any(word.removeprefix("--print_completion=").startswith("shtab-") for word in words):
        set_parsing_settings(subclasses_disabled=[nn.Module, Tensor], subclasses_enabled=[LightningModule])
    # Lightning 2.6 on torch 2.13 repeats this at every batch, and no user can act on it.
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")
    return LightningCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=args,
        save_config_kwargs={"overwrite": True},  # without a logger the file lands in the working directory every time
        parser_kwargs={"prog": "lightning-weights", "description": DESCRIPTION},
    )
