"""What is wrong with a photograph: one line that says what, where, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from vton.errors import UserError

CONTROLS = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"


class PhotoError(UserError):
    """A photograph that cannot be used.

    picture: "person", "garment" or "mask": which of the pictures given it is about.
    """

    def __init__(self, picture: str, message: str):
        self.picture = picture
        self.message = shown(message)
        super().__init__(self.message)


def shown(text: str | Path) -> str:
    """One line, with escapes for control characters: names of files may hold any."""
    return re.sub(CONTROLS, lambda found: ascii(found[0])[1:-1], str(text))
