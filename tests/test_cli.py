"""The command line, in this process: what it prints, what it refuses, and how parts are named in it."""

import dataclasses
import inspect
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_weights.__main__ import main
from lightning_weights.cli import run
from lightning_weights.methods import METHODS
from tests.behaviour.subjects import CALLBACKS, OPTIMIZERS, SUBJECTS
from tests.helpers.battery import NOISE, locate
from tests.helpers.commands import keep_commands, print_completion
from tests.helpers.two_processes import run_elsewhere

pytestmark = pytest.mark.filterwarnings(NOISE)

REPOSITORY = Path(__file__).parents[1]
MODELS = (
    *("CausalLM", "CertifiedClassifier", "ClassIncrementalModule", "Classifier", "RobustClassifier", "SWSDistillation"),
    *("PonitaClassifier", "PonitaDiffusion", "PonitaDynamics", "PonitaPotential", "PonitaRegressor"),
    *("FunctionalMemory", "KNOWNMeta", "MultiObjectiveRL", "PerSampleLM"),
    *("Regressor", "StackingEnsemble"),
)
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
BASE = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_train_batches": 4,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
    },
    "model": {
        "class_path": "lightning_weights.modules.Classifier",
        "init_args": {"network": {"class_path": "lightning_weights.modules.MLP", "init_args": {"hidden": [8]}}},
    },
    "data": {"class_path": "lightning_weights.data.PermutedDigits", "init_args": {"num_tasks": 2}},
}


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run a command line in a folder of its own and return its exit code, output and errors."""
    keep_commands(monkeypatch, "fit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-weights"])

    def call(*arguments: str, config: dict[str, Any] | None = None) -> tuple[Any, str, str]:
        if config is not None:
            Path("given.yaml").write_text(yaml.safe_dump(config))
            arguments = (arguments[0], "--config", "given.yaml", *arguments[1:])
        try:
            main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def with_part(path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the base config with one optimizer or callback more."""
    part = {"class_path": path, "init_args": arguments}
    if path in OPTIMIZERS:
        return {**BASE, "optimizer": part}
    return {**BASE, "trainer": {**BASE["trainer"], "callbacks": [part]}}


