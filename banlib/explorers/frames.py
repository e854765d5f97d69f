"""Explorers: figures with sliders that a reader moves with and without a kernel.

One drawing function has two layers: in Jupyter, ipywidgets redraw it with the kernel; on the
rendered page a few lines of JavaScript turn over frames drawn beforehand.
"""

import base64
import html
import io
import itertools
import json
import math
import uuid
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt

MOST_FRAMES = 64  # the page carries every frame; more would make it heavy


class Explorer:
    """A figure with sliders. Displaying it gives both layers; the front end takes the one it can.

    draw(**values) -> Figure; describe(**values) -> its alt text; choices: {name: list of values};
    start: {name: value} shown first (default: the last of each). Raises ValueError if there are
    more than 64 combinations or an empty choice.
    """

    def __init__(self, draw, describe, choices, start=None):
        count = math.prod(map(len, choices.values()))
        if not 1 <= count <= MOST_FRAMES:
            expected = f"an explorer draws 1 to {MOST_FRAMES} frames"
            raise ValueError(f"{expected}, got {count}: offer fewer values")
        self.draw, self.describe, self.choices = draw, describe, choices
        self.start = {name: values[-1] for name, values in choices.items()} | (start or {})

    def frame(self, values):
        """(alt text, PNG bytes)."""
        return self.describe(**values), png(self.draw(**values))

    def page(self):
        """The kernel-free layer as HTML: labelled range inputs, an image, and the frames."""
        combinations = itertools.product(*self.choices.values())  # the last slider turns fastest
        choices = [dict(zip(self.choices, values, strict=True)) for values in combinations]
        frames = [(alt, base64.b64encode(raw).decode()) for alt, raw in map(self.frame, choices)]
        texts = [list(map(str, values)) for values in self.choices.values()]
        data = json.dumps({"choices": texts, "frames": frames}).replace("<", r"\u003c")
        alt, raw = frames[choices.index(self.start)]
        return mounted(
            "figure",
            "explorer",
            "explorer.js",
            f'<div class="explorer-sliders">{"".join(map(self._slider, self.choices))}</div>'
            f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{raw}"><noscript>The '
            "sliders need JavaScript; the picture shows their starting position.</noscript>"
            f'<script type="application/json">{data}</script>',
        )

    def _slider(self, name):
        values, start = self.choices[name], self.start[name]
        limits = f'min="0" max="{len(values) - 1}" step="1" value="{values.index(start)}"'
        limits += " disabled" if len(values) == 1 else ""
        output = f"<output>{html.escape(str(start))}</output>"
        return f'<label>{html.escape(name)} <input type="range" {limits}> {output}</label> '

    def widget(self):
        """The Jupyter layer: bounded sliders over the same drawing function."""
        sliders, picture = {}, ipywidgets.Image(format="png")

        def show(change=None):
            values = {name: slider.value for name, slider in sliders.items()}
            picture.alt, picture.value = self.frame(values)

        for name, values in self.choices.items():
            look = {"description": name, "continuous_update": False, "disabled": len(values) == 1}
            slider = ipywidgets.SelectionSlider(options=values, value=self.start[name], **look)
            slider.observe(show, names="value")
            sliders[name] = slider
        show()
        return ipywidgets.VBox([ipywidgets.HBox(list(sliders.values())), picture])

    def _repr_mimebundle_(self, **kwargs):
        # A front end with widgets prefers the first; for a page the builder drops it.
        return self.widget()._repr_mimebundle_(**kwargs) | {"text/html": self.page()}


def mounted(tag, kind, script, content, attributes=""):
    """HTML with a script of this folder that runs on it: each has an id of its own."""
    mark = f"{kind}-{uuid.uuid4().hex[:8]}"
    code = asset(script).replace("{mark}", json.dumps(mark))
    opening = f'<{tag} class="{kind}" id="{mark}"{attributes}>'
    return f"{opening}{content}<script>{code}</script></{tag}>"


def asset(name):
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def png(figure):
    """A figure as PNG bytes; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
