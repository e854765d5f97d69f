"""The static picture in each explorer: its first state, for where no script runs."""

import base64
import html

import matplotlib.pyplot as plt
import torch

from banlib.figures import show
from banlib.figures.style import color
from banlib.paper.numbers import number


def picture(figure, alt):
    """A figure, which is closed, as an <img>."""
    source = base64.b64encode(show.svg(figure)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{source}">'


def axes(rows=1, height=2.6, **options):
    return plt.subplots(rows, figsize=(4.2, height), layout="constrained", squeeze=False, **options)


def generations(data):
    figure, [[axis]] = axes()
    for model in data["sets"][0]["models"]:
        errors, look = [error for _, error, _ in model["runs"]], {"color": color(model["name"])}
        axis.plot([model["name"]] * len(errors), errors, ".", alpha=0.4, **look)
        axis.plot(model["name"], sum(errors) / len(errors), "o", **look)
    axis.set(ylabel="test error, %", title=data["sets"][0]["title"])
    axis.tick_params(axis="x", labelrotation=20)
    return figure


def bars(table, colors, xlabel, limit=None):
    """Panels of horizontal bars: {title: {label: value}}."""
    height = sum(0.5 + 0.2 * len(panel) for panel in table.values())
    figure, grid = axes(len(table), height, sharex=True)
    for axis, (title, panel) in zip(grid[:, 0], table.items(), strict=True):
        shades = [colors.get(name, colors.get(title)) for name in panel]
        axis.barh(list(panel), list(panel.values()), color=shades)
        axis.axvline(0, color=color("Teacher"), linewidth=0.8)
        axis.set_title(title)
        axis.invert_yaxis()
    grid[-1, 0].set(xlabel=xlabel, xlim=limit)
    return figure


def ensemble(errors, colors):
    return bars({"test error": errors}, colors, "test error, %")


def dark_knowledge(chain, classes, image, colors):
    """What each run says of an image: its six likeliest classes."""
    likeliest = chain[0].probabilities[image].argsort(descending=True)[:6].tolist()
    table = {
        run.spec.name: {str(classes[c]): float(run.probabilities[image][c]) for c in likeliest}
        for run in chain
    }
    return bars(table, colors, "probability", (0, 1))


def loss(teacher, student, label):
    p, q = (torch.tensor(logits).softmax(0) for logits in (teacher, student))
    onehot = torch.eye(len(teacher))[label]
    terms = {"label: q \u2212 onehot": q - onehot, "teacher: q \u2212 p": q - p}
    terms["sum"] = sum(terms.values())
    shades = dict(zip(terms, ("gray", color("Teacher"), color("BAN-1")), strict=True))
    table = {name: {f"class {c}": v.item() for c, v in enumerate(t)} for name, t in terms.items()}
    return bars(table, shades, "gradient of the student's logits")


def text(value):
    """A cell of a table as text."""
    return value if isinstance(value, str) else number(value)


def table(columns, rows):
    """An HTML table of text."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
