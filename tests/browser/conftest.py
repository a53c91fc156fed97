"""Pages in the programs that people look at them with."""

from __future__ import annotations

from tests.browser.chromium import missing

# `tests.browser.chromium` says so at the begin of a test run.
collect_ignore_glob = ["test_*.py"] if missing() else []
