"""`python -m services.detector`: the detector service on the command line."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap

from services.detector.service import EXIT_BAD_SETTINGS, serve
from services.detector.settings import Settings, SettingsError, read_settings, variable


def _variables() -> str:
    lines = ["environment variables:"]
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else field.default
        lines.append(f"  {variable(name):<24}{field.description} (default: {default})")
    return "\n".join(lines)


def main() -> int:
    """Read the settings and serve; returns the exit code of `serve`, 2 for invalid settings."""
    parser = argparse.ArgumentParser(
        prog="python -m services.detector",
        description=textwrap.dedent("""\
            Find objects in images, over HTTP: POST /detect; GET / answers once the model is ready; GET /metrics.
            Exit code: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 invalid settings."""),
        epilog=_variables(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        for problem in str(error).splitlines():
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    return serve(settings)


if __name__ == "__main__":
    raise SystemExit(main())
