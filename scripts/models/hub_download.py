#!/usr/bin/env python3
"""Fetch one model from the hub into its cache: once, resumed after an interruption, verified by the hub's hashes.

The first line of stdin is the hub's token, so that no variable and no command line shows it. Each event is a line of
JSON: `plan` (files, bytes), `progress` (bytes), `verify`, `done` (folder, bytes, fetched) or `failed` (kind, message;
for a refusal of the hub its status and code). The program runs in a service's environment, which has the hub's client
and none of the operator's packages, so it imports nothing of Spotter.

The hub's client (2.4.0) restarts a file after an interruption, and a shard of gemma-3n has 5 GB. So this program
fetches large files itself, with that client's functions and into the same places of its cache, and resumes them.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# The client reads these when it is imported.
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}

import httpx2  # type: ignore[import-not-found]
from huggingface_hub import (  # type: ignore[import-not-found]
    HfApi,
    constants,
    get_cached_repo_tree,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (  # type: ignore[import-not-found]
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import http_get, repo_folder_name  # type: ignore[import-not-found]
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[import-not-found]

# Weights in other formats; vLLM and Transformers read none of them where there are safetensors.
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot")
# Large files at once: one connection does not use all of a fast line.
PARALLEL = 4
# Attempts in a row that bring no byte.
ATTEMPTS = 6
PROGRESS_S = 0.5
# Free space that must remain for logs, state and the compile cache.
SPARE_BYTES = 100 * 2**20


class Failed(Exception):
    """The model cannot be fetched; `kind` classifies the reason."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class File:
    """One file of the model, as the hub lists it."""

    path: str
    size: int
    sha256: str | None
    """None for a small file; the hub has a git hash of those."""


def tell(event: str, **facts: object) -> None:
    """Print an event."""
    print(json.dumps({"event": event, **facts}), flush=True)


def size(path: Path) -> int:
    """Bytes of a file; 0 where it does not exist."""
    return path.stat().st_size if path.exists() else 0


def ignored(paths: Sequence[str]) -> list[str]:
    """The patterns of files that stay at the hub."""
    return list(OTHER_WEIGHTS) if any(path.endswith(".safetensors") for path in paths) else []


def cached(model: str, revision: str) -> Path | None:
    """The model's folder in the cache if it is complete there; without a network."""
    try:
        patterns = ignored([file.path for file in get_cached_repo_tree(model, revision=revision)])
    except CachedRepoTreeNotFoundError:  # an older client fetched it: its own index names its shards
        patterns = []
    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True, ignore_patterns=patterns))
    except LocalEntryNotFoundError:
        return None
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
    return folder if all((folder / name).exists() for name in ("config.json", *shards)) else None


