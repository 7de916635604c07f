"""Errors that are the user's to solve: the command line prints their one line and exits with code 2."""


class UserError(ValueError):
    """Says what is wrong, where, and what to do."""
