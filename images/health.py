"""The health check of both services' containers: exit code 0 only if requests can be answered.

    python3 health.py http://127.0.0.1:8001/
    python3 health.py http://127.0.0.1:8000/health --ask

With --ask a vLLM server must answer one question about a picture before its first success: its own health check does
not test the chat template, the image processor or the length limit. Needs no package, so that any Python runs it.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

# Compose puts the vLLM server's key there.
KEY = Path("/run/secrets/api_key")
# Exists once the server has answered a question. /tmp is a tmpfs: it disappears with the container.
ANSWERED = Path("/tmp/answered")

# A grey picture of 32 x 32 pixels.
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAKElEQVR42u3NQQEAAAQEMCS/6Erw2wqsk9SnqWcCgUAg"
    "EAgEAoHgygK+PQHAs0oJIwAAAABJRU5ErkJggg=="
)


def fetch(url: str, body: dict[str, Any] | None = None) -> Any:
    """A URL's answer if it is a JSON object, otherwise None; a status other than 200 is an error."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    key = KEY.read_text().strip() if KEY.exists() else ""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, data, headers)
    with opener.open(request, timeout=30) as response:
        content = response.read()
        if response.status != 200:
            raise ValueError(f"{url}: HTTP {response.status}")
    return json.loads(content) if content.startswith(b"{") else None


def ask(url: str) -> None:
    """Ask the server at this address about a picture; it answers with a single token."""
    model = fetch(urljoin(url, "/v1/models"))["data"][0]["id"]
    parts = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "What is this?"}]
    question = {"model": model, "max_tokens": 1, "temperature": 0, "messages": [{"role": "user", "content": parts}]}
    fetch(urljoin(url, "/v1/chat/completions"), question)


def main() -> int:
    """0: healthy. 1: not; the reason goes to stdout, where `docker inspect` shows it."""
    parser = argparse.ArgumentParser(description="Exit with 0 when a service can answer requests.")
    parser.add_argument("url", help="the address that answers 200 when the service is ready")
    parser.add_argument(
        "--ask", action="store_true", help="ask a vLLM server about a picture, until it has answered once"
    )
    arguments = parser.parse_args()
    try:
        fetch(arguments.url)
        if arguments.ask and not ANSWERED.exists():
            ask(arguments.url)
            ANSWERED.touch()
    except urllib.error.HTTPError as error:
        print(f"{error.url}: HTTP {error.code}: {error.read(500).decode(errors='replace')}")
        return 1
    except (OSError, ValueError, LookupError) as error:
        print(f"{arguments.url}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
