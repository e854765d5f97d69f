"""The rule by which a learning rate is chosen, on made-up errors."""

import pytest

from banlib.campaign import choose_rate


@pytest.mark.parametrize("errors, best, tried", [
    ({0.1: 9, 0.2: 7, 0.4: 6, 0.8: 6.1}, 0.4, [0.1, 0.2, 0.4, 0.8]),
    ({0.1: 9, 0.2: 9, 0.05: 9.5}, 0.1, [0.05, 0.1, 0.2]),
    ({0.1: 9, 0.2: 9.1, 0.05: 8, 0.025: 8}, 0.05, [0.025, 0.05, 0.1, 0.2]),
])  # fmt: skip
def test_the_rate_is_doubled_while_the_error_falls_else_halved(errors, best, tried):
    assert choose_rate(errors.__getitem__) == (best, {rate: errors[rate] for rate in tried})
