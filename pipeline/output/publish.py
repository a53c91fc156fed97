"""Publishes a run under a prefix of a bucket, and fetches a published run to continue it.

A run is always made in a folder of this host, because it relies on a file system: a part is renamed into place, and a
lock dies with its process. A bucket has neither. So the whole folder is published whenever a run ends, also when it was
interrupted or stopped: the parts first, then what people read, `run.json` last. A reader who sees a `run.json` that is
not `running` finds every file that it names.

On this host the same command continues from the folder, whatever the bucket holds; on another host, or when the folder
is gone, from what was published last. No lock separates two hosts: the later one takes the run over, and the other one
sees that at its end and leaves the bucket alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import OtherRun, RunStopped
from pipeline.files import write_atomically
from pipeline.output.run_folder import COMMITTED, CONTENTS, MANIFEST, PUBLISHED, read_manifest, remove_run
from pipeline.sources.objects import NoObject, Objects, StoreError, refuse

# Published last, in this order: each file comes after the files that it names.
LAST = ("report.html", "images.parquet", "detections.parquet", COMMITTED, MANIFEST)


def digest(content: bytes | None) -> str | None:
    """A hash of a content."""
    return None if content is None else hashlib.sha256(content).hexdigest()


class Publication:
    """One run's folder, and the prefix that it is published under."""

    def __init__(self, folder: Path, address: str, objects: Objects) -> None:
        self.folder = folder
        self.address = address
        self.objects = objects

    def fetch(self, force: bool) -> str | None:
        """Bring the published run here, unless the folder is where it came from; with `force` that is not looked at.

        Returns what a person should know of it, if anything.

        Raises:
            BucketUnusable: the store cannot be reached or refuses.
            OtherRun: the run continued both here and on another host.
        """
        try:
            manifest, known = self._there(MANIFEST), self._known()
            if force:
                return None  # what is known of it leaves with the run that is here
            if manifest is None:
                self._note({"manifests": [None], "committed": None, "files": {}})
                return None
            if digest(manifest) in known["manifests"]:
                return None  # what is here was published, or comes after it
            if digest(self._here(COMMITTED) or None) not in (None, known["committed"]):
                raise OtherRun(
                    f"output: another host continued this run in {self.address}, and {self.folder} has work that is "
                    "not there: give another --run-name, or remove one of the two"
                )
            self._replace()
        except StoreError as error:
            raise refuse("output", self.address, error) from error
        self._note(
            {"manifests": [digest(manifest)], "committed": digest(self._here(COMMITTED)), "files": self._files()}
        )
        status = (read_manifest(self.folder) or {}).get("status")
        running = "; it says that it is running: if it is, on another host, stop one of the two"
        return f"going on from {self.address}" + (running if status == "running" else "")

    def begin(self) -> None:
        """Put the manifest of the run that begins there: it shows others that it runs, and us that we may write.

        Of a run that begins anew, parts of an earlier one do not count there from now on.

        Raises:
            BucketUnusable: it cannot be written.
        """
        try:
            if self._here(COMMITTED) is None and self._there(COMMITTED):
                (self.folder / COMMITTED).touch()
                self._copy([COMMITTED])
            self._put_manifest()
        except StoreError as error:
            raise refuse("output", self.address, error) from error

    def publish(self, moved: Callable[[], None] = lambda: None) -> int:
        """Put what is new or has changed there; the number of files. `moved` is called now and then.

        Raises:
            RunStopped: the store does not take it, or another host has taken the run over.
        """
        safe = f"the run is safe in {self.folder}"
        known, files = self._known(), self._files()
        changed = [name for name, version in files.items() if known["files"].get(name) != version]
        try:
            if digest(self._there(MANIFEST)) not in known["manifests"]:
                raise RunStopped(f"another run wrote to {self.address} meanwhile: nothing was changed there; {safe}")
            self._copy([name for name in changed if name not in LAST], moved)
            for name in LAST[:-1]:
                self._copy([name] if name in changed else [])
            self._put_manifest()
        except StoreError as error:
            raise RunStopped(f"cannot write {self.address}: {error}; {safe}: the same command publishes it") from error
        self._note(self._known() | {"committed": digest(self._here(COMMITTED)), "files": files})
        return len(changed)

    def _put_manifest(self) -> None:
        """Put run.json there. Noted before and after: a crash between leaves it known either way."""
        known, new = self._known(), digest(self._here(MANIFEST))
        self._note(known | {"manifests": [*known["manifests"], new]})
        self._copy([MANIFEST])
        self._note(known | {"manifests": [new]})

    def _there(self, name: str) -> bytes | None:
        """A published file, or None. A missing bucket is an error."""
        try:
            return self.objects.read(f"{self.address}/{name}")
        except NoObject:
            self.objects.glob(f"{self.address}/{name}", limit=1)
            return None

    def _here(self, name: str) -> bytes | None:
        """A file of the folder, or None."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def _known(self) -> dict[str, Any]:
        """What this host knows of the published run: digests that its run.json may have, the digest of its committed
        parts, and the version of each of its files as they were here."""
        known: dict[str, Any] = json.loads(self._here(PUBLISHED) or b"{}")
        return known if known.get("address") == self.address else {"manifests": [], "committed": None, "files": {}}

    def _note(self, known: dict[str, Any]) -> None:
        """Note what is published now."""
        write_atomically(self.folder / PUBLISHED, json.dumps(known | {"address": self.address}).encode())

    def _files(self) -> dict[str, str]:
        """The folder's files and their versions, without those that belong to this host."""
        found = {}
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = Path(parent, name)
                relative = path.relative_to(self.folder).as_posix()
                if relative.split("/")[0] in CONTENTS and not name.endswith(".partial"):
                    status = path.stat()
                    found[relative] = f"{status.st_mtime_ns}-{status.st_size}"
        return found

    def _copy(self, names: list[str], moved: Callable[[], None] = lambda: None) -> None:
        """Put files there."""
        pairs = ((str((self.folder / name).absolute()), f"{self.address}/{name}") for name in names)
        self.objects.copy(pairs, moved)

    def _replace(self) -> None:
        """Replace the folder's content by the published run; after an interruption it is fetched again."""
        remove_run(self.folder)
        found = [address.removeprefix(f"{self.address}/") for address, _ in self.objects.list(f"{self.address}/")]
        names = [name for name in found if name.split("/")[0] in CONTENTS and ".." not in name.split("/")]
        for folder in {(self.folder / name).parent for name in names}:
            folder.mkdir(parents=True, exist_ok=True)
        counts = (MANIFEST, COMMITTED)
        self.objects.copy(
            (f"{self.address}/{name}", str((self.folder / name).absolute())) for name in names if name not in counts
        )
        for name in counts:  # first the run's identity, then the list that makes its parts count
            if (content := self._there(name)) is not None:
                if name == COMMITTED:
                    self._note(self._known() | {"committed": digest(content)})
                write_atomically(self.folder / name, content)
