"""Errors that a person can act on."""


class UsageError(Exception):
    """Something the user gave cannot work; the message is one line that says what, where and what to do.

    The command line prints it alone and exits with code 2.
    """
