"""README and pages against the code: blocks, class paths, links, commands, method cards and the API reference."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from lightning_weights.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REPOSITORY = "https://github.com/lightning-weights/lightning-weights/blob/main/"
FENCE = re.compile(r"^(<!-- run -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    place: str
    language: str
    text: str
    runs: bool


def blocks(language: str) -> list[Block]:
    """Return the fenced blocks of one language; those after a line ``<!-- run -->`` are to be executed."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(2)) + 1}"
            found.append(Block(place, match[2], match[3], match[1] is not None))
    return [block for block in found if block.language == language]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Find the mappings with a ``class_path`` in what yaml holds."""
    if isinstance(node, dict):
        if "class_path" in node:
            yield node
        node = list(node.values())
    for child in node if isinstance(node, list) else []:
        yield from objects(child)


def locate(path: str) -> Any:
    """Import what a dotted path names."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_blocks_compile_and_their_names_exist(block):
    compile(block.text, block.place, "exec")
    for module, names in re.findall(r"^from (lightning_weights\S*) import (.+)$", block.text, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [block for block in blocks("python") if block.runs], ids=lambda block: block.place)
def test_marked_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_yaml_blocks_name_classes_and_arguments_that_exist(block):
    found = list(objects(yaml.safe_load(block.text)))
    assert found
    for part in found:
        unknown = set(part.get("init_args", {})) - set(inspect.signature(locate(part["class_path"])).parameters)
        assert not unknown, f"{part['class_path']} has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE):
        if target.startswith(REPOSITORY):
            assert (ROOT / target.removeprefix(REPOSITORY)).exists(), target
        elif "://" not in target:
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:`|\$ |&& )make ([a-z]+)", text)) <= set(targets)
    commands = {"fit", "increments", "quantize", "stack", "methods", "doctor"}
    assert set(re.findall(r"\$ lightning-weights ([a-z]+)", text)) <= commands
    for name in re.findall(r"(?:configs|examples|benchmarks)/[\w/]+\.(?:yaml|py)", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_every_method_has_its_page_config_example_and_place_in_the_tables(card):
    page = ROOT / "docs" / "methods" / f"{card.key}.md"
    text = page.read_text(encoding="utf-8")
    assert (ROOT / card.config).exists()
    assert (ROOT / card.example).exists()
    assert card.arxiv in text
    assert "```bibtex" in text
    assert {"semantics", "evidence", "where-it-differs-from-the-paper"} <= anchors(page)
    table = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert all(name in table for name in (f"({card.key}.md)", card.config, card.example, card.arxiv))
    assert all(f"`{path.removeprefix('lightning_weights.')}`" in table for path in card.classes)
    assert f"docs/methods/{card.key}.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"methods/{card.key}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_defaults_in_the_table_of_symbols_are_the_constructors(card):
    text = (ROOT / "docs" / "methods" / f"{card.key}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+? \| `(\w+)` \| .+ \| (\S+) \|$", text, re.MULTILINE)
    parameters = inspect.signature(locate(card.classes[0])).parameters
    assert rows
    assert {name: float(value) for name, value in rows} == {name: parameters[name].default for name, _ in rows}


def covered(package: str) -> set[str]:
    """Return what the reference page of a package shows, relative to ``lightning_weights``."""
    text = (ROOT / "docs" / "api" / f"{package}.md").read_text(encoding="utf-8")
    return set(re.findall(r"^::: lightning_weights\.(\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize(
    "package", ["optimizers", "callbacks", "modules", "data", "metrics", "strategies", "runners", "kernels"]
)
def test_every_public_name_is_in_the_reference(package):
    names = importlib.import_module(f"lightning_weights.{package}").__all__
    assert package in covered(package) or {f"{package}.{name}" for name in names} <= covered(package)


@pytest.mark.parametrize("package", ["functional", "kernels"])
def test_every_equation_and_operator_is_in_the_reference(package):
    modules = {path.stem for path in (ROOT / "lightning_weights" / package).glob("[a-z]*")}
    assert {f"{package}.{module}" for module in modules} <= covered(package)


def test_docstrings_use_what_the_reference_renders():
    sources = {path.relative_to(ROOT): path.read_text("utf-8") for path in (ROOT / "lightning_weights").rglob("*.py")}
    singular = [str(path) for path, text in sources.items() if re.search(r"^ *Example:$", text, re.MULTILINE)]
    assert not singular, "name the section 'Examples:'"
    sphinx = [str(path) for path, text in sources.items() if ".. math::" in text]
    assert not sphinx, "write equations between $$"
