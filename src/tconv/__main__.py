# SPDX-License-Identifier: Apache-2.0
"""`python -m tconv` is the command `tconv`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
