"""The one formatter: rounding once, signs, and dashes where there is nothing."""

import math

import numpy as np
import pytest

from banlib.paper import numbers


@pytest.mark.parametrize("value, digits, sign, text", [
    (6.38125, 2, False, "6.38"),
    (10.575, 2, False, "10.58"),  # a half, which the binary value lies a little below
    (10.575 - 1e-14, 2, False, "10.58"),  # the same mean, summed in another order
    (2.5, 0, False, "3"),
    (0.125, 2, False, "0.13"),
    (-0.18, 2, False, "\u22120.18"),
    (-0.001, 2, False, "0.00"),  # no minus before nothing
    (-0.001, 2, True, "+0.00"),
    (0.25, 1, True, "+0.3"),
    (-0.25, 1, True, "\u22120.3"),
    (np.float32(0.5), 2, False, "0.50"),
    (np.int64(50_000), 2, False, "50,000"),
    (3, 2, True, "+3"),
    (1234.5, 1, False, "1,234.5"),
    (1e30, 0, False, "1" + 10 * ",000"),
    (math.inf, 2, False, "∞"),
    (-math.inf, 2, False, "\u2212∞"),
    (None, 2, True, "—"),
    (math.nan, 2, False, "—"),
    (np.float64("nan"), 2, True, "—"),
])  # fmt: skip
def test_a_number_is_rounded_once(value, digits, sign, text):
    assert numbers.number(value, digits, sign) == text


def test_an_interval_has_one_rounding_and_no_nan():
    assert numbers.interval(6.384, 0.411) == "6.38 ± 0.41"
    assert numbers.interval(-2.2349, 0.14, sign=True) == "\u22122.23 ± 0.14"
    assert numbers.interval(2.2, 0.1, digits=1, sign=True) == "+2.2 ± 0.1"
    assert numbers.interval(6.384, None) == numbers.interval(6.384, math.nan) == "6.38"


@pytest.mark.parametrize("p, text", [
    (0.0, "< 0.001"), (6e-15, "< 0.001"), (0.00099, "< 0.001"), (0.0042, "0.004"), (0.02, "0.02"),
    (0.4, "0.40"), (1.0, "1.00"), (math.nan, "—"), (None, "—"),
])  # fmt: skip
def test_a_p_value_is_never_zero(p, text):
    assert numbers.p_value(p) == text


def test_a_number_carries_its_source():
    assert numbers.data(6.38125) == '<data value="6.38125">6.38</data>'
    assert numbers.data(np.float64(-0.5), 1, sign=True) == '<data value="-0.5">\u22120.5</data>'
    assert numbers.data(np.int64(12)) == '<data value="12">12</data>'
    assert numbers.data(math.nan) == "—"
    both = numbers.interval(6.384, 0.411, text=numbers.data)
    assert both == '<data value="6.384">6.38</data> ± <data value="0.411">0.41</data>'
    assert numbers.sourced(1e-9, numbers.p_value(1e-9)) == '<data value="1e-09">&lt; 0.001</data>'
