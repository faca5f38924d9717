"""`python -m dataplane.embedded`: the same as `segmap target`."""

import argparse
import sys

from dataplane.embedded import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="segmap target", description=main.__doc__)
    main.add_arguments(parser)
    sys.exit(main.run(parser.parse_args()))
