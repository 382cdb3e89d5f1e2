import pytest

from lightning_weights.modules import AccuracyReward, BrevityReward, ClarityReward


@pytest.mark.parametrize(
    ("text", "answer", "want"),
    [
        (r"\boxed{42}", "42", 1.0),
        (r"\boxed{41} or rather \boxed{ 42.0 }", "42", 1.0),
        (r"\boxed{42} or rather \boxed{41}", "42", 0.0),
        (r"\boxed{1,024}", "1024", 1.0),
        (r"\boxed{x + 1}", "x + 1", 1.0),
        (r"\boxed{1,024}", "1,024", 1.0),
        (r"\boxed{(1,2)}", "(12)", 0.0),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", 1.0),
        (r"\boxed{\sqrt{\frac{1}{2}}} and \boxed{", r"\sqrt{\frac{1}{2}}", 1.0),
        (r"\boxed{}", "", 0.0),
        (r"\boxed{ }", " ", 0.0),
        ("42", "42", 0.0),
    ],
)
def test_answers_in_boxes(text, answer, want):
    assert AccuracyReward()(completions=[text], answer=[answer]) == [want]


def test_other_answers():
    reward = AccuracyReward(r"\d", column="sum")
    assert reward(completions=["S.1S7.", "3", ""], sum=["7", "4", "0"]) == [1.0, 0.0, 0.0]
    assert AccuracyReward(r"= (\d+)", "sum")(completions=[[{"role": "assistant", "content": "1 = 12"}]], sum=[12]) == [
        1.0
    ]
    with pytest.raises(ValueError, match="column is 'sum', but the data has the columns: answer"):
        reward(completions=["1"], answer=["1"])
    with pytest.raises(ValueError, match=r"pattern is '\('; allowed is a regular expression"):
        AccuracyReward("(")


def test_brevity_follows_the_running_mean():
    reward = BrevityReward()
    assert reward(completions=["", ""], completion_ids=[[1] * 4, [1] * 6]) == [1.0, 0.0]
    assert reward(completions=["", ""], completion_ids=[[1] * 5, [1]]) == [0.0, 1.0]  # the mean is 4 now
    again = BrevityReward()
    again.load_state_dict(reward.state_dict())
    batch = {"completions": [""], "completion_ids": [[1] * 3]}
    assert again(**batch) == reward(**batch) == [1.0]
    before = reward.state_dict()
    assert reward.evaluate(**batch) == [3.0]
    assert reward.state_dict() == before


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1. add\n2. multiply\n\\boxed{3}", 1.0),
        ("a) add\nb) multiply\n\\boxed{3}", 1.0),
        ("Step 1: add\nStep 2: multiply\n\\boxed{3}", 1.0),
        ("- add\n* multiply\n\\boxed{3}", 1.0),
        ("**Step 1:** add\n**Step 2**: multiply\n\\boxed{3}", 1.0),
        ("**1. Add** this\n### 2) Multiply\n\\boxed{3}", 1.0),
        ("**Add** this\n**Multiply** it\n\\boxed{3}", 0.0),
        ("First we add, then we multiply: \\boxed{3}", 1.0),
        ("1. add\nthen \\boxed{3}", 0.0),
        ("1. add\n2. multiply", 0.0),
        ("1. add\n2. multiply\n\\boxed{ }", 0.0),
    ],
)
def test_clear_texts(text, want):
    assert ClarityReward()(completions=[text]) == [want]


def test_other_marks_and_names_for_trl():
    assert ClarityReward("", "S", "", 3)(completions=["SSS", "SS"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="minimum is 0"):
        ClarityReward(minimum=0)
    with pytest.raises(ValueError, match="steps is"):
        ClarityReward(steps="[")
    assert [reward.__name__ for reward in (AccuracyReward(), BrevityReward(), ClarityReward())] == [
        "accuracy",
        "brevity",
        "clarity",
    ]
