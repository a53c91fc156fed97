#!/usr/bin/env python3
"""Get one model from the hub into its cache: once, resumed where it stopped, verified against the hub's own hashes.

Reads the hub's token from the first line of stdin, so that no variable and no command line shows it. Prints a line of
JSON for each event: `plan` (files, bytes), `progress` (bytes), `verify`, `done` (folder, bytes, fetched) or `failed`
(kind, message; for a refusal of the hub its status and code). Runs in a service's environment, which has the hub's
client and none of the operator's packages, so it imports nothing of Spotter.

The hub's client (2.4.0) begins a file anew after an interruption. A shard of gemma-3n has 5 GB: so the large files are
fetched here, by that client's own parts, into the same cache at the same places, and keep what they have.
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
from typing import Any
from urllib.parse import urlsplit

# Before the client is imported, which reads them once: progress is told here, and nothing else of this host.
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

# Weights in other forms, which neither vLLM nor Transformers reads where there are safetensors.
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot")
# Large files at once: one connection does not fill a fast line.
PARALLEL = 4
# A connection that breaks is taken up again; each try that brings nothing counts.
ATTEMPTS = 6
PROGRESS_S = 0.5
# Free space that has to remain, so that the host can go on: logs, state, the kernels' cache.
SPARE_BYTES = 100 * 2**20


class Failed(Exception):
    """The model cannot be had; `kind` says of what sort the reason is."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class File:
    """One file of the model, as the hub lists it."""

    path: str
    size: int
    sha256: str | None
    """Of a large file; the hub has a git hash of the small ones."""


def tell(event: str, **facts: object) -> None:
    """Print an event."""
    print(json.dumps({"event": event, **facts}), flush=True)


def ignored(paths: Sequence[str]) -> list[str]:
    """The patterns of files that are left at the hub."""
    return list(OTHER_WEIGHTS) if any(path.endswith(".safetensors") for path in paths) else []


def cached(model: str, revision: str) -> Path | None:
    """The model's folder in the cache, if no file is missing there; asks no network."""
    try:
        patterns = ignored([file.path for file in get_cached_repo_tree(model, revision=revision)])
    except CachedRepoTreeNotFoundError:  # put there by an older client: its own index names its shards
        patterns = []
    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True, ignore_patterns=patterns))
    except LocalEntryNotFoundError:
        return None
    if not (folder / "config.json").exists():
        return None
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
    return folder if all((folder / shard).exists() for shard in shards) else None


class Download:
    """A model on its way from the hub into the cache."""

    def __init__(self, model: str, revision: str, token: str | None) -> None:
        """Ask the hub for the commit and its files.

        Raises:
            HfHubHTTPError: the hub refuses.
            httpx2.TransportError: it cannot be reached.
        """
        self.api = HfApi(token=token)
        self.model, self.revision, self.token = model, revision, token
        # One question, asked once: whether the hub is there, has the model at this revision, and gives it to us.
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
        self.home: Path = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
        self.stop = threading.Event()

    @property
    def large(self) -> list[File]:
        """The files that are worth resuming."""
        return [file for file in self.files if file.sha256]

    def blob(self, file: File) -> Path:
        """Where the cache has a large file's content; the snapshot links to it."""
        return self.home / "blobs" / str(file.sha256)

    def partial(self, file: File) -> Path:
        """Where a large file grows."""
        return self.blob(file).with_name(f"{file.sha256}.incomplete")

    def present(self) -> int:
        """Bytes of the model that are in the cache."""
        snapshot = self.home / "snapshots" / self.commit
        total = 0
        for file in self.files:
            places = [self.partial(file), self.blob(file)] if file.sha256 else [snapshot / file.path]
            for place in places:
                with contextlib.suppress(FileNotFoundError):  # a file that is whole now has gone from one to the other
                    total += min(place.stat().st_size, file.size)
                    break
        return total

    def check_room(self) -> None:
        """See that the disk holds what is still to come.

        Raises:
            Failed: it does not.
        """
        missing = sum(file.size for file in self.files) - self.present()
        place = next(place for place in (self.home, *self.home.parents) if place.exists())
        free = shutil.disk_usage(place).free
        if missing and free < missing + SPARE_BYTES:
            raise Failed("disk", f"{missing / 1e9:.2f} GB are still to come, and {place} has {free / 1e9:.2f} GB free")

    def fetch_large(self, file: File) -> None:
        """Get one large file, from where an earlier try stopped.

        It gets its name when its content is what the hub says, so that an interrupt leaves nothing that looks whole.

        Raises:
            HfHubHTTPError, httpx2.TransportError: no more after several tries.
            Failed: its content is wrong, also when it was fetched again.
        """
        blob, partial = self.blob(file), self.partial(file)
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / self.home.name / f"{file.sha256}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            attempt, wrong = 0, False
            while not blob.exists():
                have = partial.stat().st_size if partial.exists() else 0
                if have > file.size:
                    partial.unlink()
                    have = 0
                try:
                    if have < file.size:  # else an earlier fetch was cut off while it was hashed
                        with partial.open("ab") as content:
                            self.get(file, content, have)
                except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
                    gained = partial.stat().st_size > have
                    attempt = 0 if gained else attempt + 1
                    if self.stop.is_set() or not can_heal(error) or attempt == ATTEMPTS:
                        raise
                    time.sleep(min(2**attempt, 30) * 0.5)
                    continue
                with partial.open("rb") as content:
                    whole = hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
                if whole:
                    partial.rename(blob)
                    return
                partial.unlink()
                if wrong:
                    raise Failed("damaged", f"{file.path}: not what the hub's hashes say, also when fetched again")
                wrong = True

    def get(self, file: File, content: Any, have: int) -> None:
        """Ask for the rest of a file, at an address that is fresh: the hub's are signed for a while."""
        url = hf_hub_url(self.model, file.path, revision=self.commit)
        metadata = get_hf_file_metadata(url, token=self.token)
        headers = build_hf_headers(token=self.token)
        if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # where the content lies is not where the token belongs
        http_get(metadata.location, content, resume_size=have, headers=headers, expected_size=file.size)

    def fetch(self) -> Path:
        """Get what is missing, large files first, and tell how far it is."""
        total = sum(file.size for file in self.files)
        tell("plan", model=self.model, revision=self.commit, files=len(self.files), bytes=total, present=self.present())
        self.check_room()
        self.stop.clear()
        pool = ThreadPoolExecutor(PARALLEL)
        pending = {pool.submit(self.fetch_large, file) for file in self.large}
        try:
            while pending:
                done, pending = wait(pending, PROGRESS_S, FIRST_COMPLETED)
                for each in done:
                    each.result()
                tell("progress", bytes=self.present())
        finally:  # after a failure nobody waits for the other files: what they have is kept
            self.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        folder = snapshot_download(
            self.model, revision=self.revision, token=self.token, ignore_patterns=self.patterns, max_workers=PARALLEL
        )
        tell("progress", bytes=self.present())
        return Path(folder)

    def damaged(self) -> list[str]:
        """The files whose content is not what the hub says."""
        tell("verify", bytes=sum(file.size for file in self.files))
        found = self.api.verify_repo_checksums(self.model, revision=self.commit, token=self.token)
        return [mismatch["path"] for mismatch in found.mismatches]

    def remove(self, paths: Sequence[str]) -> None:
        """Take files out of the cache, so that they are fetched again."""
        for path in paths:
            link = self.home / "snapshots" / self.commit / path
            link.resolve().unlink(missing_ok=True)
            link.unlink(missing_ok=True)


