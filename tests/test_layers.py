"""Imports point downwards, devices stay in one room, and files and functions stay small."""

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "lightning_weights"

RANKS = {
    "errors": -1,
    "kernels": 0,
    "functional": 1,
    "modules": 2,
    "metrics": 2,
    "data": 2,
    "optimizers": 3,
    "callbacks": 3,
    "strategies": 3,
    "adapters": 3,
    "runners": 4,
    "cli": 4,
    "methods": 4,
    "doctor": 4,
    "__main__": 4,
    "__init__": 4,
}
STRANGERS = 3  # rooms of this rank do not know each other
PURE = ("kernels", "functional")
FRAMEWORKS = ("lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics", "peft", "transformers", "e3nn")
LINES = {"lightning_weights": 300, "lightning_weights/kernels": 250, "tests": 400, "examples": 300, "benchmarks": 300}
FUNCTION_LINES = 50


@pytest.fixture(autouse=True, scope="module")
def _no_garbage_is_collected() -> Iterator[None]:
    """Syntax trees are many objects without a cycle: looking for garbage would take longer than reading all files."""
    gc.disable()
    yield
    gc.enable()


def imported(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the dotted names that a file imports anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def layer_errors(root: Path) -> list[str]:
    """Return what is wrong with the imports of the package at `root`."""
    errors = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        room, place = room_of(parts), "/".join(parts)
        if room not in RANKS:
            errors.append(f"{place} is in no known room")
            continue
        tree = ast.parse(path.read_text())
        for name in imported(tree, [PACKAGE, *parts[:-1]]):
            errors += [f"{place} imports {name}: {why}" for why in _objections(room, place, name)]
        if room != "kernels" and _uses_cuda(tree):
            errors.append(f"{place} uses torch.cuda: devices belong to kernels")
    return errors


def _objections(room: str, place: str, name: str) -> Iterator[str]:
    top, *rest = name.split(".")
    if top == PACKAGE and rest and rest[0] in RANKS:
        other = rest[0]
        if RANKS[other] > RANKS[room]:
            yield f"{other} is above {room}"
        elif RANKS[other] == RANKS[room] == STRANGERS and other != room:
            yield f"{other} and {room} do not know each other"
    if room in PURE and top in FRAMEWORKS:
        yield f"{room} is plain PyTorch"
    if top == "triton" and room != "kernels":
        yield "triton belongs to kernels"
    if name.startswith("torch.cuda") and room != "kernels":
        yield "devices belong to kernels"
    if top == "pytorch_lightning":
        yield "the package knows one root, lightning.pytorch"
    if top == "peft" and room != "adapters":
        yield "peft belongs to adapters"


def _uses_cuda(tree: ast.AST) -> bool:
    devices = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "cuda")
    return any(isinstance(owner, ast.Name) and owner.id == "torch" for owner in devices)


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every function's name and its number of lines without the docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, length


def test_imports_point_downwards():
    assert not layer_errors(REPOSITORY / PACKAGE)


PLANTED = {
    "an upward import": (
        "functional/classp.py",
        "from lightning_weights.optimizers import CLASSP",
        "optimizers is above",
    ),
    "one inside a function": ("kernels/x.py", "def f():\n    import lightning_weights.data", "data is above kernels"),
    "a relative one": ("kernels/deep/x.py", "from ...functional import classp", "functional is above kernels"),
    "one through the package": ("metrics/x.py", "from lightning_weights import callbacks", "callbacks is above"),
    "a sibling": ("callbacks/x.py", "from lightning_weights.optimizers.classp import CLASSP", "do not know each other"),
    "a framework": ("functional/x.py", "import lightning.pytorch as pl", "functional is plain PyTorch"),
    "metrics in a kernel": ("kernels/x.py", "from torchmetrics import Metric", "kernels is plain PyTorch"),
    "triton above": ("optimizers/x.py", "import triton", "triton belongs to kernels"),
    "a device": ("optimizers/x.py", "import torch\n\nready = torch.cuda.is_available()", "devices belong to kernels"),
    "an imported device": ("modules/x.py", "from torch.cuda import is_available", "devices belong to kernels"),
    "the other root": ("callbacks/x.py", "from pytorch_lightning import Callback", "knows one root"),
    "peft elsewhere": ("modules/x.py", "import peft", "peft belongs to adapters"),
    "a new room": ("utils.py", "", "is in no known room"),
}


@pytest.mark.parametrize(("place", "source", "message"), PLANTED.values(), ids=PLANTED)
def test_the_checker_finds_what_is_planted(tmp_path, place, source, message):
    allowed = {
        "errors.py": "class Bad(RuntimeError): ...",
        "kernels/op.py": "import torch\nimport triton\nfrom ..errors import Bad\ntorch.cuda.is_available()",
        "functional/a.py": "from lightning_weights.kernels.op import step",
        "modules/b.py": "from lightning_weights.metrics import accuracy\nfrom ..functional import a",
        "metrics/accuracy.py": "import torchmetrics",
        "callbacks/c.py": "from lightning_weights.callbacks import d\nfrom lightning_weights.errors import Bad",
        "callbacks/d.py": "from lightning.pytorch import Callback",
        "cli.py": "from lightning_weights import callbacks, optimizers",
    }
    for name, text in allowed.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert not layer_errors(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(source)
    errors = layer_errors(tmp_path)
    assert len(errors) == 1
    assert errors[0].startswith(place)
    assert message in errors[0]


def test_every_room_of_the_package_has_a_rank():
    rooms = {path.name.removesuffix(".py") for path in (REPOSITORY / PACKAGE).iterdir()}
    assert rooms - {"py.typed", "__pycache__"} <= RANKS.keys()


def only_names(path: Path) -> bool:
    """Whether a file does nothing but say where names come from, as the `__init__` of a folder of many parts."""
    return all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in ast.parse(path.read_text()).body)


def test_files_stay_small():
    long = []
    for folder, limit in LINES.items():
        for path in (REPOSITORY / folder).rglob("*.py"):
            inner = [limit for name, limit in LINES.items() if path.is_relative_to(REPOSITORY / name)]
            lines = len(path.read_text().splitlines())
            if lines > min(inner) and not only_names(path):
                long.append(f"{path.relative_to(REPOSITORY)} has {lines} lines, allowed are {min(inner)}")
    assert not sorted(set(long))


def test_functions_stay_small():
    long = [
        f"{path.relative_to(REPOSITORY)}: {name} has {length} lines"
        for path in {path for folder in LINES for path in (REPOSITORY / folder).rglob("*.py")}
        for name, length in function_lengths(path)
        if length > FUNCTION_LINES
    ]
    assert not sorted(long)


def test_function_lengths_leave_out_docstrings(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('def f():\n    """One\n\n    two.\n    """\n    a = 1\n    return a\n')
    assert list(function_lengths(path)) == [("f", 3)]


def test_no_leftovers():
    """Words that promise work instead of doing it."""
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error", "except: " + "pass")
    found = [
        f"{path.relative_to(REPOSITORY)}: {word}"
        for folder in LINES
        for path in (REPOSITORY / folder).rglob("*.py")
        for word in words
        if word in path.read_text()
    ]
    assert not found
