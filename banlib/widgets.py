"""Explorers and sortable tables, which a reader can use with and without a kernel.

An explorer is one drawing function with two layers: in Jupyter ipywidgets redraw it with the kernel; on the rendered page
a few lines of JavaScript turn over frames drawn beforehand, so a reader without a kernel moves the same sliders.
"""

import base64
import html
import io
import itertools
import json
import uuid

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd

LONG = 40  # characters: a sentence, which is given several lines in a table
MOST_FRAMES = 64  # the page carries every frame; more would make it heavy


class Explorer:
    """A figure with sliders. Displaying it gives both layers; the front end takes the one it can run.

    draw(**values) -> Figure; describe(**values) -> its alt text; choices: {name: list of values}; start: {name: value}
    shown first (default: the last of each). Raises ValueError if there are more than 64 combinations or an empty choice.
    """

    def __init__(self, draw, describe, choices, start=None):
        count = 1
        for name, values in choices.items():
            count *= len(values)
        if not 1 <= count <= MOST_FRAMES:
            raise ValueError(f"an explorer draws 1 to {MOST_FRAMES} frames, got {count}: offer fewer values")
        self.draw, self.describe, self.choices = draw, describe, choices
        self.start = {name: values[-1] for name, values in choices.items()} | (start or {})

    def frames(self):
        """[(values, alt text, PNG bytes)] of every combination, the last slider turning fastest."""
        found = []
        for combination in itertools.product(*self.choices.values()):
            values = dict(zip(self.choices, combination))
            found.append((values, self.describe(**values), png(self.draw(**values))))
        return found

    def page(self):
        """The kernel-free layer as HTML: labelled range inputs, an image, and the frames."""
        mark = f"explorer-{uuid.uuid4().hex[:8]}"
        frames = self.frames()
        first = [values for values, _, _ in frames].index(self.start)
        data = {
            "choices": [[str(value) for value in values] for values in self.choices.values()],
            "frames": [[alt, base64.b64encode(raw).decode()] for _, alt, raw in frames],
        }
        sliders = "".join(
            f'<label>{html.escape(name)} <input type="range" min="0" max="{len(values) - 1}" step="1" '
            f'value="{values.index(self.start[name])}"{" disabled" if len(values) == 1 else ""}> '
            f"<output>{html.escape(str(self.start[name]))}</output></label> "
            for name, values in self.choices.items()
        )
        alt, raw = data["frames"][first]
        return (
            f'<figure class="explorer" id="{mark}"><div class="explorer-sliders">{sliders}</div>'
            f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{raw}">'
            f"<noscript>The sliders need JavaScript; the picture shows their starting position.</noscript>"
            f'<script type="application/json">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>'
            f"<script>{SCRIPT % json.dumps(mark)}</script></figure>"
        )

    def widget(self):
        """The Jupyter layer: bounded sliders over the same drawing function."""
        sliders = {
            name: ipywidgets.SelectionSlider(options=values, value=self.start[name], description=name,
                                             continuous_update=False, disabled=len(values) == 1)
            for name, values in self.choices.items()
        }  # fmt: skip
        picture = ipywidgets.Image(format="png")

        def show(change=None):
            values = {name: slider.value for name, slider in sliders.items()}
            picture.value, picture.alt = png(self.draw(**values)), self.describe(**values)

        for slider in sliders.values():
            slider.observe(show, names="value")
        show()
        return ipywidgets.VBox([ipywidgets.HBox(list(sliders.values())), picture])

    def _repr_mimebundle_(self, **kwargs):
        # A front end with widgets prefers the first, a rendered page is told (nb_mime_priority_overrides) to take HTML.
        return self.widget()._repr_mimebundle_(**kwargs) | {"text/html": self.page()}


SCRIPT = """(() => {
  const root = document.getElementById(%s), image = root.querySelector("img");
  const inputs = [...root.querySelectorAll("input")], outputs = root.querySelectorAll("output");
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const show = () => {
    let frame = 0;
    inputs.forEach((input, i) => {
      frame = frame * data.choices[i].length + +input.value;
      outputs[i].textContent = data.choices[i][input.value];
      input.setAttribute("aria-valuetext", data.choices[i][input.value]);
    });
    [image.alt, image.src] = [data.frames[frame][0], "data:image/png;base64," + data.frames[frame][1]];
  };
  inputs.forEach(input => input.addEventListener("input", show));
})();"""


