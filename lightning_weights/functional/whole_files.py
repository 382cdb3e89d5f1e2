"""Files that are there with all their content or as they were before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Give a path to write to inside a ``with`` block, which takes the place of the file when the block ends.

    A process that is killed before leaves the file as it was; after an exception the part written is removed, too. The
    file keeps the permissions that it had, and a new one has those of new files.

    Args:
        path: The file; its folder is made if it is not there.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "there", "numbers.txt")
        >>> with replacing_file(file) as part:
        ...     _ = part.write_text("1 2 3")
        >>> file.read_text(), len(list(file.parent.iterdir()))
        ('1 2 3', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # with the process's number: two programs that write the same file do not write into each other's
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # some writers, safetensors' among them, make files that only their owner can read
        part.touch()
        mode = (path if path.exists() else part).stat().st_mode
        part.unlink()
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
