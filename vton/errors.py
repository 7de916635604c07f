"""Errors that the user can solve: the command line prints their one line and exits with code 2."""


class UserError(ValueError):
    """Says what is wrong, where, and what to do."""


def one_line(error: Exception) -> str:
    """What a library's error says, in 200 characters at most; its kind if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
