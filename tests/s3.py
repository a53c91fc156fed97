"""An S3 server of this machine, for tests."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer

BUCKET = "pictures"
REGION = "us-east-1"


@dataclass(frozen=True)
class Store:
    """A running server with an empty bucket, BUCKET."""

    endpoint: str
    client: Any
    """boto3's."""

    @property
    def variables(self) -> dict[str, str]:
        """What a user of it sets."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "a-key",
            "AWS_SECRET_ACCESS_KEY": "its-secret",
            "AWS_DEFAULT_REGION": REGION,
        }

    def put(self, key: str, content: bytes) -> None:
        """Store an object."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        """An object's content."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def keys(self, prefix: str = "") -> list[str]:
        """The keys under a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def check_credentials(self) -> None:
        """From now on refuse keys that are not known, which are all."""
        self.tell("reset-auth", b"0")

    def reset(self) -> None:
        """Be as at the start."""
        self.tell("reset-auth", b"1000000000")
        self.tell("reset", b"")
        self.client.create_bucket(Bucket=BUCKET)

    def tell(self, what: str, content: bytes) -> None:
        """Ask moto for something that no S3 server does."""
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/{what}", content, headers, method="POST")
        urllib.request.urlopen(request).close()


@contextmanager
def serve() -> Iterator[Store]:
    """Run a server on a free port, named as servers are (`localhost`, no number), until the block ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = f"http://localhost:{server.get_host_and_port()[1]}"
        keys = {"aws_access_key_id": "a-key", "aws_secret_access_key": "its-secret", "region_name": REGION}
        client = boto3.client("s3", endpoint_url=endpoint, **keys)
        client.create_bucket(Bucket=BUCKET)
        yield Store(endpoint, client)
    finally:
        server.stop()
