"""Sentences in styles: what is asked for, what is served, and what is held out."""

import pytest
import torch

from lightning_weights.data import StyledSentences
from lightning_weights.data.styles import HELD_OUT, STYLES, Fact

pytest.importorskip("transformers")
SIZES = {"train_size": 20, "validation_size": 5, "test_size": 5}


def test_styles_exclude_each_other():
    fact = Fact("Anna", 3, "apples", "box")
    texts = [style.write(fact) for style in STYLES.values()]
    assert len({fact.sentence, *texts}) == 7
    assert all(len(set(style.instructions)) == len(style.instructions) > HELD_OUT for style in STYLES.values())
    assert len({words for style in STYLES.values() for words in style.instructions}) == 6 * 8


@pytest.mark.parametrize("new_words", [True, False])
def test_parts_share_no_sentence_and_new_words_are_new(new_words):
    train, validation, test = StyledSentences(**SIZES, new_words=new_words).requests()
    assert [len(part) for part in (train, validation, test)] == [120, 30, 30]
    assert len({request.fact for request in (*train, *validation, *test)}) == 30
    assert [request.style for request in train[:12]] == [*range(6)] * 2
    known = {request.instruction for request in train}
    asked = {request.instruction for request in (*validation, *test)}
    assert (not asked & known) == new_words
    owners = {words: number for number, style in enumerate(STYLES.values()) for words in style.instructions}
    assert all(owners[request.instruction] == request.style for request in (*train, *test))


def test_batches_hold_prompts_and_answers():
    data = StyledSentences(**SIZES, batch_size=8, template="{instruction} {sentence} ->")
    batch, requests = next(iter(data.val_dataloader())), data.requests()[1][:8]
    assert batch["condition"] == [request.instruction for request in requests]
    assert batch["task"].tolist() == [request.style for request in requests]
    assert set(batch["inputs"]) == {"input_ids", "attention_mask", "labels"}
    for row, request in enumerate(requests):
        tokens, labels = batch["inputs"]["input_ids"][row], batch["inputs"]["labels"][row]
        kept = batch["inputs"]["attention_mask"][row].bool()
        text = data.tokenizer.decode(tokens[kept])
        assert text == f"{request.instruction} {request.fact.sentence} -> {request.answer}</s>"
        assert data.tokenizer.decode(tokens[labels != -100]) == f" {request.answer}</s>"
        assert torch.equal(labels[labels != -100], tokens[labels != -100])


def test_order_and_samples_are_the_seeds():
    state = torch.random.get_rng_state()
    first, second, other = (StyledSentences(**SIZES, seed=seed) for seed in (0, 0, 1))
    ours, theirs = (next(iter(data.train_dataloader())) for data in (first, second))
    assert ours["condition"] == theirs["condition"]
    assert torch.equal(ours["inputs"]["input_ids"], theirs["inputs"]["input_ids"])
    assert next(iter(first.train_dataloader()))["condition"] != ours["condition"]
    assert other.requests() != first.requests()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_size": 0}, "train_size is 0"),
        ({"template": "no place"}, "template is 'no place'"),
        ({"train_size": 10**6}, r"1000010 sentences are asked for; allowed are 7680 at most"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"new_words": "yes"}, "new_words is 'yes'"),
    ],
    ids=str,
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        StyledSentences(**{**SIZES, **change})
