"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line that names the file or argument, what was wrong and what was
    expected; of an argument it is "name: got this, expected that". Programs show it without a
    traceback, with the option's name for the argument's, and exit with code 2.
    """
