"""The page, in a real Chromium that is driven as a user would: types, plays, uploads, sees errors."""

import io
import shutil

import pytest
import soundfile
from helpers import live_server, tiny_model
from helpers.fake_tts import FakeTTS

from spark_jax.serve.app import create_app
from spark_jax.serve.settings import ServerSettings

pytestmark = pytest.mark.extended

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path")
    flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model():
    made = FakeTTS()
    made.pace = 0.02
    return made


@pytest.fixture(scope="module")
def address(model):
    with live_server.running(create_app(model, model="tiny")) as url:
        yield url


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(error))
    page.on("console", lambda message: faults.append(message.text) if "Policy" in message.text else None)
    page.goto(address)
    page.wait_for_selector("#voice option", state="attached")
    yield page
    assert not faults
    page.close()


def state(page, name):
    page.wait_for_selector(f"body[data-state={name}]", timeout=30_000)


def shows(page, name, text):
    page.wait_for_selector(f"#{name}:has-text('{text}')")


def test_a_text_is_typed_and_its_stream_is_played(page):
    page.fill("#text", "Hello there. This is the second sentence.\n\nAnd a paragraph.")
    page.select_option("#voice", "male")
    page.keyboard.press("Control+Enter")
    state(page, "playing")
    assert page.is_enabled("#pause")
    assert page.inner_text("#first").endswith(" ms")
    page.wait_for_selector("#captions [aria-current=true]")
    state(page, "done")
    # How many and how fast is the machine's affair, and measured elsewhere.
    assert page.inner_text("#gaps").isdigit()
    assert float(page.inner_text("#factor")) > 0
    assert page.locator("#captions li").count() == 2
    # Something is drawn, and what is downloaded is the speech.
    for canvas in ("wave", "spectrogram"):
        drawn = page.evaluate(
            f"""() => {{ const canvas = document.getElementById("{canvas}");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return data.filter((value, index) => index % 4 === 3 && value > 0).length }}"""
        )
        assert drawn > 1000
    with page.expect_download() as download:
        page.click("#download")
    samples, rate = soundfile.read(download.value.path())
    assert rate == 16_000
    assert f"{len(samples) / rate:.2f} s" == page.inner_text("#length")


def test_a_speech_that_is_not_streamed_is_played_in_the_end(page):
    page.fill("#text", "Short.")
    page.uncheck("#stream")
    page.click("#start")
    state(page, "done")
    assert page.inner_text("#gaps") == "–"
    assert page.is_visible("#audio")


def test_escape_stops(page, model):
    page.fill("#text", "A text that takes a while to be spoken. " * 8)
    page.click("#start")
    state(page, "playing")
    page.keyboard.press("Escape")
    state(page, "idle")
    page.wait_for_selector("#start:enabled")
    page.wait_for_timeout(200)
    assert model.engine.running == 0
    assert page.is_visible("#download")


def test_errors_are_seen_and_told(page):
    page.fill("#text", "...")
    page.click("#start")
    state(page, "error")
    alert = page.locator("#error[role=alert]")
    assert alert.is_visible()
    assert "no letter or number is in it" in alert.inner_text()
    page.fill("#text", "Better.")
    page.click("#start")
    state(page, "done")
    assert not alert.is_visible()


def test_a_reference_is_uploaded_and_its_voice_speaks(page):
    content = io.BytesIO()
    soundfile.write(content, tiny_model.speech(2.0), 16_000, format="WAV")
    page.click("#cloning summary")
    page.fill("#name", "Ann")
    file = {"name": "ann.wav", "mimeType": "audio/wav", "buffer": content.getvalue()}
    page.set_input_files("#recording", file)
    page.click("#keep")  # without the consent the browser refuses
    assert page.inner_text("#clone-status") == ""
    page.check("#consent")
    page.click("#keep")
    shows(page, "clone-status", "Ann")
    assert page.locator("#voice option:checked").inner_text() == "Ann"
    assert page.is_disabled("#pitch")
    page.fill("#text", "Hello.")
    page.click("#start")
    state(page, "done")
    page.set_input_files("#recording", {**file, "buffer": b"no audio"})
    page.fill("#name", "Bob")
    page.click("#keep")
    page.wait_for_selector("#clone-error:visible")
    assert "not readable as audio" in page.inner_text("#clone-error")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    page.wait_for_selector("#voice option:has-text('Ann')", state="detached")


def test_the_microphone_records(page):
    page.click("#cloning summary")
    page.click("#record")
    shows(page, "recorded", "recording, 1")
    page.click("#record")
    page.wait_for_selector("#preview:visible")
    page.fill("#name", "Me")
    page.check("#consent")
    page.click("#keep")
    shows(page, "clone-status", "Me")


def test_a_key_is_asked_for(browser):
    app = create_app(FakeTTS(), ServerSettings(api_keys=("secret",)), model="tiny")
    with live_server.running(app) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#error:visible")
        assert "API key" in page.inner_text("#error")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#voice option", state="attached")
        page.fill("#text", "Hello.")
        page.click("#start")
        state(page, "done")
        page.close()


def test_every_control_has_a_name_and_can_be_reached_by_keys(page):
    page.select_option("#voice", "female")
    page.click("#cloning summary")
    page.click("#access summary")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, audio, canvas")].filter((element) =>
        !(element.labels?.length || element.textContent.trim() || element.getAttribute("aria-label")))
        .map((element) => element.id)"""
    )
    assert unnamed == []
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    for name in (
        "text",
        "start",
        "stream",
        "voice",
        "pitch",
        "speed",
        "tempo",
        "seed",
        "name",
        "consent",
        "keep",
        "key",
    ):
        assert name in reached, name


def test_nothing_is_wider_than_a_telephone(browser, address):
    page = browser.new_page(viewport={"width": 320, "height": 640}, color_scheme="dark")
    page.goto(address)
    page.wait_for_selector("#voice option", state="attached")
    for name in ("cloning", "access"):
        page.click(f"#{name} summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.close()
