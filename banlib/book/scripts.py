"""What brings the explorers of a rendered page to life; imports nothing that takes long."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "explorers"


def page_script(kind):
    """An inline script that mounts every explorer of a kind on a page, for the page's end.

    Empty for a kind that needs a kernel.
    """
    if kind == "live_training":
        return ""
    files = (FOLDER / name for name in ("kit.js", f"{kind}.js", "kit.css"))
    kit, own, look = (file.read_text(encoding="utf-8") for file in files)
    code = f'{kit}\n{own}\nmountAll("{kind}", mount, {json.dumps(look)});'.replace("</", r"<\/")
    return f'<script type="module">\n{code}\n</script>'
