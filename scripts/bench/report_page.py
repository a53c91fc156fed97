"""Make the report of a large run, and look at it in Chromium: times, memory, size.

    .spotter/envs/dev/bin/python -m scripts.bench.report_page
    .spotter/envs/dev/bin/python -m scripts.bench.report_page --images 10000 --folder /tmp/large

The run is made up: tables of the bundled job with three detections an image on average, and a crop for each. The exit
code is 1 when the page opens in more than 2 s, a filter or a sort takes more than 0.3 s, or the page takes more than
500 MB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from scripts.bench import command
from tests.browser.chromium import executable
from tests.browser.look_at_report import look
from tests.large_run import write_large_run

OPEN_S, ACT_S, MEMORY_MB = 2.0, 0.3, 500.0


def measure(options: argparse.Namespace) -> list[str]:
    """Make the run's report, open it, use it; one line for each figure beyond its limit."""
    console = command.make_console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary) / "large"
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        made = write_large_run(folder, options.images)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        console.print(f"{options.images:,} images, {made.rows:,} rows")
        console.print(f"tables     {made.tables_s:6.2f} s, {made.tables_cpu_s:.2f} s of CPU")
        console.print(f"report     {made.report_s:6.2f} s, {made.report_cpu_s:.2f} s of CPU, {made.page_mb:.1f} MB")
        console.print(f"process    {peak_mb:6.0f} MB at most, {before_mb:.0f} MB before")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
            seen = look(browser, folder / "report.html")
            browser.close()
        console.print(f"opens      {seen.first_s:6.2f} s to the first pictures, {seen.all_s:.2f} s to all rows")
        console.print(f"  CPU      {seen.cpu_s:6.2f} s of the page until then")
        for name, seconds in seen.acts_s.items():
            console.print(f"{name:10} {seconds:6.3f} s, {seen.acts_cpu_s[name]:.3f} s of CPU")
        console.print(
            f"memory     {seen.memory_mb:6.0f} MB of the page's process, {seen.heap_mb:.0f} MB for JavaScript"
        )
    beyond = [f"opens in {seen.all_s:.2f} s, limit {OPEN_S} s"] if seen.all_s > OPEN_S else []
    beyond += [f"{name}: {took:.3f} s, limit {ACT_S} s" for name, took in seen.acts_s.items() if took > ACT_S]
    beyond += [f"memory: {seen.memory_mb:.0f} MB, limit {MEMORY_MB:.0f} MB"] if seen.memory_mb > MEMORY_MB else []
    return beyond


def main() -> int:
    """Make, look, report."""
    parser = command.Options(__doc__)
    parser.option("--images", 100_000, "images in the run")
    parser.option("--folder", "", "keep the run's folder here")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
