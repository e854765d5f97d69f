"""Tables whose headings sort them, on the rendered page as in Jupyter."""

import html
import json

import pandas as pd

from banlib.explorers.frames import asset, mounted

LONG = 40  # characters: a sentence, which is given several lines


class SortableTable:
    """A data frame whose column headings sort it; a third press restores the order.

    caption: what the table shows, as text. digits: decimals of floats. Numbers are sorted as
    numbers; a missing value is a dash and comes last either way. The index is not shown:
    `frame.reset_index()` makes it a column.
    """

    def __init__(self, frame, caption, digits=2):
        self.frame, self.caption, self.digits = frame, caption, digits

    def _repr_html_(self):
        numbers = set(self.frame.select_dtypes("number"))
        numeric = [name in numbers for name in self.frame]
        heads, caption = "", html.escape(self.caption)
        for name, number in zip(self.frame.columns, numeric, strict=True):
            button = f'<button type="button">{html.escape(str(name))}</button>'
            heads += f'<th scope="col"{" class=number" if number else ""}>{button}</th>'
        rows = ""
        for row in self.frame.itertuples(index=False, name=None):
            rows += f"<tr>{''.join(map(self._cell, row, numeric))}</tr>"
        return mounted(
            "div",
            "sortable",
            "table.js",
            f'<style>{asset("table.css")}</style><table class="dataframe"><caption><span>{caption}'
            f"</span></caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
            f' role="region" tabindex="0" aria-label="{caption}"',
        )

    def _cell(self, value, number):
        """One <td>. data-value is what the column is sorted by; a cell without it comes last."""
        kind = " class=number" if number else " class=long" if len(str(value)) > LONG else ""
        if pd.isna(value):
            return f"<td{kind}>\N{EN DASH}</td>"
        text = f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)
        if number and text.startswith("-"):
            text = "\N{MINUS SIGN}" + text[1:]
        # As JavaScript reads numbers: Infinity.
        key = json.dumps(float(value)) if number else html.escape(str(value))
        return f'<td{kind} data-value="{key}">{html.escape(text)}</td>'
