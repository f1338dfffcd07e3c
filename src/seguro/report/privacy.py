"""What must not be on a page: the folders that files lie in, which may name patients and people."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ABSOLUTE = re.compile(
    r"(?<![\w.…])(?:file://)?(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"<>:,;()\[\]{}]+[/\\])+([^\s/\\'\"<>:,;()\[\]{}]*)"
)


def scrub(text: str, roots: Sequence[str] = ()) -> str:
    """Return `text` without the folders of absolute paths, of which only the last part stays.

    `roots` are folders that are known, blanks in them and all. Case ids, file names and relative paths stay:
    they are what a reader needs to find the case again.
    """
    for root in sorted({r.rstrip("/\\") for r in roots}, key=len, reverse=True):
        if len(root) > 1:
            text = text.replace(root, "…")
    return _ABSOLUTE.sub(lambda m: f"…/{m.group(1)}", text)
