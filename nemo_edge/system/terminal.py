"""Text from outside on a terminal: what would move the cursor, reach the clipboard or turn a line around is shown, not done.

Prompts, paths and names out of files may hold anything. Every line that is printed goes through here; knows letters, nothing of layout.
"""

from __future__ import annotations

__all__ = ["visible", "visible_json"]

import json
import re
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but for line ends and tabs, marks of direction, letters without width, tags, and halves of letters."""


def visible(text: str) -> str:
    """Return a text with each such character as Python writes it, `\\x1b`; one without any as it is."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def visible_json(value: Any) -> str:
    """Return a value as one line of JSON, in which such characters are escaped as JSON has it."""
    return _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], json.dumps(value, ensure_ascii=False))
