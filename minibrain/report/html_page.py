"""A whole page as one HTML file: style, data, and the program that draws it.

The data travels as JSON, and the program builds every element from it, setting text as text: no
name from a dataset.json is ever read as HTML. A content security policy in the file lets the
browser run this one script, by its hash, and load nothing from anywhere.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable


def html_page(folder: Traversable, scripts: Sequence[str], title: str, data: dict) -> str:
    """Fill page.html; nothing in title or data can break out of its place.

    Parameters
    ----------
    folder : of page.html, page.css and the scripts
    scripts : names, without .js, of the files that make up the program, in their order
    title : any text
    data : JSON-able, without NaN
    """

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    script = "\n".join(read(f"{name}.js") for name in scripts)
    digest = hashlib.sha256(script.encode()).digest()
    parts = {
        "title": html.escape(title),
        "style": read("page.css"),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "script": script,
        "script_hash": f"sha256-{base64.b64encode(digest).decode()}",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read("page.html"))