def png(figure):
    """A figure as PNG bytes; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


class SortableTable:
    """A data frame whose column headings sort it, on the rendered page as in Jupyter; a third press restores the order.

    caption: what the table shows, as text. digits: decimals of floats. Numbers are sorted as numbers; a missing value is a
    dash and comes last either way. The index is not shown: `frame.reset_index()` makes it a column.
    """

    def __init__(self, frame, caption, digits=2):
        self.frame, self.caption, self.digits = frame, caption, digits

    def _repr_html_(self):
        mark = f"sortable-{uuid.uuid4().hex[:8]}"
        numeric = [pd.api.types.is_numeric_dtype(kind) and kind != bool for kind in self.frame.dtypes]
        heads = "".join(
            f'<th scope="col"{" class=number" if number else ""}><button type="button">{html.escape(str(name))}'
            "</button></th>"
            for name, number in zip(self.frame.columns, numeric)
        )
        rows = "".join(
            f"<tr>{''.join(self._cell(value, number) for value, number in zip(row, numeric))}</tr>"
            for row in self.frame.itertuples(index=False, name=None)
        )
        caption = html.escape(self.caption)
        return (
            f'<div class="sortable" id="{mark}" role="region" tabindex="0" aria-label="{caption}">'
            f'{LOOK}<table class="dataframe"><caption><span>{caption}</span></caption><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table><script>{SORT % json.dumps(mark)}</script></div>"
        )

    def _cell(self, value, number):
        """One <td>. data-value is what the column is sorted by; a cell without it comes last."""
        kind = " class=number" if number else " class=long" if len(str(value)) > LONG else ""
        if pd.isna(value):
            return f"<td{kind}>\N{EN DASH}</td>"
        text = f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)
        if number and text.startswith("-"):
            text = "\N{MINUS SIGN}" + text[1:]
        key = json.dumps(float(value)) if number else html.escape(str(value))  # as JavaScript reads numbers: Infinity
        return f'<td{kind} data-value="{key}">{html.escape(text)}</td>'


LOOK = """<style>
.sortable { max-width: 100%; overflow-x: auto; }
.sortable caption { caption-side: top; text-align: left; }
.sortable caption span { display: inline-block; position: sticky; left: 0; max-width: min(100%, 100vw - 3rem); }
.sortable table.dataframe :is(th, td) { white-space: nowrap; }
.sortable table.dataframe .long { white-space: normal; min-width: 32rem; }
.sortable th button { all: unset; cursor: pointer; font-weight: bold; white-space: nowrap; }
.sortable th button:focus-visible { outline: 2px solid; }
.sortable th button::after { content: " \\2195"; opacity: 0.5; }
.sortable th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
.sortable th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
.sortable table.dataframe :is(th, td):not(.number) { text-align: left; }
.sortable table.dataframe :is(th, td).number { text-align: right; font-variant-numeric: tabular-nums; }
</style>"""
# Array.sort is stable, and every sort starts from the first order, so equal rows stay in it.
SORT = """(() => {
  const root = document.getElementById(%s), body = root.querySelector("tbody"), rows = [...body.rows];
  const heads = [...root.querySelectorAll("th")], next = {none: "ascending", ascending: "descending", descending: "none"};
  heads.forEach((head, column) => {
    const number = head.classList.contains("number"), key = row => row.cells[column].dataset.value;
    const compare = (a, b) => number ? a - b : a.localeCompare(b, "en", {numeric: true});
    head.setAttribute("aria-sort", "none");
    head.querySelector("button").addEventListener("click", () => {
      const order = next[head.getAttribute("aria-sort")], sign = order === "descending" ? -1 : 1;
      heads.forEach(other => other.setAttribute("aria-sort", other === head ? order : "none"));
      body.append(...(order === "none" ? rows : [...rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        return a === undefined || b === undefined ? (a === undefined) - (b === undefined) : sign * compare(a, b);
      })));
    });
  });
})();"""
