"""Formulas as MathML, which browsers draw themselves: no script, no download, good to listen to.

Sphinx's own way fetches MathJax from another server whenever a page is opened, so without a network
there are no formulas.
"""

import html
import re
import xml.etree.ElementTree as ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", NAMESPACE)
BRACES = {"\u23df": "munder", "\u23de": "mover"}  # under and over


def mathml(tex, as_block):
    """TeX as a <math> element. Raises MathError for TeX that docutils does not know."""
    markup = tex2mathml(tex, as_block=as_block)
    # docutils writes some operators as entities that HTML has and XML lacks.
    tree = ElementTree.fromstring(
        re.sub(r"&(?!lt;|gt;|amp;)\w+;", lambda entity: html.unescape(entity[0]), markup)
    )
    for element in tree.iter():
        mend(element, tex)
    return ElementTree.tostring(tree, encoding="unicode")


def mend(element, tex):
    """Four things that docutils 0.21 sets otherwise than TeX."""
    kind = name(element)
    # The text of a brace belongs under or over it, not beside it.
    if kind in ("msub", "msup") and len(element[0]) == 2 and element[0][1].text in BRACES:
        element.tag = tag(BRACES[element[0][1].text])
    # The index of a letter with an accent belongs beside it, not under it.
    elif kind == "munderover" and name(element[0]) != "mo" and name(element[2]) == "mo":
        letter, index, accent = element
        element.tag = tag("msub")
        element[:] = [ElementTree.Element(tag("mover"), accent="true"), index]
        element[0].extend([letter, accent])
    # A double bar between two distributions is not to grow with the whole line.
    elif kind == "mo" and element.text == "\u2016" and r"\left" not in tex:
        element.set("stretchy", "false")
    # A function and what it is applied to have a thin space between them, but for a parenthesis.
    for part, after in zip(element, element[1:], strict=False):
        if part.text == "\u2061" and (after.text or "").strip() != "(":
            part.set("rspace", "0.1667em")


def name(element):
    return element.tag.rpartition("}")[2]


def tag(name):
    return f"{{{NAMESPACE}}}{name}"


def rendered(self, node, as_block):
    """The node's MathML; a warning and the TeX itself if it cannot be had."""
    try:
        return mathml(node.astext(), as_block)
    except MathError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        return f"<code>{self.encode(node.astext())}</code>"


def visit_inline(self, node):
    self.body.append(rendered(self, node, as_block=False))
    raise nodes.SkipNode


def visit_block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({node["number"]})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(rendered(self, node, as_block=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
