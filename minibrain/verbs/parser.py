"""How a verb is declared, and how its arguments are named in errors."""

import argparse
from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """A bad option is one line on stderr, as every other error."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def named(self, message: str) -> str:
        """What the library says of an argument (`minibrain.errors`), with the argument's name on
        the command line: "patch_size: got ..." is "argument --patch-size: got ..."."""
        name, got, found = message.partition(": got ")
        for action in self._actions:
            if got and action.dest == name:
                shown = action.option_strings[-1] if action.option_strings else action.metavar
                return f"argument {shown}{got}{found}"
        return message


def add_verb(verbs, name: str, purpose: str, example: str, call: Callable) -> Parser:
    """A verb without arguments yet; `call` gets them."""
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=call, parser=parser)
    return parser