class Download:
    """The download of one model from the hub into the cache."""

    def __init__(self, model: str, revision: str, token: str | None) -> None:
        """Ask the hub for the commit and its files.

        Raises:
            HfHubHTTPError: the hub refuses.
            httpx2.TransportError: it cannot be reached.
        """
        self.api = HfApi(token=token)
        self.model, self.revision, self.token = model, revision, token
        # One request shows whether the hub answers, has the model at this revision, and gives it to this token.
        config = get_hf_file_metadata(hf_hub_url(model, "config.json", revision=revision), token=token)
        self.commit = config.commit_hash or revision
        listed = self.api.list_repo_tree(model, recursive=True, revision=self.commit)
        found = [entry for entry in listed if hasattr(entry, "blob_id")]
        self.patterns = ignored([entry.path for entry in found])
        self.files = [
            File(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in found
            if not any(Path(entry.path).match(pattern) for pattern in self.patterns)
        ]
        self.total = sum(file.size for file in self.files)
        self.home: Path = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
        self.snapshot = self.home / "snapshots" / self.commit
        self.stop = threading.Event()

    def blob(self, file: File) -> Path:
        """A large file's content in the cache; the snapshot links to it."""
        return self.home / "blobs" / str(file.sha256)

    def partial(self, file: File) -> Path:
        """A large file's content while it is incomplete."""
        return self.blob(file).with_name(f"{file.sha256}.incomplete")

    def present(self) -> int:
        """Bytes of the model in the cache."""
        total = 0
        for file in self.files:
            places = (self.partial(file), self.blob(file)) if file.sha256 else (self.snapshot / file.path,)
            for place in places:
                with contextlib.suppress(FileNotFoundError):  # a complete file has just moved to the second place
                    total += min(place.stat().st_size, file.size)
                    break
        return total

    def check_room(self) -> None:
        """The disk has room for the missing files.

        Raises:
            Failed: it has not.
        """
        missing = self.total - self.present()
        place = next(place for place in (self.home, *self.home.parents) if place.exists())
        free = shutil.disk_usage(place).free
        if missing and free < missing + SPARE_BYTES:
            raise Failed("disk", f"{missing / 1e9:.2f} GB are missing, and {place} has {free / 1e9:.2f} GB free")

    def fetch_large(self, file: File) -> None:
        """Fetch a large file; it gets its name when its hash is right, so an interrupt leaves no wrong file.

        Raises:
            HfHubHTTPError, httpx2.TransportError: too many failures.
            Failed: its content is wrong, even after a second download.
        """
        blob, partial = self.blob(file), self.partial(file)
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / self.home.name / f"{file.sha256}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                return
            for _ in range(2):
                self.complete(file, partial)
                with partial.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() == file.sha256:
                        partial.rename(blob)
                        return
                partial.unlink()
        raise Failed("damaged", f"{file.path} differs from the hub's hash, even after a second download")

    def complete(self, file: File, partial: Path) -> None:
        """Fetch the rest of a large file, from the end of an earlier attempt.

        Raises:
            HfHubHTTPError, httpx2.TransportError: ATTEMPTS failures in a row brought no byte.
        """
        failures = 0
        while (have := size(partial)) < file.size:
            try:
                # A fresh address each time: the hub's signed ones expire.
                url = hf_hub_url(self.model, file.path, revision=self.commit)
                address = get_hf_file_metadata(url, token=self.token).location
                headers = build_hf_headers(token=self.token)
                if urlsplit(address).netloc != urlsplit(url).netloc:
                    headers.pop("authorization", None)  # the token belongs to the hub alone
                with partial.open("ab") as content:
                    http_get(address, content, resume_size=have, headers=headers, expected_size=file.size)
            except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
                failures = 0 if size(partial) > have else failures + 1
                if self.stop.is_set() or not is_transient(error) or failures == ATTEMPTS:
                    raise
                time.sleep(min(2**failures, 30) * 0.5)

    def fetch(self) -> Path:
        """Fetch the missing files, large ones first, and report the progress."""
        present, count = self.present(), len(self.files)
        tell("plan", model=self.model, revision=self.commit, files=count, bytes=self.total, present=present)
        self.check_room()
        self.stop.clear()
        pool = ThreadPoolExecutor(PARALLEL)
        pending = {pool.submit(self.fetch_large, file) for file in self.files if file.sha256}
        try:
            while pending:
                done, pending = wait(pending, PROGRESS_S, FIRST_COMPLETED)
                for each in done:
                    each.result()
                tell("progress", bytes=self.present())
        finally:  # after a failure, do not wait for the other files: the cache keeps their parts
            self.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        options = {"token": self.token, "ignore_patterns": self.patterns, "max_workers": PARALLEL}
        folder = snapshot_download(self.model, revision=self.revision, **options)
        tell("progress", bytes=self.present())
        return Path(folder)

    def remove_damaged(self) -> list[str]:
        """Remove the files whose content differs from the hub's hashes; their paths."""
        tell("verify", bytes=self.total)
        found = self.api.verify_repo_checksums(self.model, revision=self.commit, token=self.token)
        damaged: list[str] = [mismatch["path"] for mismatch in found.mismatches]
        for link in (self.snapshot / path for path in damaged):
            link.resolve().unlink(missing_ok=True)
            link.unlink(missing_ok=True)
        return damaged


def is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, OSError) and error.errno is not None:
        return False  # this host's disk
    return not isinstance(error, OfflineModeIsEnabled)


def fetch(model: str, revision: str, token: str | None) -> tuple[Path, int]:
    """Fetch a model and verify it; its folder, and the number of bytes that came.

    Raises:
        Failed: a file is damaged, even after a second download; or the disk is too small.
    """
    download = Download(model, revision, token)
    before = download.present()
    for _ in range(2):
        folder = download.fetch()
        if not (damaged := download.remove_damaged()):
            return folder, download.present() - before
    raise Failed("damaged", f"{', '.join(damaged)} differ from the hub's hashes, even after a second download")


def failure(error: Exception) -> dict[str, object]:
    """The facts of a `failed` event."""
    message = " ".join(str(error).split()) or type(error).__name__
    match error:
        case Failed():
            return {"kind": error.kind, "message": message}
        case HfHubHTTPError():
            code = error.response.headers.get("X-Error-Code")
            return {"kind": "refused", "message": message, "status": error.response.status_code, "code": code}
        case HFValidationError():
            return {"kind": "name", "message": message}
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return {"kind": "disk", "message": error.strerror or message}
        case OSError(errno=errno.EROFS | errno.EACCES | errno.EPERM):
            return {"kind": "cache", "message": f"{error.strerror}: {error.filename}"}
        case httpx2.TransportError() | LocalEntryNotFoundError():
            return {"kind": "unreachable", "message": message}
    return {"kind": "other", "message": f"{type(error).__name__}: {message}"}


def main() -> int:
    """0: the model is in the cache. 1: it is not, and the last event says why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="owner/name at the hub")
    parser.add_argument("--revision", default="main", help="commit, branch or tag (default: main)")
    parser.add_argument("--if-missing", action="store_true", help="use no network if the cache is complete")
    parser.add_argument("--offline", action="store_true", help="use no network at all")
    arguments = parser.parse_args()
    token = sys.stdin.readline().strip() or None
    try:
        folder = cached(arguments.model, arguments.revision) if arguments.if_missing or arguments.offline else None
        fetched = 0
        if folder is None and arguments.offline:
            raise Failed("absent", f"{arguments.model}@{arguments.revision[:12]} is not in {constants.HF_HUB_CACHE}")
        if folder is None:
            folder, fetched = fetch(arguments.model, arguments.revision, token)
        present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        tell("done", folder=str(folder), bytes=present, fetched=fetched)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the hub's client, its HTTP library and the file system share no base class
        tell("failed", **failure(error))
        return 1
    return 0


if __name__ == "__main__":
    # Skip the interpreter's end: it would wait for transfers that an error has left behind.
    code = main()
    sys.stdout.flush()
    os._exit(code)
