"""book/extensions/mathml.py: TeX becomes MathML that browsers set as TeX would."""

import sys
import xml.etree.ElementTree as ElementTree

import pytest
from books import ROOT

sys.path.insert(0, str(ROOT / "book/extensions"))
import mathml  # noqa: E402


def shape(tex):
    """The MathML of a formula as nested tuples (tag, text or children)."""

    def nested(element):
        kind = element.tag.rpartition("}")[2]
        return (kind, (element.text or "").strip()) if len(element) == 0 else (kind, *map(nested, element))

    return nested(ElementTree.fromstring(mathml.mathml(tex, as_block=True)))[1:]


def test_the_index_of_an_accented_letter_stands_beside_it():
    for tex in (r"\hat f_k", r"\hat{f}_k"):
        assert shape(tex) == (("msub", ("mover", ("mi", "f"), ("mo", "ˆ")), ("mi", "k")),)
    [(kind, base, _, _)] = shape(r"\sum_{i=1}^k")
    assert kind in ("munderover", "msubsup") and base == ("mo", "∑"), "the limits of a sum moved"


def test_the_text_of_a_brace_stands_under_it():
    [(kind, (inner, *_), text)] = shape(r"\underbrace{a}_{\text{labels}}")
    assert (kind, inner, text) == ("munder", "munder", ("mtext", "labels"))


def test_a_double_bar_does_not_grow():
    assert 'stretchy="false">‖' in mathml.mathml(r"p\,\|\,q", as_block=True)
    assert 'stretchy="false">‖' not in mathml.mathml(r"\left\| \frac a b \right\|", as_block=True)


def test_a_function_keeps_a_thin_space_from_its_argument():
    assert 'rspace="0.1667em">\u2061' in mathml.mathml(r"-\log q_y", as_block=True)
    assert "rspace" not in mathml.mathml(r"\log(q_y)", as_block=True)


@pytest.mark.parametrize(
    "tex",
    [r"\mathrm{softmax}(z)", r"\log q_y .", r"\operatorname{CE}(p, q)", r"a < b", r"\mathbb{1}_y", r"\arg\min_\theta"],
)
def test_entities_of_html_do_not_break_it(tex):
    assert mathml.mathml(tex, as_block=False).startswith("<math")


def test_unknown_tex_is_an_error():
    with pytest.raises(mathml.MathError):
        mathml.mathml(r"\nosuchcommand", as_block=False)
