"""The page of the library: a section for each module of banlib, written by sphinx.ext.autodoc.

A page that has the line `[library]` gets the sections in its place. Modules stand from the ground
floor up: each imports only from those above it. Docstrings of banlib are plain text, so they are
made safe for reStructuredText here.
"""

import ast
import functools
import importlib.util
import re
from pathlib import Path

PACKAGE = Path(importlib.util.find_spec("banlib").origin).parent
MARK = "[library]"
ITEM = re.compile(r"(Returns|Raises) |\w+(, \w+)*: ")  # begins a line of its own in a docstring
SECTION = """\
## {0}

```{{eval-rst}}
.. automodule:: banlib.{0}
   :members:
   :member-order: bysource
   :ignore-module-all:
```"""


def modules():
    """Names of all modules but the command line, each after those it imports.

    What most is built on comes first.
    """
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "banlib" and parts[1] not in ("__main__", "cli"):
            files[name] = path
    imported = {name: imports(path, name) - {name} for name, path in files.items()}

    @functools.cache
    def carries(name):
        """How many modules stand on this one, one upon the other."""
        above = [other for other, names in imported.items() if name in names]
        return max((1 + carries(other) for other in above), default=0)

    return sorted(files, key=lambda name: (-carries(name), name))


def imports(path, name):
    """Whatever an import in the file may name: modules, and what is taken from them."""
    package, found = name if path.stem == "__init__" else name.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def write_sections(app, page, source):
    if re.search(f"^{re.escape(MARK)}$", source[0], flags=re.MULTILINE):
        names = [name.removeprefix("banlib.") for name in modules()]
        source[0] = source[0].replace(MARK, "\n\n".join(map(SECTION.format, names)))


def make_safe(app, what, name, thing, options, lines):
    """Plain text to reStructuredText, in place; of a module only what it is for, a paragraph."""
    if what == "module" and "" in lines:
        del lines[lines.index("") :]
    safe, block = [], False
    for line in lines:
        if line.startswith(" "):  # an indented block stays as it is
            safe += [line] if block else ["", "::", "", line]
        else:
            code = re.split(r"`([^`]+)`", line)  # text, code, text, ...
            code[::2] = [re.sub(r"([\\*_|`@])", r"\\\1", text) for text in code[::2]]
            code[1::2] = [f"``{text}``" for text in code[1::2]]
            # Not at a colon within a sentence.
            item = ITEM.match(line) and (not safe or safe[-1].endswith("."))
            safe += [""] * bool(line and (block or item)) + ["".join(code)]
        block = line.startswith(" ") or (block and not line)
    lines[:] = [*safe, ""]


def skip(app, what, name, thing, would_skip, options):
    """Fields of a NamedTuple and settings of pydantic have docstrings that we did not write."""
    return True if name.startswith("model_") or type(thing).__name__ == "_tuplegetter" else None


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("source-read", write_sections)
    app.connect("autodoc-process-docstring", make_safe)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
