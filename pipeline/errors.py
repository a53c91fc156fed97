"""Errors that a person can act on."""


class UsageError(Exception):
    """Something the user gave cannot work; the message is one line that says what, where and what to do.

    The command line prints it alone and exits with code 2.
    """


class RunStopped(Exception):
    """A run cannot go on and could not even write its end; the message says why and what to do.

    What was committed is safe. The command line exits with code 1.
    """
