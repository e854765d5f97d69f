"""What a page makes of plain Markdown, which reads well in any front end of Jupyter.

- A quote with a bold lead becomes a box: `> **Note.** text`.
- A link to an entry of the glossary or the bibliography shows the entry under the pointer.
- "equation (2.1)", "figure 2.3" and "table 2.1" in the text become links.
- Figures are set into the page as SVG, so that they follow its theme; explorers come alive.
"""

import base64
import html
import json
import re

from docutils import nodes
from sphinx.errors import ExtensionError

from banlib import figures
from banlib.book.scripts import page_script

LEADS = {"Time": "tip", "Predict first": "hint", "What you learned": "important"}
LEADS |= {"Warning": "warning"}  # all others are notes
ENTRY = re.compile(r'<a id="([\w-]+)">')
FIGURE = re.compile(r'<figure\b[^>]* id="([\w-]+)".*?<b>(\w+ \d+\.\d+)\.</b>', flags=re.DOTALL)
NUMBERED = re.compile(r"\b(equation|figure|table)(s? \(?)(\d+\.\d+)\b\)?", flags=re.IGNORECASE)
IMAGE = re.compile(r'<img alt="([^"]*)"[^>]* src="data:image/svg\+xml;base64,([^"]*)">')
KIND = re.compile(r'class="ban-explorer"[^>]* data-kind="(\w+)"')
NOT_LINKED = (nodes.reference, nodes.title, nodes.literal, nodes.FixedTextElement, nodes.math)


def refuse_bare(app, page, source):
    """A notebook that was not run would be a page without numbers."""
    if app.env.doc2path(page).endswith(".ipynb"):
        cells = [cell for cell in json.loads(source[0])["cells"] if cell["cell_type"] == "code"]
        if cells and not any(cell.get("execution_count") for cell in cells):
            raise ExtensionError(
                f"{page} has not been run, and a book without numbers is none; "
                "run `banlib book`, which runs every chapter and renders the pages"
            )


def read(app, tree):
    """A page as it was parsed. What its numbers and entries are is kept for the other pages."""
    notes = app.env.metadata[app.env.docname]
    notes["numbers"], notes["entries"] = {}, {}
    for quote in list(tree.findall(nodes.block_quote)):
        box(quote)
    for formula in tree.findall(nodes.math_block):
        number_formula(formula, notes["numbers"])
    kinds = set()
    for place, node in enumerate(list(tree.findall(nodes.raw))):
        text = node.astext()
        notes["numbers"] |= {name.lower(): mark for mark, name in FIGURE.findall(text)}
        kinds |= set(KIND.findall(text))
        if entry := ENTRY.fullmatch(text):
            slugs = notes.setdefault("myst_slugs", {})
            slugs[entry[1]] = node.line, entry[1], node.parent.astext()
            notes["entries"][entry[1]] = plain(node.parent)
        elif 'class="ban-figure"' in text or 'class="ban-explorer"' in text:
            node[:] = [nodes.Text(set_in(text, f"svg{place}"))]
    for section in tree.findall(nodes.section):
        first = section.next_node(nodes.paragraph)
        if app.env.docname.endswith("glossary") and first is not None:
            notes["entries"][section["ids"][0]] = f"{section[0].astext()}: {plain(first)}"
    for kind in sorted(kinds):
        tree += nodes.raw("", page_script(kind), format="html")


def plain(node):
    """Its text without HTML, for a preview."""
    return re.sub(r"<[^>]*>", "", node.astext()).replace("\n", " ")


def box(quote):
    """A quote that opens with a bold lead, in place, as an admonition."""
    lead = quote.next_node(nodes.strong)
    if lead is None or not re.match(r".+\.$", lead.astext()):
        return
    if lead.parent is not quote[0] or not quote.astext().startswith(lead.astext()):
        return
    name = lead.astext()[:-1]
    quote[0][:] = lead.parent.children[lead.parent.index(lead) + 1 :]
    kind = LEADS.get(name, "note")
    title = nodes.title(name, name)
    quote.replace_self(nodes.admonition("", title, *quote.children, classes=[kind]))


def number_formula(formula, numbers):
    r"""Take `\tag{2.1}` out of a formula and make it the number of its block."""
    if tag := re.search(r"\s*\\tag\{(.*?)\}", formula.astext()):
        mark = f"equation-{tag[1].replace('.', '-')}"
        numbers[f"equation {tag[1]}"] = mark
        formula["ids"], formula["number"] = [mark], tag[1]
        formula[:] = [nodes.Text(formula.astext().replace(tag[0], ""))]


def set_in(text, mark):
    """The HTML of a figure with its pictures inside, in the page's colors."""
    marks = iter(range(100))

    def picture(image):
        svg = base64.b64decode(image[2]).decode()
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{mark}-{next(marks)}-", svg)
        svg = svg.replace(figures.INK, "currentColor")
        svg = svg.replace(figures.PAPER, "var(--pst-color-background)")
        return svg.replace("<svg", f'<svg role="img" aria-label="{image[1]}"', 1)

    return IMAGE.sub(picture, text)


def resolved(app, tree, page):
    """A page whose links are known: previews of entries, and links to what has a number."""
    pages = app.env.metadata
    entries, numbers = {}, {}
    for name, notes in pages.items():
        uri = app.builder.get_relative_uri(page, name) if name != page else ""
        marks = notes.get("numbers", {})
        numbers |= {number: f"{uri}#{mark}" for number, mark in marks.items()}
        entries |= {f"{uri}#{mark}": text for mark, text in notes.get("entries", {}).items()}
    for link in list(tree.findall(nodes.reference)):
        uri = link.get("refuri") or f"#{link.get('refid')}"
        if uri in entries:
            attributes = f'href="{uri}" data-entry="{html.escape(entries[uri])}"'
            opening = f'<a class="reference internal" {attributes}>'
            parts = [opening, *link.children, "</a>"]
            raw = [nodes.raw("", p, format="html") if isinstance(p, str) else p for p in parts]
            link.parent.replace(link, raw)
    for text in list(tree.findall(nodes.Text)):
        link_numbers(text, numbers)


def link_numbers(text, numbers):
    """Links in place of the numbered things that a text names."""
    parent, found, end = text.parent, [], 0
    while parent is not None and not isinstance(parent, NOT_LINKED):
        parent = parent.parent
    if parent is not None:
        return
    for match in NUMBERED.finditer(text):
        if uri := numbers.get(f"{match[1]} {match[3]}".lower()):
            found += [nodes.Text(text[end : match.start()])]
            found += [nodes.reference("", match[0], refuri=uri, internal=True)]
            end = match.end()
    if found:
        text.parent.replace(text, [*found, nodes.Text(text[end:])])


def setup(app):
    app.connect("source-read", refuse_bare)
    app.connect("doctree-read", read)
    app.connect("doctree-resolved", resolved)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
