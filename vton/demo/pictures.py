"""Uploaded pictures: in memory only, few of them, the oldest forgotten first."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from PIL import Image

MOST = 24
MOST_PIXELS = 200_000_000  # of all together: 600 MB


class Pictures:
    """Pictures by unguessable ids."""

    def __init__(self):
        self._pictures: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, picture: Image.Image) -> str:
        id_ = secrets.token_urlsafe(12)
        with self._lock:
            self._pictures[id_] = picture
            while len(self._pictures) > 1 and self._too_many():
                self._pictures.popitem(last=False)
        return id_

    def find(self, id_: object) -> Image.Image | None:
        with self._lock:
            if not isinstance(id_, str) or id_ not in self._pictures:
                return None
            self._pictures.move_to_end(id_)
            return self._pictures[id_]

    def _too_many(self) -> bool:
        pixels = sum(picture.width * picture.height for picture in self._pictures.values())
        return len(self._pictures) > MOST or pixels > MOST_PIXELS
