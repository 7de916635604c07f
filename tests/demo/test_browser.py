"""The page in a real browser: Debian's chromium, driven by selenium."""

import os
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tests.demo.conftest import Client, serving
from tests.demo.test_server import Slow, until
from tests.photos import people

pytest.importorskip("selenium", reason="selenium is not installed")
pytest.importorskip("starlette", reason="starlette is not installed")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from vton.demo.server import Demo

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)


class Proxy:
    """Stands where the browser's own requests to other machines would go, and answers none.

    Chromium calls home. What the page asks for is in the browser's log.
    """

    def __init__(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            connection.close()


@pytest.fixture(scope="module")
def proxy():
    proxy = Proxy()
    yield proxy
    proxy.listening.close()


@pytest.fixture(scope="module")
def browser(proxy, tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1400",
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
        f"--proxy-server=127.0.0.1:{proxy.port}", "--proxy-bypass-list=127.0.0.1;localhost",
    ):  # fmt: skip
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_script_timeout(30)
    yield browser
    browser.quit()


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser, port):
        self.browser = browser
        browser.get(f"http://127.0.0.1:{port}/")
        until(lambda: self.text("#about").startswith("gardiff"))

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.one(selector).text

    def click(self, selector):
        self.one(selector).click()

    def choose(self, kind, path):
        self.one(f"#{kind} .file").send_keys(str(path))
        until(lambda: not self.browser.execute_script(
            "return document.querySelector(arguments[0]).classList.contains('busy')",
            f"#{kind} .drop",
        ))  # fmt: skip

    def error(self, kind):
        line = self.one(f"#{kind} .error")
        return line.text if line.is_displayed() else ""

    def mask(self):
        """(H, W) bool: where the canvas is painted."""
        script = """
            const canvas = document.querySelector("#canvas");
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const set = [];
            for (let at = 3; at < pixels.data.length; at += 4)
              set.push(pixels.data[at] > 75 ? 1 : 0);
            return [canvas.width, canvas.height, set.join("")];
        """
        width, height, painted = self.browser.execute_script(script)
        return (np.frombuffer(painted.encode(), np.uint8) == ord("1")).reshape(height, width)

    def stroke(self, start, end):
        """Drag over the canvas between two points, in shares of its size from its middle."""
        canvas = self.one("#canvas")
        width, height = canvas.size["width"], canvas.size["height"]
        moves = ActionChains(self.browser, duration=20)
        moves.move_to_element_with_offset(canvas, start[0] * width, start[1] * height)
        moves.click_and_hold()
        moves.move_to_element_with_offset(canvas, end[0] * width, end[1] * height)
        moves.release().perform()


@pytest.fixture
def page(browser, client):
    return Page(browser, client.port)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photos = {
        "person": people.photo(1),
        "garment": people.garment(2)[0],
        "nobody": Image.new("RGB", (300, 400), (200, 210, 220)),
        "two": people.beside(people.photo(3, (0.2, 0.5, 0.32)), people.photo(1, (0.26, 0.5, 0.3))),
    }
    for name, photo in photos.items():
        photo.save(folder / f"{name}.png")
    (folder / "text.png").write_bytes(b"hello")
    return folder


def test_two_photos_give_a_picture(page, files, browser):
    assert not page.one("#go").is_enabled()
    page.choose("person", files / "person.png")
    assert 0.05 < page.mask().mean() < 0.6 and page.one("#canvas").is_displayed()
    page.choose("garment", files / "garment.png")
    page.one("#seed").send_keys(Keys.CONTROL, "a")
    page.one("#seed").send_keys("41")
    page.one("#count").send_keys("2")
    page.click("#go")
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "#pictures img"))
    until(lambda: browser.execute_script(
        "return [...document.querySelectorAll('#pictures img')].every((one) => one.naturalWidth)"
    ))  # fmt: skip
    captions = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#pictures figcaption")]
    assert len(captions) == 2 and "Seed 41" in captions[0] and "Seed 42" in captions[1]
    link = page.one("#pictures a")
    assert link.get_attribute("download") == "tryon_seed41.png"
    width = browser.execute_script("return document.querySelector('#pictures img').naturalWidth")
    assert width == people.photo(1).width and not page.error("result")


