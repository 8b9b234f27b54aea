"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line that names the file or argument, what was wrong and what was
    expected. Programs show it without a traceback and exit with code 2.
    """
