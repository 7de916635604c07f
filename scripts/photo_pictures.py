"""The pictures of docs/photos.md: `python scripts/photo_pictures.py --run RUN`.

`tryon.jpg` shows what `vton tryon` makes of the example pair: person, garment, garment on white,
the mask, the result. `demo.jpg` is the page of `vton demo` after the same, in Debian's chromium; it
needs `apt-get install chromium chromium-driver`, and --no-page leaves it out.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vton.photos.backends import Networks
from vton.tryon import TryOn

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "data/examples"
PANEL = (288, 384)  # width, height
PAGE = (1280, 1010)  # px of the page that is shown
SHOWN = 1100  # px, width of its picture
TINT = (214, 30, 110)  # of the mask, as on the page
QUALITY = 88
PATIENCE = 300  # seconds


def strip(try_on: TryOn) -> Image.Image:
    """What `vton tryon` makes of the example pair, step by step."""
    photos = [Image.open(EXAMPLES / f"{kind}.jpg").convert("RGB") for kind in ("person", "garment")]
    person, garment = try_on.person(photos[0]), try_on.garment(photos[1])
    (drawn,) = try_on.draw(person, [garment])
    seen = np.asarray(person.picture).astype(float)
    mask = person.mask[..., None]
    tinted = np.where(mask, seen / 2 + np.array(TINT) / 2, seen).astype(np.uint8)
    whole = photos[0].copy()
    frame = person.frame
    box = (round(frame.left), round(frame.top))
    size = (round(frame.width), round(frame.height))
    whole.paste(Image.fromarray(tinted).resize(size, Image.Resampling.BICUBIC), box)
    panels = [*photos, garment.picture, whole, drawn.picture]
    picture = Image.new("RGB", (len(panels) * PANEL[0], PANEL[1]), "white")
    for place, panel in enumerate(panels):
        picture.paste(panel.resize(PANEL, Image.Resampling.LANCZOS), (place * PANEL[0], 0))
    return picture


def page(try_on: TryOn) -> Image.Image:
    """The page with the example pair and its result."""
    import uvicorn
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    from vton.demo.server import Demo

    demo = Demo(lambda: try_on)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(demo.app, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.add_argument("--headless=new")
    options.add_argument(f"--window-size={PAGE[0]},{PAGE[1]}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        browser.get(f"http://127.0.0.1:{listening.getsockname()[1]}/")

        def click(selector: str) -> None:
            browser.execute_script("document.querySelector(arguments[0]).click()", selector)

        def loaded() -> bool:
            images = browser.find_elements(By.CSS_SELECTOR, "#pictures img")
            return bool(images) and images[0].get_property("naturalWidth") > 0

        ready = browser.find_element(By.ID, "about")
        until(lambda: not ready.text.startswith("Loading"))
        click("#person .example")
        click("#garment .example")
        until(browser.find_element(By.ID, "go").is_enabled)
        click("#go")
        until(loaded)
        clip = {"x": 0, "y": 0, "width": PAGE[0], "height": PAGE[1], "scale": 1}
        shot = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
    finally:
        browser.quit()
        server.should_exit = True
        thread.join(timeout=10)
        demo.worker.stop()
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    height = round(SHOWN / picture.width * picture.height)
    return picture.resize((SHOWN, height), Image.Resampling.LANCZOS)


def until(look: Callable[[], Any]) -> None:
    """Wait until it is true. Raises TimeoutError."""
    end = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > end:
            raise TimeoutError(f"the page did not get on within {PATIENCE} seconds")
        time.sleep(0.1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--run", help="by default the newest run under runs/")
    arguments.add_argument("--densepose", default="none", help="for runs that read it: small")
    arguments.add_argument("--out", type=Path, default=ROOT / "docs/pictures")
    arguments.add_argument("--no-page", action="store_true")
    chosen = arguments.parse_args()
    try_on = TryOn(chosen.run, networks=Networks.named(densepose=chosen.densepose))
    pictures = {"tryon": strip(try_on)}
    if not chosen.no_page:
        pictures["demo"] = page(try_on)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = chosen.out / f"{name}.jpg"
        picture.save(path, quality=QUALITY, optimize=True)
        print(f"{path}: {picture.width}x{picture.height}")


if __name__ == "__main__":
    main()
