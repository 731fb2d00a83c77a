# SPDX-License-Identifier: Apache-2.0
"""Generated parts of a document: what stands between `<!-- bench SECTION key=value ... -->` and `<!-- /bench -->`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_REGION = re.compile(r"(<!-- bench (\w+)((?: \w+=\S+)*) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def fill(text: str, render: Callable[[str, dict[str, Any]], str]) -> str:
    """The document with every region rendered anew; one without regions is an error.

    >>> print(fill("<!-- bench summary threads=2 -->\\nold\\n<!-- /bench -->", lambda section, options: f"{section} {options}"))
    <!-- bench summary threads=2 -->
    summary {'threads': 2}
    <!-- /bench -->
    """

    def renew(match: re.Match[str]) -> str:
        begin, section, words, end = match.groups()
        options = {key: int(value) if value.isdigit() else value for key, value in (word.split("=", 1) for word in words.split())}
        return f"{begin}{render(section, options)}\n{end}"

    new, count = _REGION.subn(renew, text)
    if not count:
        raise SystemExit("bench: the document has no region: <!-- bench SECTION threads=2 --> and <!-- /bench -->, each on its own line")
    return new
