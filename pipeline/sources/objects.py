"""Objects in a bucket (`s3://bucket/key`), through Daft: list them, read one, copy files there and back.

Credentials come from where Daft takes them: the standard AWS variables, a profile, or the role of the machine. A
server other than Amazon's is named by its endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import daft
from daft import col
from daft.daft import io_glob
from daft.exceptions import DaftTransientError
from daft.functions import download, upload
from daft.io import HTTPConfig, IOConfig, S3Config

from pipeline.errors import BucketUnusable, RowError

# Daft's own limits (25 tries, 30 s to connect) let a wrong address hang for minutes. With its back-off of 1 s and more,
# these survive a passing fault and report a lasting one within 20 s.
TRIES = 4
CONNECT_MS = 5_000
# The longest that a web server may send nothing.
SILENT_MS = 10_000

WILDCARD = re.compile(r"[*?\[{]")

# Files that are copied side by side; crops and annotated pictures are some 100 kB each.
COPIED_AT_ONCE = 32


class StoreError(RowError):
    """The store of an object did not do what it was asked; the message is one line."""

    stage: ClassVar[str | None] = "fetch"


class Unreachable(StoreError):
    """The store did not answer, or was too busy, at all tries."""


class NoObject(StoreError):
    """There is no such object, or no such bucket."""

    stage: ClassVar[str | None] = None


def explain(error: BaseException) -> StoreError:
    """Daft's error, of many lines, as one."""
    text = str(error)
    code = re.search(r'code: (?:Some\()?"(\w+)"', text) or re.search(r"\b(NoSuchBucket|NoSuchKey)\b", text)
    if isinstance(error, FileNotFoundError) or (code and code[1] in ("NoSuchBucket", "NoSuchKey", "NotFound")):
        return NoObject("there is no such bucket" if code and code[1] == "NoSuchBucket" else "there is no such object")
    if code and code[1] in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "Forbidden"):
        return StoreError(
            f"access is refused ({code[1]}): see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    causes = [line.split(": ", 1)[-1] for line in text.splitlines() if re.match(r"\s*\d+: ", line)]
    if isinstance(error, DaftTransientError) or "dispatch failure" in text:
        return Unreachable(f"the store cannot be reached ({causes[-1] if causes else 'no answer in time'})")
    return StoreError(" ".join((code[1] if code else causes[-1] if causes else text).split())[:300])


@dataclass(frozen=True, slots=True)
class Objects:
    """The stores that can be reached, with one configuration."""

    endpoint: str | None = None
    """Of an S3 server other than Amazon's."""

    def config(self) -> IOConfig:
        """Daft's configuration. The endpoint has to be in it: by a variable alone Daft would look for a bucket of a
        server `store:9000` at `bucket.store:9000`."""
        return IOConfig(
            s3=S3Config(endpoint_url=self.endpoint, num_tries=TRIES, connect_timeout_ms=CONNECT_MS),
            http=HTTPConfig(
                num_tries=TRIES - 1,  # those after the first
                connect_timeout_ms=CONNECT_MS,
                read_timeout_ms=SILENT_MS,
            ),
        )

    def glob(self, pattern: str, limit: int | None = None) -> list[tuple[str, int]]:
        """Address and size in bytes of the objects that match a glob, or of `limit` of them, sorted.

        Daft's public `from_glob_path` does the same, but gives a bucket that is not there the error of an empty one.

        Raises:
            StoreError: the store does not tell.
        """
        try:
            found = io_glob(pattern, io_config=self.config(), limit=limit)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise explain(error) from error
            return []
        except Exception as error:
            raise explain(error) from error
        return sorted((entry["path"], entry["size"]) for entry in found if entry["type"] == "File")

    def list(self, place: str) -> list[tuple[str, int]]:
        """Address and size of all objects under a prefix, of those that match a glob, or of one object.

        A place without a wildcard is an object where there is one, and else a prefix.

        Raises:
            StoreError: the store does not tell.
        """
        if WILDCARD.search(place):
            # Where nothing matches it may be a name that looks like a glob.
            return self.glob(place) or [entry for entry in self.glob(parent(place) + "*") if entry[0] == place]
        if not place.endswith("/"):
            found = self.glob(place, limit=2)
            if [address for address, _ in found] == [place]:
                return found
        return self.glob(place.rstrip("/") + "/**")

    def open(self, address: str) -> Any:
        """An object as a file that can be read from any place in it.

        Raises:
            StoreError: it is not there, or the store does not give it.
        """
        try:
            return daft.open_file(address, "rb", io_config=self.config())
        except Exception as error:
            raise explain(error) from error

    def read(self, address: str, most: int = -1) -> bytes:
        """An object's content, or the first `most` bytes of it.

        Raises:
            StoreError: it is not there, or the store does not give it.
        """
        try:
            with self.open(address) as handle:
                return bytes(handle.read(most))
        except StoreError:
            raise
        except Exception as error:
            raise explain(error) from error

    def copy(self, pairs: Iterable[tuple[str, str]], moved: Callable[[], None] = lambda: None) -> None:
        """Copy each first place to its second one; either may be a file's path or an object's address.

        `moved` is called now and then while it goes on.

        Raises:
            StoreError: a copy failed; others may have been made.
        """
        listed = list(pairs)
        if not listed:
            return
        frame = daft.from_pydict({"from": [one for one, _ in listed], "to": [other for _, other in listed]})
        content = download(col("from"), max_connections=COPIED_AT_ONCE, io_config=self.config())
        frame = frame.into_batches(COPIED_AT_ONCE).with_column("content", content)
        frame = frame.select(
            upload(col("content"), col("to"), max_connections=COPIED_AT_ONCE, io_config=self.config()).alias("written")
        )
        try:
            for _ in frame.to_arrow_iter():
                moved()
        except Exception as error:
            raise explain(error) from error


def parent(address: str) -> str:
    """The prefix that an object lies under, with its slash."""
    return address[: address.rindex("/") + 1]


def refuse(what: str, place: str, error: StoreError) -> BucketUnusable:
    """The one line for a place that a person gave and that cannot be used."""
    return BucketUnusable(f"{what}: {place}: {error}: correct the address, the credentials or SPOTTER_S3_ENDPOINT")