def part_of(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("optimizer") or config["trainer"]["callbacks"][-1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_survive_being_printed_and_read(cli, path):
    code, printed, _ = cli("fit", "--config", str(path), "--print_config")
    assert code == 0
    Path("printed.yaml").write_text(printed)
    assert cli("fit", "--config", "printed.yaml", "--print_config")[1] == printed
    given, full = yaml.safe_load(path.read_text()), yaml.safe_load(printed)
    assert contains(full, given), "the config asks for something that the printed one does not say"


def contains(full: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(name in full and contains(full[name], value) for name, value in part.items())
    if isinstance(part, list):
        return len(part) == len(full) and all(map(contains, full, part))
    return full == part


@pytest.mark.parametrize("path", SUBJECTS)
def test_arguments_survive_being_printed_and_read(cli, path):
    _, printed, _ = cli("fit", "--print_config", config=with_part(path, dict(SUBJECTS[path].arguments)))
    part = part_of(yaml.safe_load(printed))
    assert part["class_path"] == path
    assert contains(part.get("init_args", {}), dict(SUBJECTS[path].arguments))
    rebuilt = {**BASE, "optimizer": part} if path in OPTIMIZERS else with_part(path, part.get("init_args", {}))
    assert cli("fit", "--print_config", config=rebuilt)[1] == printed


def test_every_row_gives_other_values_than_the_defaults():
    for path, subject in SUBJECTS.items():
        defaults = {name: p.default for name, p in inspect.signature(locate(path)).parameters.items()}
        assert all(defaults[name] != value for name, value in subject.arguments.items()), path


def argument_names(path: str) -> list[str]:
    """Return the names of the constructor's arguments; those of settings in one dataclass have the name of both."""
    names = []
    for name, parameter in inspect.signature(locate(path)).parameters.items():
        fields = dataclasses.fields(parameter.default) if dataclasses.is_dataclass(parameter.default) else ()
        names += [f"{name}.{field.name}" for field in fields] or [name]
    return [name for name in names if name != "params"]


@pytest.mark.parametrize("path", SUBJECTS)
def test_help_describes_every_argument(cli, path):
    option = "--optimizer.help" if path in OPTIMIZERS else "--trainer.callbacks.help"
    code, text, _ = cli("fit", option, path.rpartition(".")[2])
    assert code == 0
    for name in argument_names(path):
        entries = text.partition("\n\n")[2].split(f".{name} ", 1)
        assert len(entries) == 2, f"{name} is not in the help"
        description = " ".join(entries[1].partition("\n  --")[0].split()[1:])
        description = description.partition("(type:")[0].replace("{true,false}", "").strip()
        assert len(description) > 5, f"{name} has no description, only {description!r}"


@pytest.mark.parametrize("path", SUBJECTS)
def test_bare_class_names_are_enough(cli, path):
    name = path.rpartition(".")[2]
    option = f"--optimizer={name}" if path in OPTIMIZERS else f"--trainer.callbacks+={name}"
    code, printed, _ = cli("fit", option, "--print_config", config=BASE)
    assert code == 0
    assert part_of(yaml.safe_load(printed))["class_path"] == path


@pytest.mark.parametrize("path", SUBJECTS)
def test_an_argument_that_does_not_exist_is_named(cli, path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer._run", pytest.fail)
    code, _, error = cli("fit", config=with_part(path, {"surprise": 3}))
    assert code == 2
    assert "surprise" in error


@pytest.mark.parametrize("path", [path for path, subject in SUBJECTS.items() if subject.wrong])
def test_a_value_of_the_wrong_type_is_named(cli, path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer._run", pytest.fail)
    name, value = SUBJECTS[path].wrong
    code, _, error = cli("fit", config=with_part(path, {name: value}))
    assert code == 2
    assert f'"{name}"' in error
    assert value in error


@pytest.mark.parametrize("path", [path for path in CALLBACKS if SUBJECTS[path].arguments])
def test_callbacks_are_appended_with_their_arguments(cli, path):
    first = {"class_path": "lightning.pytorch.callbacks.ModelSummary"}
    config = {**BASE, "trainer": {**BASE["trainer"], "callbacks": [first]}}
    name, arguments = path.rpartition(".")[2], SUBJECTS[path].arguments
    options = [f"--trainer.callbacks.{key}={value}" for key, value in arguments.items()]
    code, printed, error = cli("fit", f"--trainer.callbacks+={name}", *options, "--print_config", config=config)
    assert code == 0, error
    callbacks = yaml.safe_load(printed)["trainer"]["callbacks"]
    assert [callback["class_path"] for callback in callbacks] == [first["class_path"], path]
    assert contains(callbacks[1]["init_args"], dict(arguments))


def test_a_command_line_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-weights"])
    Path("given.yaml").write_text(yaml.safe_dump(BASE))
    arguments = ["--config", "given.yaml", "--optimizer=CLASSP", "--optimizer.lr=0.05"]
    arguments += ["--trainer.callbacks+=CLASSPPhases", "--trainer.callbacks.switch_at=3"]
    arguments += ["--trainer.callbacks.unit=step"]
    result = run(["fit", *arguments])
    (optimizer,) = result.trainer.optimizers
    assert result.trainer.global_step == 4
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["apply_decay"]) == (0.05, True)
    assert result.trainer.callback_metrics["weights/classp/phase"] == 1.0


def test_methods_lists_every_card_within_a_terminal(cli):
    code, text, _ = cli("methods")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    for card in METHODS:
        assert {card.key, *card.classes, *card.ops, card.config, card.example} <= set(words)
        assert f"arXiv:{card.arxiv}" in words


def test_the_terminal_program_is_this_command_line():
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert 'lightning-weights = "lightning_weights.__main__:main"' in project


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_classes(tmp_path):
    pytest.importorskip("shtab")
    script = tmp_path / "completion.bash"
    # a process of its own: completion is for the classes that the program loads, not for those of other tests
    run_elsewhere(print_completion, script)

    begun = ["f", "stack --we", "fit --trainer.max", "fit --model.", "fit --model lightning_weights."]
    parts = {f"fit --optimizer {path[:-1]}": path for path in OPTIMIZERS}
    parts |= {f"fit --trainer.callbacks+ {path[:-1]}": path for path in CALLBACKS}
    # one shell for all, since each would have to read the script
    program = """
        source "$0"
        for line in "$@"; do
            COMP_WORDS=(lightning-weights $line)
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            COMPREPLY=()
            _shtab_lightning_weights lightning-weights "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
            printf "%s\\n" "${COMPREPLY[*]}"
        done
    """
    shell = ["bash", "--norc", "-c", program, str(script), *begun, *parts]
    printed = subprocess.run(shell, capture_output=True, text=True, check=True, timeout=60).stdout
    command, own, options, arguments, models, *found = map(str.split, printed.splitlines())
    assert command == ["fit"]
    assert "--weights" in own
    assert {"--trainer.max_epochs", "--trainer.max_steps"} <= set(options)
    assert "--model.network" in arguments
    assert set(models) == {f"lightning_weights.modules.{name}" for name in MODELS}
    for path, completed in zip(parts.values(), found, strict=True):
        assert path in completed
