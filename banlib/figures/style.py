"""The book's look, and what its figures share. Bars and bands are 95 % t intervals over seeds."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from banlib.paper.statistics import interval

PALETTE = sns.color_palette("colorblind")
DARK, GRAY, LIGHT = "#3a3a3a", "#888888", "#bbbbbb"
SHADES = {"BAN-1": 0, "BAN-2": 1, "BAN-3": 2, "Ens*2": 4, "Ens*3": 3, "averaged": 3}
SHADES |= {"label+teacher": 0, "teacher": 1, "cwtm": 2, "dkpp": 4, "raised by the teacher": 0}
COLORS = {name: PALETTE[number] for name, number in SHADES.items()} | {"Teacher": DARK}
ERROR = "test error, %"
# Tokens: inside the rendered page the builder turns them into the theme's text and background.
INK, PAPER = "#1f2328", "#fefefe"
FONTS = ["DejaVu Sans", "Bitstream Vera Sans", "Verdana", "sans-serif"]  # of one width
SVG = {"svg.fonttype": "none", "svg.hashsalt": "banlib", "font.sans-serif": FONTS}


def style():
    """The look of every figure drawn from here on: `book.mplstyle`."""
    plt.style.use("banlib.figures.book")


def color(name):
    """The color that a model keeps in every figure."""
    later = name.removeprefix("BAN-")
    return COLORS.get(name, PALETTE[(int(later) + 3) % 10] if later.isdecimal() else GRAY)


def panels(count, width, height, **options):
    """(figure, axes): a row of panels, sizes in inches."""
    figure, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False, **options)
    return figure, axes[0]


def source(figure, text="", title=None):
    """A finished figure, closed, so that a cell shows it once; below, where numbers come from."""
    text = textwrap.fill(text, int(18 * figure.get_figwidth()))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="#555555")
    figure.suptitle(title or "", x=0.01, ha="left", fontweight="bold", fontsize=12)
    plt.close(figure)
    return figure


def note(axis, text, point, offset=(8, 0), **look):
    """Words beside a point, so many typographic points away from it."""
    sides = {"ha": ("center", "left", "right")[np.sign(offset[0])], "fontsize": 9}
    sides["va"] = ("center", "bottom", "top")[np.sign(offset[1])]
    axis.annotate(text, point, offset, textcoords="offset points", **(sides | look))


def label_ends(axis, x, ends):
    """Names at the right ends of lines, {name: value}, spread so that none covers another."""
    low, high = axis.get_ylim()
    place, gap = low - 0.03 * (high - low), 0.06 * (high - low)
    for name, value in sorted(ends.items(), key=lambda end: end[1]):
        place = max(value, place + gap)
        note(axis, name, (x, place), (5, 0), color=color(name))
    axis.set_xlim(right=x * 1.17)


def limits(values):
    """The ends of a 95 % interval, for seaborn."""
    mean, half = interval(values)
    return mean - half, mean + half


def means(axis, frame, name, value, flat=False):
    """Of each name the mean with its interval, and seeds as dots; flat: values run along x."""
    average = frame.groupby(name, sort=False)[value].mean()
    look = {"x": value if flat else name, "y": name if flat else value, "hue": name, "ax": axis}
    look |= {"palette": {each: color(each) for each in average.index}, "legend": False}
    sns.stripplot(frame, jitter=False, alpha=0.4, size=4, **look)
    look |= {"linestyle": "none", "markersize": 6, "err_kws": {"linewidth": 1.5}}
    sns.pointplot(frame, errorbar=limits, capsize=0.12, **look)
    for place, mean in enumerate(average):
        point, offset = ((mean, place), (0, 5)) if flat else ((place, mean), (8, 0))
        note(axis, f"{mean:.1f}", point, offset)
    axis.set(**{"xlabel" if flat else "ylabel": ERROR, "ylabel" if flat else "xlabel": None})


def whole_numbers(axis):
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def show(axis, pixels):
    """One image, uint8 or float 0..1 [C, H, W], on an axis; one channel is drawn dark on light."""
    axis.imshow(np.asarray(pixels).transpose(1, 2, 0).squeeze(), cmap="gray_r")
    axis.set_axis_off()


def images(pixels, titles, columns=None, title=None):
    """Images in a grid, each with a title; by default in one row."""
    columns = columns or max(len(pixels), 1)
    rows = max(-(-len(pixels) // columns), 1)
    size = 1.15 * columns, 1.45 * rows + (0.35 if title else 0)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, text in zip(axes.flat, pixels, titles, strict=False):
        show(axis, picture)
        axis.set_title(text, fontsize=8, fontweight="normal", loc="center")
    return source(figure, title=title)


def probabilities(rows, classes, title, pixels=None):
    """What networks say of an image, {name: [classes]}: the ten likeliest; pixels: the image."""
    likeliest = np.argsort(-np.max([np.asarray(values) for values in rows.values()], axis=0))[:10]
    widths = [2.4] * (pixels is not None) + [3.1] * len(rows)
    figure, axes = panels(len(widths), sum(widths), 2.9, width_ratios=widths)
    if pixels is not None:
        show(axes[0], pixels)
    names = [str(classes[index]) for index in likeliest]
    for axis, (name, values) in zip(axes[-len(rows) :], rows.items(), strict=True):
        axis.barh(names, np.asarray(values)[likeliest], color=color(name))
        axis.set(title=name, xlabel="probability", xlim=(0, 1))
        axis.invert_yaxis()
    return source(figure, title=title)
