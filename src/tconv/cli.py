# SPDX-License-Identifier: Apache-2.0
"""The command `tconv`: run what `_commands` declares, and turn every failure into one line on stderr and an exit code.

0: done        1: the work failed (disk full, memory, the extra is missing)        2: bad arguments or a bad input file
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ._spec import ArgumentError

_EXTRA = {"cyclopts": "cli", "rich": "cli", "PIL": "cli", "scipy": "deconvolve", "pylops": "deconvolve"}  # which extra brings which module


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the program's own, and return its exit code.

    >>> main(["shape", "c3:8 i5 k4 s2"])  # doctest: +ELLIPSIS
    c3:8 i5 k4 s2
    ...
    0
    """
    try:
        from ._commands import run

        complaint = run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return _failed(complaint, 2) if complaint else 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        return _failed(f'the command line needs {missing}; install it with: pip install "tconv[{_EXTRA[missing]}]"', 1)
    except ArgumentError as error:
        return _failed(error, 2)
    except BrokenPipeError:  # the reader of our output left, as in `tconv info | head -1`; the interpreter flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        return _failed(str(error) or "not enough memory", 1)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)


def _failed(error: object, code: int) -> int:
    print("tconv: error:", " ".join(str(error).split()), file=sys.stderr)
    return code
