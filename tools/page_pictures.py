"""Takes the pictures of the server's page that the documentation shows: light, dark, and on a telephone.

    python tools/page_pictures.py [--folder docs/assets] [--model DIR]

Needs the extras `serve` and `browser`, and a Chromium on the path (Debian: `apt install chromium`).
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from served import served

ROOT = Path(__file__).parents[1]
TEXT = (
    "The children played in the water all day. In the evening they walked home along the river. "
    "The old man told them a story before they slept."
)
# Name, width, height, colors.
PICTURES = (
    ("page_light", 1200, 1000, "light"),
    ("page_dark", 1200, 1000, "dark"),
    ("page_narrow", 390, 844, "light"),
)


def main(
    folder: Annotated[Path, typer.Option(help="Where the pictures go.")] = ROOT / "docs" / "assets",
    model: Annotated[Path | None, typer.Option(help="Model directory. Default: the embedded voice.")] = None,
) -> None:
    """Takes the pictures."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        typer.echo("no Chromium is on the path; Debian: apt install chromium", err=True)
        raise typer.Exit(2)
    options = [] if model is None else ["--model", str(model)]
    with served(options) as server, sync_playwright() as playwright:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--hide-scrollbars"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for name, width, height, colors in PICTURES:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=colors, device_scale_factor=1
            )
            page.goto(server.url)
            page.wait_for_selector("#voice option", state="attached")
            page.fill("#text", TEXT)
            page.click("#start")
            page.wait_for_selector("body[data-state=done]", timeout=120_000)
            # The picture is of the whole speech, half of it heard.
            page.evaluate("const audio = document.getElementById('audio'); audio.currentTime = audio.duration * 0.45")
            page.wait_for_timeout(300)
            page.evaluate("document.activeElement.blur()")
            page.screenshot(path=folder / f"{name}.jpg", full_page=True, quality=88)
            typer.echo(folder / f"{name}.jpg")
        browser.close()


if __name__ == "__main__":
    sys.exit(typer.run(main))