def test_the_brush_and_the_eraser_change_the_mask(page, files):
    page.choose("person", files / "person.png")
    detected = page.mask()
    page.stroke((-0.4, -0.42), (-0.2, -0.42))
    painted = page.mask()
    height, width = painted.shape
    top = painted[: height // 4] & ~detected[: height // 4]
    assert top[:, : width // 2].sum() > 100 and (painted >= detected).all()
    page.click("input[value=eraser]")
    page.stroke((-0.45, -0.42), (-0.1, -0.42))
    assert not page.mask()[round(0.08 * height), : width // 3].any()
    page.click("#undo")
    assert (page.mask() == painted).all()
    page.click("#clear")
    assert not page.mask().any()
    page.click("#detect")
    until(lambda: (page.mask() == detected).all())


def test_the_mask_can_be_painted_by_keyboard(page, files):
    page.choose("person", files / "person.png")
    page.click("#clear")
    canvas = page.one("#canvas")
    canvas.send_keys(" ")
    spot = page.mask()
    assert spot.any() and spot[spot.shape[0] // 2, spot.shape[1] // 2]
    canvas.send_keys("e", " ")
    assert not page.mask().any()


def test_the_keyboards_brush_is_seen_and_the_browsers_own_keys_stay_its_own(page, files, browser):
    page.choose("person", files / "person.png")
    canvas, brush = page.one("#canvas"), page.one("#brush")
    assert not brush.is_displayed()
    page.one("#garment .camera").send_keys(Keys.SHIFT, Keys.TAB)
    browser.execute_script("arguments[0].focus({ focusVisible: true })", canvas)
    assert brush.is_displayed()
    before = brush.location
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert brush.location["x"] > before["x"] and brush.location["y"] == before["y"]
    assert brush.size["width"] == int(page.one("#size").get_attribute("value"))
    ignored = browser.execute_script(
        """const zoom = new KeyboardEvent("keydown", { key: "+", ctrlKey: true, cancelable: true });
        arguments[0].dispatchEvent(zoom);
        return [zoom.defaultPrevented, document.querySelector("#size").value]""",
        canvas,
    )
    assert ignored == [False, "40"]
    canvas.send_keys(Keys.TAB)
    assert not brush.is_displayed()


HOLD = """
    const real = window.fetch;
    window.held = [];
    window.answered = 0;
    window.fetch = async (path, options) => {
      if (path !== arguments[0]) return real(path, options);
      await new Promise((go) => window.held.push(go));
      const answer = await real(path, options);
      window.answered += 1;
      return answer;
    };
"""


@pytest.mark.parametrize("kind", ["person", "garment"])
@pytest.mark.parametrize("path", ["/pictures/{}", "/{}"])
def test_the_picture_that_was_chosen_last_counts(page, files, browser, kind, path):
    """The answers about the first one come when the second one is there."""
    wrong = {"person": "nobody", "garment": "person"}[kind]
    browser.execute_script(HOLD, path.format(kind))
    page.one(f"#{kind} .file").send_keys(str(files / f"{wrong}.png"))
    until(lambda: browser.execute_script("return held.length === 1"))
    page.one(f"#{kind} .file").send_keys(str(files / f"{kind}.png"))
    until(lambda: browser.execute_script("return held.length === 2"))
    browser.execute_script("held[1]()")
    until(lambda: browser.execute_script(f"return Boolean(state.{kind}?.good)"))
    chosen = browser.execute_script(f"return state.{kind}.picture")
    browser.execute_script("held[0]()")
    until(lambda: browser.execute_script("return answered === 2"))
    time.sleep(1)  # for what the page makes of it
    assert page.error(kind) == ""
    assert browser.execute_script(f"return state.{kind}.picture") == chosen
    assert not browser.execute_script(
        f"return document.querySelector('#{kind} .drop').matches('.busy')"
    )


def test_pictures_chosen_before_the_networks_are_there_are_looked_at_then(browser, try_on, files):
    loaded = threading.Event()

    def load():
        loaded.wait(60)
        return try_on

    with serving(Demo(load)) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        for kind in ("person", "garment"):
            browser.find_element(By.CSS_SELECTOR, f"#{kind} .file").send_keys(
                str(files / f"{kind}.png")
            )
            until(lambda kind=kind: browser.execute_script(f"return Boolean(state.{kind})"))
        loaded.set()
        until(lambda: browser.find_element(By.CSS_SELECTOR, "#go").is_enabled())


def test_a_file_ends_the_camera(page, files, browser):
    page.click("#person .camera")
    until(lambda: page.text("#person .camera") == "Take picture")
    page.choose("person", files / "person.png")
    assert page.text("#person .camera") == "Camera" and not page.one("#person video").is_displayed()
    assert (
        browser.execute_script("return document.querySelector('#person video').srcObject") is None
    )


def test_an_empty_mask_is_an_error_beside_the_person(page, files):
    page.choose("person", files / "person.png")
    page.choose("garment", files / "garment.png")
    page.click("#clear")
    page.click("#go")
    until(lambda: "mask is empty" in page.error("person"))
    assert page.one("#go").is_enabled()


def test_errors_stand_beside_their_picture(page, files):
    page.choose("person", files / "nobody.png")
    assert "No person was found" in page.error("person") and not page.error("garment")
    assert not page.one("#go").is_enabled()
    page.choose("person", files / "text.png")
    assert "JPEG, PNG or WebP" in page.error("person")
    page.choose("person", files / "person.png")
    assert page.error("person") == ""
    page.choose("garment", files / "person.png")
    assert "A person is in the garment" in page.error("garment") and not page.error("person")
    page.choose("garment", files / "garment.png")
    assert page.error("garment") == "" and page.one("#go").is_enabled()


def test_of_several_people_the_largest_can_be_chosen(page, files):
    page.choose("person", files / "two.png")
    assert "2 persons" in page.error("person")
    page.click("#largest")
    until(lambda: page.mask().any())
    assert page.error("person") == ""
    frame, stage = page.one("#frame"), page.one("#canvas")
    assert frame.is_displayed() and frame.rect["width"] < 0.6 * stage.rect["width"]
    assert frame.rect["x"] > stage.rect["x"] + 0.4 * stage.rect["width"]
    assert "inside the dashed frame" in page.text("#person .tools")
    page.choose("person", files / "person.png")
    assert not frame.is_displayed() and "dashed" not in page.text("#person .tools")


def test_a_photo_can_be_dropped_and_taken(page, person_png, browser):
    import base64

    browser.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "person.png", { type: "image/png" }));
        document.querySelector("#person .drop").dispatchEvent(
          new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        """,
        base64.b64encode(person_png).decode(),
    )
    until(lambda: page.mask().any())
    page.click("#garment .camera")
    until(lambda: page.text("#garment .camera") == "Take picture")
    until(lambda: browser.execute_script(
        "return document.querySelector('#garment video').videoWidth > 0"
    ))  # fmt: skip
    page.click("#garment .camera")
    # The browser's test picture is no garment: the page says so, beside it.
    until(lambda: page.error("garment") or page.one("#go").is_enabled())
    assert page.text("#garment .camera") == "Camera"


def test_the_example_works_without_any_file(page, browser):
    page.click("#person .example")
    until(lambda: page.mask().any())
    page.click("#garment .example")
    until(lambda: page.one("#go").is_enabled())
    page.click("#go")
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "#pictures img"))


def test_progress_moves_and_cancel_stops(browser, try_on, files):
    slow = Slow(try_on)
    with serving(Demo(lambda: slow)) as port:
        try:
            Client(port)
            page = Page(browser, port)
            page.choose("person", files / "person.png")
            page.choose("garment", files / "garment.png")
            page.click("#go")
            slow.steps.release(3)
            until(lambda: page.text("#progress-text") == "Step 3 of 50")
            assert not page.one("#go").is_enabled()
            page.click("#cancel")
            for _ in range(40):  # the page tells the server first, whose next step notices
                slow.steps.release(1)
                time.sleep(0.2)
                if "Cancelled after" in page.error("result"):
                    break
            drawn = slow.drawn
            slow.steps.release(5)
            time.sleep(0.1)
            assert slow.drawn == drawn < 50 and page.one("#go").is_enabled()
        finally:
            slow.steps.release(10_000)


def test_leaving_the_page_stops_its_job(browser, try_on, files):
    slow = Slow(try_on)
    demo = Demo(lambda: slow)
    with serving(demo) as port:
        try:
            page = Page(browser, port)
            page.choose("person", files / "person.png")
            page.choose("garment", files / "garment.png")
            page.click("#go")
            slow.steps.release(1)
            until(lambda: slow.drawn == 1)
            job = browser.execute_script("return state.job")
            browser.get("about:blank")
            assert demo.worker.find(job).cancelled.wait(20)
        finally:
            slow.steps.release(10_000)


def test_it_fits_a_phone(browser, client):
    browser.set_window_size(390, 844)
    try:
        Page(browser, client.port)
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0
        small = browser.execute_script(
            """return [...document.querySelectorAll("button, .button, select, input[type=number]")]
            .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 40).length"""
        )
        assert small == 0
    finally:
        browser.set_window_size(1280, 1400)


def test_every_control_can_be_reached_by_keyboard_and_has_a_name(page, browser):
    unnamed = browser.execute_script(
        """return [...document.querySelectorAll("button, input, select, canvas")].filter((one) =>
        !(one.textContent.trim() || one.getAttribute("aria-label") || one.closest("label")))
        .map((one) => one.outerHTML)"""
    )
    assert unnamed == []


def test_nobody_else_was_asked_and_nothing_was_refused_by_the_policy(page, browser):
    """After everything above: no request to another machine, no complaint of the browser's."""
    import json

    addresses = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            addresses.append(message["params"]["request"]["url"])
    outside = [
        one for one in addresses if not one.startswith(("http://127.0.0.1:", "data:", "blob:"))
    ]
    outside = [one for one in outside if not one.startswith(("chrome:", "about:"))]
    assert addresses and outside == []
    complaints = [
        entry["message"]
        for entry in browser.get_log("browser")
        if "Content Security Policy" in entry["message"]
    ]
    assert complaints == []
