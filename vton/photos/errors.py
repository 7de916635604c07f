"""What is wrong with a photograph: one line that says what, where, and what to do."""

from __future__ import annotations

from vton.errors import UserError


class PhotoError(UserError):
    """A photograph that cannot be used.

    picture: "person", "garment" or "mask": which of the pictures given it is about.
    """

    def __init__(self, picture: str, message: str):
        super().__init__(message)
        self.picture = picture
        self.message = message
