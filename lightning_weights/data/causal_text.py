"""Text for language models: CPython's own documentation of the language, or any text files."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_weights.data._token_data import Sequences, TokenData, pad
from lightning_weights.errors import check_choice, check_number

PYDOC = "pydoc"
SUFFIXES = (".txt", ".md", ".rst")
SHARED = 60  # characters from which on a paragraph that two documents share makes them one for the split


class CausalText(TokenData):
    """Serve text in sequences of tokens, split into training, validation and test by whole documents.

    The text is that of Python's ``help()`` topics, which comes with CPython (some 80 documents and 460,000 characters;
    it differs between releases of Python), or that of files. Equal documents count once, and documents that share a
    paragraph of 60 characters or more end up in the same part, so that nothing is validated that was trained on.

    Batches are dicts of ``input_ids``, ``attention_mask`` and ``labels``, int64 of shape (N, T); labels are the tokens,
    with -100 in the padding. Packed, all documents of a part follow each other, each closed by the token for the end of
    a text, and are cut into sequences of ``length`` tokens, so that a sequence may hold the end of one document and the
    start of the next, which attend to each other; a rest shorter than ``length`` at the end of a part is left out.
    Padded, every document is cut on its own, and its last sequence is filled up to the longest of the batch.

    Args:
        source: ``pydoc``, or files and folders; of a folder, all ``.txt``, ``.md`` and ``.rst`` files in it and below.
        tokenizer: ``bytes`` (ByT5's, 384 tokens), or where a tokenizer comes from, as for ``modules.CausalLM``.
        length: Tokens per sequence, at most.
        packed: Whether documents share sequences, see above.
        batch_size: Sequences per batch.
        validation_share: Share of the text, about, that is set aside for validation.
        test_share: Share of the text, about, that is set aside for the test. 0: the test serves validation sequences.
        separator: Text between the documents of one file. ``None``: every file is one document.
        seed: Seed of the split and of the order of the training sequences.
        shuffle: Whether training sequences come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> data = CausalText(length=64, batch_size=2)
        >>> batch = next(iter(data.val_dataloader()))
        >>> {name: tuple(value.shape) for name, value in batch.items()}
        {'input_ids': (2, 64), 'attention_mask': (2, 64), 'labels': (2, 64)}
    """

    def __init__(
        self,
        source: str | list[str] = PYDOC,
        tokenizer: str = "bytes",
        length: int = 256,
        packed: bool = True,
        batch_size: int = 8,
        validation_share: float = 0.1,
        test_share: float = 0.0,
        separator: str | None = None,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_number("length", length, low=2, whole=True)
        check_number("validation_share", validation_share, low=0.0, high=1.0, low_allowed=False)
        check_number("test_share", test_share, low=0.0, high=1.0 - validation_share)
        check_choice("packed", packed, [True, False])
        if separator == "" or not isinstance(separator, str | None):
            raise ValueError(f"separator is {separator!r}; allowed is a text of at least one character, or None")
        super().__init__(tokenizer, batch_size, seed, shuffle, num_workers, drop_last)
        self.source = source if isinstance(source, str) else list(source)
        self.length = length
        self.packed = packed
        self.shares = (validation_share, test_share)
        self.separator = separator
        self.save_hyperparameters(logger=False)  # a logger refuses a name that the module has with another value

    def documents(self) -> tuple[list[str], list[str], list[str]]:
        """Return the training, validation and test documents.

        Raises:
            FileNotFoundError: If a file or folder isn't there, or a folder has no text files.
            ValueError: If the documents can't be split.
        """
        texts = list(dict.fromkeys(text for text in self._read() if text.strip()))
        parts = _split(texts, self.shares, torch.Generator().manual_seed(self.seed))
        wanted = [part for part, share in zip(parts, (1.0, *self.shares), strict=True) if share]
        if not all(wanted):
            raise ValueError(
                f"source={self.source!r} has {len(texts)} different documents, too few or too closely related to be"
                f" split into {len(wanted)} parts by whole documents: give more files, or a separator that divides them"
            )
        return parts if parts[2] else (*parts[:2], parts[1])

    def load(self) -> tuple[Sequences, Sequences, Sequences]:
        """Return the training, validation and test sequences.

        Raises:
            FileNotFoundError: If a file or folder isn't there, or a folder has no text files.
            MissingDependencyError: If transformers or gguf isn't installed.
            ValueError: If the documents can't be split, or, packed, a part is shorter than one sequence.
        """
        cut = self._pack if self.packed else self._pad
        train, validation, test = map(cut, self.documents())
        return train, validation, test

    def _pack(self, documents: Sequence[str]) -> Sequences:
        stream = [token for text in documents for token in (*self.encode(text), self.end)]
        count = len(stream) // self.length
        if count == 0:
            raise ValueError(
                f"length is {self.length}, and one part has only {len(stream)} tokens: take a smaller length, or"
                " packed=False"
            )
        tokens = torch.tensor(stream[: count * self.length]).reshape(count, self.length)
        return Sequences(tokens, torch.full((count,), self.length), torch.zeros(count, dtype=torch.long))

    def _pad(self, documents: Sequence[str]) -> Sequences:
        rows = []
        for text in documents:
            tokens = [*self.encode(text), self.end]
            pieces = [tokens[start : start + self.length] for start in range(0, len(tokens), self.length)]
            rows += [piece for piece in pieces if len(piece) > 1]  # a single token predicts nothing
        return pad(rows, self.padding)

    def _read(self) -> list[str]:
        if self.source == PYDOC:
            from pydoc_data.topics import topics  # half a megabyte of text that few need

            return list(topics.values())
        sources = [self.source] if isinstance(self.source, str) else self.source
        texts = [path.read_text(encoding="utf-8") for source in sources for path in _files(source)]
        return texts if self.separator is None else [part for text in texts for part in text.split(self.separator)]


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise FileNotFoundError(
            f"source={source!r} is no text file, and no folder with {', '.join(SUFFIXES)} files; allowed is also"
            f" {PYDOC!r}"
        )
    return found


def _split(
    texts: Sequence[str], shares: tuple[float, float], generator: torch.Generator
) -> tuple[list[str], list[str], list[str]]:
    """Deal groups of related documents out in random order: to the test, then to validation, the rest to training.

    A part takes a group if that brings it closer to its share of the characters, and one group, the smallest, anyway.
    """
    groups = _related(texts)
    groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    sizes = {id(group): sum(len(texts[i]) for i in group) for group in groups}
    total, parts = sum(sizes.values()), []
    for share in reversed(shares):
        taken, missing = [], share * total
        for group in groups if share else []:
            if sizes[id(group)] <= 2 * missing:
                taken.append(group)
                missing -= sizes[id(group)]
        if share and groups and not taken:
            taken = [min(groups, key=lambda group: sizes[id(group)])]
        gone = set(map(id, taken))
        groups = [group for group in groups if id(group) not in gone]
        parts.append(taken)
    test, validation = parts
    chosen = (sorted(i for group in part for i in group) for part in (groups, validation, test))
    train, validation, test = ([texts[i] for i in part] for part in chosen)
    return train, validation, test


def _related(texts: Sequence[str]) -> list[list[int]]:
    """Return the indices of the documents in groups, so that no two groups share a long paragraph."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        for paragraph in re.split(r"\n\s*\n", text):
            words = " ".join(paragraph.split())
            if len(words) >= SHARED:
                parent[root(i)] = root(first.setdefault(words, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(texts)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())
