"""`python -m tests.cluster.next_version [target …]`: a daemon or a target that speaks the next version of the channel.

The tables are changed before anything else is loaded; the programs are those of the product.
"""

from __future__ import annotations

import runpy
import sys

from tests.channel.neighbour import become_next

if __name__ == "__main__":
    become_next()
    if sys.argv[1:2] == ["target"]:
        del sys.argv[1]
        runpy.run_module("dataplane.embedded", run_name="__main__", alter_sys=True)
    else:
        runpy.run_module("tests.cluster.daemon", run_name="__main__", alter_sys=True)
