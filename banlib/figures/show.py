"""How chapters show what they have: figures and tables with a number and a caption, and sentences.

Every output is one display that reads without a style sheet. Where numbers come from is said in
the caption, not in the picture.
"""

import base64
import html
import io
import re

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display
from PIL import Image

from banlib.figures import style
from banlib.paper import numbers

STYLE = (
    "<style>.ban-panels { display: flex; flex-wrap: wrap; gap: 1rem } .ban-scroll { overflow-x: "
    "auto } .ban-table :is(td, th) { padding: 0.2rem 0.6rem; text-align: left } .ban-table tbody > "
    "tr > * { white-space: nowrap } .ban-table tbody .long { white-space: normal; min-width: 20rem "
    "} .ban-table .number { text-align: right; font-variant-numeric: tabular-nums }</style>"
)
LONG = 40  # characters: a sentence, which may take several lines


def figure(number, panels, caption, alt, source, png=False):
    """One or more matplotlib Figures under one caption, such as number "2.3"; they are closed.

    alt: what the picture shows, a text, or one for each panel. source: provenance, set small.
    png: also give `image/png`, the panels side by side, and name the output "headline" in its
    metadata; the builder takes the picture of the README from there.
    """
    panels = panels if isinstance(panels, list | tuple) else [panels]
    many = f" (panel {{}} of {len(panels)})" if len(panels) > 1 else ""
    if isinstance(alt, str):
        alt = [alt + many.format(place + 1) for place in range(len(panels))]
    images = "".join(_image(panel, text) for panel, text in zip(panels, alt, strict=True))
    mark = f"figure-{number.replace('.', '-')}"
    bundle = {
        "text/html": f'<figure class="ban-figure" id="{mark}">{STYLE}<div class="ban-panels">'
        f"{images}</div>{_caption('Figure', number, caption, source)}</figure>",
        "text/plain": f"Figure {number}. {caption}",
    }
    if png:
        bundle["image/png"] = _row(panels)
    display(bundle, raw=True, metadata={"name": "headline"} if png else {})


def _image(panel, alt):
    raw = svg(panel)
    width, height = (round(float(each) * 4 / 3) for each in re.findall(rb'="([\d.]+)pt"', raw)[:2])
    return (
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" style="max-width: 100%; '
        f'height: auto" src="data:image/svg+xml;base64,{base64.b64encode(raw).decode()}">'
    )


def svg(panel):
    """A Figure as SVG with text as text, the same bytes each time. The figure is closed."""
    plt.close(panel)
    file = io.BytesIO()
    with plt.rc_context(style.SVG):
        panel.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _row(panels):
    """Panels side by side, as PNG bytes in base64."""
    pictures, file = [], io.BytesIO()
    for panel in panels:
        drawn = io.BytesIO()
        panel.savefig(drawn, format="png", dpi=144)
        pictures.append(Image.open(drawn).convert("RGB"))
    size = sum(each.width for each in pictures), max(each.height for each in pictures)
    row = Image.new("RGB", size, style.PAPER)
    for place, each in enumerate(pictures):
        row.paste(each, (sum(one.width for one in pictures[:place]), 0))
    row.quantize(128).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _caption(kind, number, caption, source):
    small = f" <small>{html.escape(source)}</small>" if source else ""
    head = f"<b>{kind} {number}.</b> {html.escape(caption)}"
    return f"<figcaption>{head}{small}</figcaption>"


def table(number, frame, caption, source, digits=2, intervals=None, signed=()):
    """A data frame under a caption, such as number "2.1", as HTML, LaTeX and plain text.

    digits: decimals of floats, or {column: decimals}, others 2. intervals: {column: column of its
    half-widths}, shown in one cell. signed: columns that show + too. A column "p" has p-values.
    The index is shown if it is named.
    """
    intervals = intervals or {}
    frame = frame.reset_index() if any(frame.index.names) else frame
    decimals = digits if isinstance(digits, dict) else dict.fromkeys(frame, digits)
    look = {name: (decimals.get(name, 2), name in signed) for name in frame}
    heads = [name for name in frame if name not in intervals.values()]

    def texts(text):
        kinds = [(name, intervals.get(name), look[name], text) for name in heads]
        return [[_cell(row, *kind) for kind in kinds] for row in frame.to_dict("records")]

    several = (name if isinstance(name, tuple) else (name,) for name in heads)
    names = [" ".join(map(str, parts)).strip() for parts in several]
    plain = pd.DataFrame(texts(numbers.number), columns=names)
    numeric = [not any(isinstance(value, str | bool) for value in frame[name]) for name in heads]
    mark, label = f"table-{number.replace('.', '-')}", html.escape(caption)
    body = _html(names, texts(numbers.data), numeric)
    bundle = {
        "text/html": f'<figure class="ban-table" id="{mark}">{STYLE}'
        f'{_caption("Table", number, caption, source)}<div class="ban-scroll" role="region" '
        f'tabindex="0" aria-label="{label}"><table>{body}</table></div></figure>',
        "text/latex": _latex(plain, numeric),
        "text/plain": f"Table {number}. {caption}\n{plain.to_string(index=False)}",
    }
    display(bundle, raw=True)


def _cell(row, name, half, look, text):
    """A cell's text; text: `numbers.number`, or `numbers.data`, which wants HTML around it."""
    value = row[name]
    if isinstance(value, str):
        return html.escape(value) if text is numbers.data else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = None if pd.isna(value) else value
    if name == "p":
        plain = numbers.p_value(value)
        return numbers.sourced(value, plain) if text is numbers.data else plain
    if half:
        return numbers.interval(value, row[half], *look, text)
    return text(value, *look)


def _html(names, rows, numeric):
    kinds = [' class="number"' if each else "" for each in numeric]
    heads = zip(kinds, map(html.escape, names), strict=True)
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for kind, name in heads)
    body = ""
    for row in rows:
        cells = ""
        for place, (kind, cell) in enumerate(zip(kinds, row, strict=True)):
            kind = ' class="long"' if not kind and len(cell) > LONG else kind
            row_head = place == 0 and not numeric[0]
            cells += f'<th scope="row"{kind}>{cell}</th>' if row_head else f"<td{kind}>{cell}</td>"
        body += f"<tr>{cells}</tr>"
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _latex(plain, numeric):
    columns = "".join("r" if each else "l" for each in numeric)
    text = plain.to_latex(index=False, escape=True, column_format=columns)
    for mark, words in ((numbers.MINUS, "$-$"), ("±", r"$\pm$"), (numbers.NOTHING, "---")):
        text = text.replace(mark, words)
    return text


def say(text):
    """A sentence with computed numbers, as a Markdown output."""
    display(Markdown(text))


def box(lead, text):
    """The same as a quote that opens with a bold lead, as "Your guess and the outcome." """
    say(f"> **{lead.rstrip('.')}.** " + text.strip().replace("\n", "\n> "))
