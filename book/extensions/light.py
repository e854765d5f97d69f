"""Pages without the theme's weight: 2 MB of icons, fonts and rules, of which a page uses a tenth.

When all pages stand, every script tag that no page needs is taken out, and every CSS rule whose
classes and ids occur on no page and in no script. book.css draws the icons.
"""

import re
import shutil

TAG = r'\s*<script[^>]* src="[^"]*{}[^"]*"></script>'
UNUSED = ("fontawesome.js",)
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")  # wanted by search.html alone
NAME = re.compile(r"[.#]((?:[\w-]|\\.)+)")


def lighten(app, error):
    if error or app.builder.name != "html":
        return
    static, pages = app.outdir / "_static", list(app.outdir.rglob("*.html"))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for script in UNUSED if page.name == "search.html" else UNUSED + SEARCH:
            text = re.sub(TAG.format(re.escape(script)), "", text)
        page.write_text(text, encoding="utf-8")
    shutil.rmtree(static / "vendor", ignore_errors=True)
    for path in [*static.rglob("*.map"), *static.rglob("fontawesome.js")]:
        path.unlink()
    texts = (path.read_text(encoding="utf-8") for path in [*pages, *static.rglob("*.js")])
    words = {word for text in texts for word in re.findall(r"[\w-]+", text)}
    for path in static.rglob("*.css"):
        path.write_text(purged(path.read_text(encoding="utf-8"), words), encoding="utf-8")


def purged(css, words):
    """CSS without comments, fonts, and rules for classes and ids that are not among the words."""

    def rule(match):
        selectors, body = match.groups()
        if selectors.lstrip().startswith("@"):
            return "" if selectors.lstrip().startswith("@font-face") else match[0]
        kept = [one for one in re.split(r",(?![^(]*\))", selectors) if names(one) <= words]
        return f"{','.join(kept)}{{{body}}}" if kept else ""

    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    css = re.sub(r"([^{};]+)\{([^{}]*)\}", rule, css)
    return re.sub(r"@(?:media|supports)[^{};]*\{\s*\}", "", css)


def names(selector):
    """Classes and ids that a selector cannot do without."""
    while (outer := re.sub(r"\([^()]*\)|\[[^]]*\]", "", selector)) != selector:
        selector = outer
    return set(NAME.findall(selector))


def setup(app):
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
