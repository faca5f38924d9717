"""`python -m dataplane.embedded`: the same as `segmap target`."""

import argparse
import gc
import sys

gc.disable()  # nothing of what is imported is garbage: looking for some would hold up the start

from dataplane.embedded import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="segmap target", description=main.__doc__)
    main.add_arguments(parser)
    sys.exit(main.run(parser.parse_args()))
