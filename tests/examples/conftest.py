"""Examples are scripts: they import each other's files by bare names, from their own folder."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture(autouse=True)
def _coarse_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw with few pixels: nobody looks at these plots."""
    monkeypatch.setitem(importlib.import_module("_plots").STYLE, "savefig.dpi", 50)
