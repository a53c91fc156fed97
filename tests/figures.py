"""What tests measured (`record_property`), at the end of the test run: a plugin of the test run."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each test that measured something; nothing where none did."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    measured = [each for each in reports if each.when == "call" and each.user_properties]
    if not measured:
        return
    terminalreporter.section("measured")
    for report in measured:
        figures = ", ".join(f"{name}={value}" for name, value in report.user_properties)
        terminalreporter.write_line(f"{report.nodeid}: {figures}")