def can_heal(error: Exception) -> bool:
    """Whether another try may go better."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, OSError) and error.errno is not None:
        return False  # of this host's disk
    return not isinstance(error, OfflineModeIsEnabled)


def fetch(model: str, revision: str, token: str | None) -> tuple[Path, int]:
    """Get a model and verify it; its folder, and how many bytes had to come.

    Raises:
        Failed: a file is not what the hub says, also when it was fetched again; or the disk is too small.
    """
    download = Download(model, revision, token)
    before = download.present()
    folder = download.fetch()
    if wrong := download.damaged():
        download.remove(wrong)
        folder = download.fetch()
        if wrong := download.damaged():
            download.remove(wrong)
            raise Failed("damaged", f"{', '.join(wrong)}: not what the hub's hashes say, also when fetched again")
    return folder, download.present() - before


def size_of(folder: Path) -> int:
    """Bytes of a model's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def failure(error: Exception) -> dict[str, object]:
    """What to tell of an error."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Failed):
        return {"kind": error.kind, "message": message}
    if isinstance(error, HfHubHTTPError):
        code = error.response.headers.get("X-Error-Code")
        return {"kind": "refused", "message": message, "status": error.response.status_code, "code": code}
    if isinstance(error, HFValidationError):
        return {"kind": "name", "message": message}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"kind": "disk", "message": error.strerror or message}
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return {"kind": "cache", "message": f"{error.strerror}: {error.filename}"}
    if isinstance(error, httpx2.TransportError | LocalEntryNotFoundError):
        return {"kind": "unreachable", "message": message}
    return {"kind": "other", "message": f"{type(error).__name__}: {message}"}


def main() -> int:
    """0: the model is in the cache. 1: it is not, and the last event says why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="owner/name at the hub")
    parser.add_argument("--revision", default="main", help="commit, branch or tag (default: main)")
    parser.add_argument("--if-missing", action="store_true", help="ask no network where no file is missing")
    parser.add_argument("--offline", action="store_true", help="ask no network at all")
    arguments = parser.parse_args()
    token = sys.stdin.readline().strip() or None
    try:
        folder = cached(arguments.model, arguments.revision) if arguments.if_missing or arguments.offline else None
        fetched = 0
        if folder is None and arguments.offline:
            raise Failed("absent", f"{arguments.model}@{arguments.revision[:12]} is not in {constants.HF_HUB_CACHE}")
        if folder is None:
            folder, fetched = fetch(arguments.model, arguments.revision, token)
        tell("done", folder=str(folder), bytes=size_of(folder), fetched=fetched)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the hub's client, its HTTP library and the file system share no base class
        tell("failed", **failure(error))
        return 1
    return 0


if __name__ == "__main__":
    # Not through the interpreter's end: it would wait for transfers that an error has left behind.
    code = main()
    sys.stdout.flush()
    os._exit(code)
