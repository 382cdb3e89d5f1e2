"""Text: whole documents per part, packed and padded sequences, and what is refused."""

import itertools
import re
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.data import CausalText
from lightning_weights.data.causal_text import _split


@pytest.fixture
def folder(tmp_path):
    """A folder of ten files of a thousand characters each, some of them below others."""
    (tmp_path / "inner").mkdir()
    for i in range(10):
        path = tmp_path / ("inner" if i % 2 else ".") / f"{i}.{('txt', 'md', 'rst')[i % 3]}"
        path.write_text(f"document {i} " * 91, encoding="utf-8")
    (tmp_path / "other.py").write_text("not text")
    return tmp_path


def decoded(part):
    """Return the bytes of all sequences of a packed part as text, with a line break for the end of a document."""
    tokens = part.sequences.input_ids.flatten()
    return bytes(10 if token == 1 else token - 3 for token in tokens.tolist()).decode(errors="replace")


def paragraphs(texts):
    split = itertools.chain.from_iterable(re.split(r"\n\s*\n", text) for text in texts)
    return {words for part in split if len(words := " ".join(part.split())) >= 60}


def test_pydoc_is_split_by_documents_that_share_nothing():
    parts = CausalText(test_share=0.1).documents()
    everything = set(topics.values())
    assert set().union(*parts) == everything
    assert sum(map(len, parts)) == len(everything)
    for one, other in itertools.combinations(parts, 2):
        assert not paragraphs(one) & paragraphs(other)
    sizes = [sum(map(len, part)) / sum(map(len, everything)) for part in parts]
    assert sizes == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_topics_that_repeat_each_other_stay_together():
    parts = CausalText().documents()
    whole = paragraphs([topics["compound"]])
    parents = next(part for part in parts if topics["compound"] in part)
    for name in ("if", "while", "for", "try", "with"):
        statement = paragraphs([topics[name]])
        assert len(statement & whole) > len(statement) / 2, "the topic would leak from one part into the other"
        assert topics[name] in parents


@given(
    st.lists(st.text("ab\n", min_size=1, max_size=200), min_size=3, max_size=30, unique=True),
    st.sampled_from([(0.1, 0.0), (0.3, 0.3), (0.9, 0.05)]),
    st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_splits_lose_no_document_and_share_no_paragraph(texts, shares, seed):
    parts = _split(texts, shares, torch.Generator().manual_seed(seed))
    assert sorted(itertools.chain.from_iterable(parts)) == sorted(texts)
    assert not any(paragraphs(a) & paragraphs(b) for a, b in itertools.combinations(parts, 2))
    assert shares[1] > 0 or not parts[2]


def test_packed_sequences_are_the_documents_one_after_another(folder):
    data = CausalText(str(folder), length=100, validation_share=0.2)
    data.setup()
    for part, texts in zip(data._parts, data.documents(), strict=True):
        whole = "".join(text + "\n" for text in texts)
        assert decoded(part) == whole[: len(whole) // 100 * 100]
    batch = next(iter(data.train_dataloader()))
    assert {name: value.shape for name, value in batch.items()} == dict.fromkeys(batch, (8, 100))
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["attention_mask"].all()


def test_padded_sequences_hold_one_document_each(folder):
    data = CausalText([str(folder / "0.txt"), str(folder / "inner")], length=400, packed=False, batch_size=3)
    data.setup()
    rows = {"train": [], "val": []}
    for name, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        for batch in loader:
            widths = batch["attention_mask"].sum(1)
            assert widths.max() == batch["input_ids"].shape[1] <= 400
            assert torch.equal(batch["labels"], batch["input_ids"].where(batch["attention_mask"] == 1, -100))
            rows[name] += [tokens[:width].tolist() for tokens, width in zip(batch["input_ids"], widths, strict=True)]
    expected = []
    for text in data.documents()[0]:
        tokens = [*(byte + 3 for byte in text.encode()), 1]
        expected += [tokens[i : i + 400] for i in range(0, len(tokens), 400)]
    assert sorted(rows["train"]) == sorted(expected)
    assert len(rows["val"]) == 3  # 1001 characters


def test_a_separator_makes_documents_of_one_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n%%\n".join(f"chapter {i} " * 20 for i in range(12)) + "\n%%\n  ", encoding="utf-8")
    parts = CausalText(str(path), separator="\n%%\n", validation_share=0.2).documents()
    assert sum(map(len, parts[:2])) == 12
    with pytest.raises(ValueError, match="has 1 different documents, too few"):
        CausalText(str(path)).documents()


def test_orders_differ_between_epochs_and_repeat_with_the_seed(folder):
    def epochs(seed):
        data = CausalText(str(folder), length=50, seed=seed)
        return [torch.cat([batch["input_ids"] for batch in data.train_dataloader()]) for _ in range(2)]

    before = torch.get_rng_state()
    first, second = epochs(0)
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert all(map(torch.equal, epochs(0), (first, second)))
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_files_are_named(tmp_path):
    for source in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(
            FileNotFoundError, match=re.escape(f"source={str(source)!r} is no text file, and no folder")
        ):
            CausalText(str(source)).documents()


def test_a_part_shorter_than_one_sequence_is_told(folder):
    with pytest.raises(ValueError, match=r"^length is 5000, and one part has only 1002 tokens"):
        CausalText(str(folder), length=5000).setup()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("length", 1),
        ("validation_share", 0.0),
        ("validation_share", 1.0),
        ("test_share", 0.9),
        ("packed", "yes"),
        ("separator", ""),
        ("batch_size", 0),
    ],
)
def test_wrong_arguments_are_named(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name} is {wrong!r}; allowed"):
        CausalText(**{name: wrong})
