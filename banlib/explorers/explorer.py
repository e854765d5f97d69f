"""An explorer: one ES module over compact data, with a static picture where no script runs.

It is shown twice in one cell: as HTML with the picture and the data, which a rendered page brings
to life by itself (`book.scripts`), and as a widget, which hides the HTML and needs no kernel
either.
"""

import html
import json
import uuid
from pathlib import Path

import anywidget
import traitlets
from IPython.display import display

FOLDER = Path(__file__).parent


def module(kind):
    """The ES module of a kind: what all explorers share, and its own file."""
    files = (FOLDER / f"{name}.js" for name in ("kit", kind))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


class Widget(anywidget.AnyWidget):
    """The same module in Jupyter. figure: id of the HTML that it hides; caption: HTML."""

    _esm = traitlets.Unicode().tag(sync=True)
    _css = FOLDER / "kit.css"
    figure = traitlets.Unicode().tag(sync=True)
    caption = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)


class Explorer:
    """A figure that a reader can play with; the last expression of a cell shows it.

    data: what the module of the kind reads, JSON without NaN; still: HTML of the static picture;
    caption, source, scope (which part of the results it holds): text.
    """

    widget_class = Widget

    def __init__(self, kind, number, data, still, caption, source="", scope=""):
        caption = f"{caption.rstrip('.')}. {scope}" if scope else caption
        self.kind, self.data, self.still = kind, data, still
        self.id = f"explorer-{uuid.uuid4().hex[:8]}"
        self.title = f"Figure {number}." if number else "Live training."
        self.text = f"{self.title} {caption}"
        small = f" <small>{html.escape(source)}</small>" if source else ""
        self.caption = f"<b>{self.title}</b> {html.escape(caption)}{small}"

    def page(self):
        """The figure as HTML. No text in the data can end its script element."""
        data = json.dumps(self.data, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
        return (
            f'<figure class="ban-explorer" id="{self.id}" data-kind="{self.kind}">'
            f'<div class="ban-still">{self.still}</div>'
            f'<script type="application/json">{data}</script>'
            f"<figcaption>{self.caption}</figcaption></figure>"
        )

    def widget(self):
        look = {"_esm": module(self.kind), "figure": self.id, "caption": self.caption}
        return self.widget_class(data=self.data, **look)

    def _ipython_display_(self):
        display({"text/html": self.page(), "text/plain": self.text}, raw=True)
        view = self.widget()._repr_mimebundle_()
        bundle, metadata = view if isinstance(view, tuple) else (view, None)
        bundle["text/plain"] = f"Run this cell in Jupyter to play with {self.title.lower()}"
        display(bundle, metadata=metadata, raw=True)
