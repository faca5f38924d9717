"""The `segmap` command: `python -m cli`, or the script of that name."""

from __future__ import annotations

import sys

from cli.program import main

if __name__ == "__main__":
    sys.exit(main())
