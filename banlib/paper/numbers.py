"""The one formatter: a number reads alike in tables, figures and prose."""

import html
import math
import re
from decimal import ROUND_HALF_UP, Decimal, localcontext
from numbers import Integral

MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EM DASH}"
NOISE = 9  # decimals; sums taken in another order differ beyond them, and must not round apart


def number(value, digits=2, sign=False):
    """A value in words of its own: "6.38", "−0.18", "50,000"; a dash for None and NaN.

    digits: decimals of a float, halves rounded away from zero; an int has none. sign: show + too.
    """
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        text = "\N{INFINITY}"
    elif isinstance(value, Integral):
        text = f"{abs(int(value)):,}"
    else:
        with localcontext(rounding=ROUND_HALF_UP):
            text = f"{Decimal(repr(round(abs(float(value)), NOISE))):,.{digits}f}"
    zero = not any(digit in text for digit in "123456789\N{INFINITY}")
    return (MINUS if value < 0 and not zero else "+" if sign else "") + text


def interval(mean, half, digits=2, sign=False, text=number):
    """A mean with half of its interval, "6.38 ± 0.41"; without a half the mean alone.

    text: `number`, or `data` for Markdown and tables.
    """
    nothing = half is None or math.isnan(half)
    middle = text(mean, digits, sign)
    return middle if nothing else f"{middle} ± {text(half, digits)}"


def p_value(p):
    """A p-value: "< 0.001", "0.004", "0.02"."""
    if p is not None and p < 0.001:
        return "< 0.001"
    return number(p, 3 if p is not None and p < 0.01 else 2)


def data(value, digits=2, sign=False):
    """`number` with its source, for Markdown and HTML: '<data value="6.38125">6.38</data>'."""
    return sourced(value, number(value, digits, sign))


def sourced(value, text):
    """A text, and the number that it was made from; a dash has none."""
    if text == NOTHING:
        return text
    source = int(value) if isinstance(value, Integral) else float(value)
    return f'<data value="{source!r}">{html.escape(text)}</data>'


def plain(text):
    """Markdown with `data` in it, as a terminal shows it."""
    return html.unescape(re.sub("<[^>]+>|`", "", text))
