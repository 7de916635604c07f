"""Errors that are the user's to solve: the command line prints their one line and exits with code
2.
"""


class UserError(ValueError):
    """Says what is wrong, where, and what to do."""


def one_line(error: Exception) -> str:
    """What a library's error says, on one line of at most 200 characters; its kind where it says
    nothing.
    """
    return " ".join(str(error).split())[:200] or type(error).__name__
