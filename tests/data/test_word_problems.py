import re

import pytest

from lightning_weights.data import WordProblems


def test_answers_are_right_and_no_problem_occurs_twice():
    data = WordProblems(train_size=60, validation_size=20, test_size=20, batch_size=20, val_batch_size=20)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    batches = [batch for loader in loaders for batch in loader]
    prompts = [prompt for batch in batches for prompt in batch["prompt"]]
    assert len(set(prompts)) == len(prompts) == 100
    signs = set()
    for prompt, answer in zip(prompts, (a for batch in batches for a in batch["answer"]), strict=True):
        a, b = map(int, re.findall(r"\d+", prompt))
        sign = "-" if "gave" in prompt else "*" if "boxes" in prompt else "+"
        signs.add(sign)
        assert int(answer) == {"-": a - b, "*": a * b, "+": a + b}[sign]
        assert r"\boxed{...}" in prompt
    assert signs == {"-", "*", "+"}


def test_templates_and_bad_arguments():
    data = WordProblems(template="<q>{problem}</q>", train_size=4, validation_size=1, test_size=1, batch_size=4)
    assert all(prompt.startswith("<q>") for prompt in next(iter(data.train_dataloader()))["prompt"])
    with pytest.raises(ValueError, match=r"template is 'problem'; allowed is a text with \{problem\} in it"):
        WordProblems(template="problem")
    with pytest.raises(ValueError, match="highest is 3"):
        WordProblems(highest=3)
    with pytest.raises(ValueError, match="problems are asked for; with highest=9 allowed are"):
        WordProblems(highest=9, train_size=100_000)
