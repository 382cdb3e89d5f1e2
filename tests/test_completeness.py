"""Every method has all its parts, and every public name is documented."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import lightning_weights
from lightning_weights.methods import METHODS
from tests.behaviour.subjects import SETUPS, SUBJECTS, parts_in_setups, public_parts
from tests.helpers.battery import locate

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "lightning_weights"
WITHOUT_CODE = {"weight_compander"}  # nobody has published any: golden tests hold closed forms instead of vectors


def public_modules() -> list[str]:
    """Return the modules with an `__all__`, from the sources."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        assigned = [node.targets for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
        if any(getattr(target, "id", "") == "__all__" for targets in assigned for target in targets):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


def public_objects() -> dict[str, Any]:
    """Return every class and function of every `__all__`, under its shortest import path."""
    found: dict[int, tuple[str, Any]] = {}
    for module in map(importlib.import_module, public_modules()):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


PUBLIC = public_objects()


def argument_lines(docstring: str) -> dict[str, str]:
    """Return the entries of a Google-style `Args:` section."""
    section = re.search(r"^Args:\n((?:(?:    .*)?\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    entries = re.split(r"^    (?=\S)", section.group(1) if section else "", flags=re.MULTILINE)[1:]
    return {entry.partition(":")[0].strip("* "): entry.partition(":")[2].strip() for entry in entries}


def test_argument_lines_reads_sections():
    lines = ("Sum.", "", "Args:", "    a: First,", "        and more.", "    *b: Others.", "", "Returns:", "    c: No.")
    text = lines[0] + "\n    ".join(lines[1:])
    assert argument_lines(text) == {"a": "First,\n        and more.", "b": "Others."}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    value = PUBLIC[name]
    docstring = value.__doc__
    assert docstring, "no docstring"
    summary = inspect.cleandoc(docstring).split("\n\n")[0]
    assert summary.endswith("."), f"the first paragraph is not a sentence: {summary!r}"
    described = argument_lines(docstring.replace("Attributes:", "Args:"))  # what the fields of a NamedTuple are called
    constructor = value.__init__ if inspect.isclass(value) else value
    parameters = set(inspect.signature(constructor).parameters) - {"self"}
    if hasattr(value, "_fields"):  # a NamedTuple, whose constructor is __new__
        parameters = set(value._fields)
    elif inspect.isclass(value) and "__init__" not in vars(value) and "__dataclass_fields__" not in vars(value):
        parameters = set()  # inherited: documented where it is defined
    assert set(described) == parameters, "the Args section and the signature differ"
    assert all(re.search(r"\w.*\.$", text, re.DOTALL) for text in described.values()), described
    assert "Examples:" in docstring, "no example"


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_classes_are_exported(card):
    for path in card.classes:
        package, _, name = path.rpartition(".")
        assert inspect.isclass(locate(path))
        assert name in importlib.import_module(package).__all__
        assert package.count(".") == 1, f"{path} is not the short path"


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_every_method_has_all_its_files(card):
    key = card.key
    files = [
        card.config,
        card.example,
        f"configs/{key}.yaml",
        f"examples/{key}.py",
        f"benchmarks/{key}.py",
        f"docs/methods/{key}.md",
        f"tests/golden/test_{key}.py",
        *([] if key in WITHOUT_CODE else [f"tests/golden/data/{key}.npz"]),
    ]
    missing = [name for name in files if not (REPOSITORY / name).is_file()]
    assert not missing


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_tests_mirror_the_sources(card):
    """The test of a class lies where its source file lies, under the same name."""
    sources = {inspect.getsourcefile(locate(path)) for path in card.classes}
    places = [Path(source).relative_to(PACKAGE) for source in sources if source]
    places += [Path("kernels", op) for op in card.ops]
    missing = []
    for place in places:
        stem = place.stem
        candidates = [*(REPOSITORY / "tests" / place.parts[0]).rglob(f"test_{stem}*.py")]
        if not candidates:
            missing.append(str(place))
    assert not missing


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_operators_are_registered(card):
    torch_ops = importlib.import_module("torch").ops.lightning_weights
    for op in card.ops:
        importlib.import_module(f"lightning_weights.kernels.{op}")
        assert hasattr(torch_ops, op)


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_cards_say_what_was_measured(card):
    assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
    assert re.search(r"\d", card.measured), "the card has no number"
    assert card.title in (REPOSITORY / f"docs/methods/{card.key}.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_papers_are_cited(card):
    reference = f'title: "{card.title}"', f"arXiv:{card.arxiv}"
    assert all(part in (REPOSITORY / "CITATION.cff").read_text() for part in reference)


def test_every_part_of_every_card_is_used_by_its_configs():
    for card in METHODS:
        configs = [REPOSITORY / card.config, *sorted((REPOSITORY / "configs").glob(f"{card.key}_*.yaml"))]
        text = "".join(path.read_text() for path in configs)
        parts = [path for path in card.classes if path in public_parts()]
        assert all(path in text for path in parts), f"the configs of {card.key} leave out one of {parts}"


def test_every_public_optimizer_and_callback_is_in_the_battery():
    assert set(SUBJECTS) == public_parts()
    assert parts_in_setups() == public_parts()
    assert {card.key for card in METHODS} <= {row.name for row in SETUPS}


def test_cards_have_different_keys():
    keys = [card.key for card in METHODS]
    assert len(set(keys)) == len(keys)


def test_lazy_names_exist_and_unknown_ones_are_told():
    for name in lightning_weights.__all__:
        assert getattr(lightning_weights, name) is not None
    assert set(dir(lightning_weights)) == set(lightning_weights.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'optimisers'; it has .*optimizers"):
        _ = lightning_weights.optimisers
