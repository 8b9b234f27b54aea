"""`python -m minibrain` is `minibrain`."""

import sys

from minibrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
