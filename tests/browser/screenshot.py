"""Take a picture of a page (`python -m tests.browser.screenshot`): the README's are made in this way."""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.chromium import executable


def take(page: Path, picture: Path, width: int, height: int, scheme: str, quality: int, point_at: float | None) -> None:
    """Write a page's upper part as a JPEG; `point_at`, a share of the run, puts the pointer on a profile's timeline."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        shown = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
        )
        shown.goto(page.resolve().as_uri())
        shown.wait_for_load_state("networkidle")
        plot = shown.locator(".timeline svg").first
        if point_at is not None and (box := plot.bounding_box()):
            shown.mouse.move(box["x"] + box["width"] * point_at, box["y"] + 5)
        shown.screenshot(path=str(picture), type="jpeg", quality=quality)
        browser.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshot", description=take.__doc__)
    parser.add_argument("page", type=Path, help="an HTML file")
    parser.add_argument("picture", type=Path, help="the JPEG to write")
    parser.add_argument("--width", type=int, default=1240, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=1000, help="of the window, in pixels")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEG, 1 to 100")
    parser.add_argument("--point-at", type=float, help="a moment of a profile's timeline to show, 0 to 1")
    arguments = parser.parse_args()
    take(**vars(arguments))


if __name__ == "__main__":
    main()
