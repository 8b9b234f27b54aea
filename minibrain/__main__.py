"""The program, as `minibrain` or `python -m minibrain`."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """`minibrain.cli.main`, which takes half a second to import: SIGINT may come meanwhile."""
    try:
        from minibrain import cli

        return cli.main(arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
