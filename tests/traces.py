"""What files that are handed on must not hold: places and names of the machine that made them."""

from __future__ import annotations

import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_ABSOLUTE = re.compile(rb"/(?:home|root|Users|tmp|usr|opt|work|var|private)/[\w.-]+|\b[A-Za-z]:[\\/]{1,2}(?:Users|Windows|Program|Temp)\b")
_CHECKOUT = Path(__file__).parents[1]


def traces(folder: Path, *places: Path) -> Iterator[str]:
    """Each file of `folder` with the first absolute path in it, or the first name of this machine or of `places`."""
    own = {_CHECKOUT, Path.home(), Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_path("purelib")), *places}
    names = {str(place).encode() for place in own if len(place.parts) > 2}  # of `/usr` and `/root` the pattern has what is below
    names |= {platform.node().encode()} if len(platform.node()) > 5 else set()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        found = _ABSOLUTE.search(content)
        named = found.group() if found else next((name for name in names if name in content), None)
        if named:
            start = content.index(named)
            yield f"{path.relative_to(folder)}: {content[max(0, start - 60) : start + 120]!r}"
