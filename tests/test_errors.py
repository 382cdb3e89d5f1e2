"""The argument checks: what they let through, and every word of what they say."""

import math
import re
from collections import UserList
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_weights.errors import (
    LightningWeightsError,
    MissingDependencyError,
    check_choice,
    check_number,
    name_list,
)

NOT_NUMBERS = [True, "3", None, 1j, [1.0], torch.tensor(1.0), np.bool_(True), np.array([1.0]), Decimal(1)]


@pytest.mark.parametrize("value", [0, 0.5, 10**20, np.float32(0.1), np.float64(2.0), np.int64(3), Fraction(1, 3)])
def test_real_numbers_pass(value):
    check_number("lr", value, low=0.0)


@pytest.mark.parametrize("value", [0, 2, np.int64(1), np.uint8(2)])
def test_whole_numbers_pass(value):
    check_number("task", value, low=0, high=3, whole=True)


@pytest.mark.parametrize("value", [-1.0, -1e-300, math.nan, math.inf, -math.inf, np.float32("nan"), *NOT_NUMBERS])
def test_bad_numbers_are_refused(value):
    message = f"lr is {value!r}; allowed is a finite number in [0.0, inf)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_number("lr", value, low=0.0)


@pytest.mark.parametrize("value", [-1, 3, 1.0, 2.5, np.float64(1.0), Fraction(1), math.nan, *NOT_NUMBERS])
def test_bad_whole_numbers_are_refused(value):
    message = f"task is {value!r}; allowed is a whole number in [0, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_number("task", value, low=0, high=3, whole=True)


@pytest.mark.parametrize("value", [1.0, 1.5, math.inf])
def test_the_upper_end_is_not_allowed(value):
    check_number("dropout", math.nextafter(1.0, 0.0), low=0.0, high=1.0)
    message = f"dropout is {value}; allowed is a finite number in [0.0, 1.0)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_number("dropout", value, low=0.0, high=1.0)


@pytest.mark.parametrize("value", [0, 0.0, -0.0])
def test_the_lower_end_can_be_excluded(value):
    check_number("power", value, low=0.0)
    check_number("power", 5e-324, low=0.0, low_allowed=False)
    with pytest.raises(ValueError, match=rf"^power is {value}; allowed is a finite number in \(0.0, inf\)$"):
        check_number("power", value, low=0.0, low_allowed=False)


@pytest.mark.parametrize("value", ["papr", None, 3])
def test_choices_are_listed(value):
    check_choice("variant", "paper", ("paper", "reference"))
    with pytest.raises(ValueError, match=f"^variant is {value!r}; allowed are 'paper', 'reference'$"):
        check_choice("variant", value, ("paper", "reference"))


def test_a_missing_package_is_named_as_pip_knows_it():
    error = MissingDependencyError("scikit-learn", "stacking", "PermutedDigits")
    assert isinstance(error, ImportError)
    assert isinstance(error, LightningWeightsError)
    assert str(error) == (
        "PermutedDigits needs the package 'scikit-learn', which is not installed. "
        "Install it with: pip install scikit-learn (extra 'stacking' of lightning-weights)"
    )


@pytest.mark.parametrize("value", [[], ["a"], ("a", "b*"), UserList(["a"])])
def test_lists_of_names_become_plain(value):
    names = name_list("exclude", value)
    assert names == [*value]
    assert type(names) is list


@pytest.mark.parametrize("value", [None, 3, [1], ["a", None], {"a": 1}, {"a"}])
def test_what_is_no_list_of_names_is_refused(value):
    message = f"exclude is {value!r}; allowed is a list of names or None"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        name_list("exclude", value, " or None")


def test_a_single_name_is_told_how_to_be_a_list():
    with pytest.raises(ValueError, match=r"^exclude is 'head'; allowed is a list of names such as \['head'\]$"):
        name_list("exclude", "head")
