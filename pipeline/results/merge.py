"""Join the shards of a run into one run's folder, like that of one run over all images.

The folder is made beside its place and appears whole, by a rename; the shards stay as they are. So a merge that was
killed, or that came too early, is made again.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.errors import InvalidSetting, NotFound, OtherRun, Unreadable
from pipeline.files import sync_disk, sync_folder
from pipeline.job import Job
from pipeline.output.annotate import copies_in, copies_of
from pipeline.output.evaluation import read_truth, write_evaluation
from pipeline.output.formats import FORMATS
from pipeline.output.manifest import Result, ended, outcome
from pipeline.output.parts import Parts, replaced
from pipeline.output.report import write_report
from pipeline.output.run_folder import (
    LOCK,
    differences,
    held,
    open_run_folder,
    point_latest_at,
    read_manifest,
    unwritable,
    write_manifest,
)
from pipeline.runtime import history
from pipeline.settings import Settings
from pipeline.sources.objects import Objects
from pipeline.sources.shards import FOLDER

# A message names so many shards.
NAMED = 10

Tables = dict[str, pa.Table]


@dataclass(frozen=True)
class Shard:
    """A shard's folder."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Its number and the number of shards, such as 2/8."""
        return str(self.manifest["identity"]["shard"])

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the run that it is a shard of."""
        return {name: value for name, value in self.manifest["identity"].items() if name != "shard"}

    def has_ended(self) -> bool:
        """Whether its last start wrote its tables; a full disk may have kept it from that."""
        return self.manifest["status"] != history.RUNNING and (self.folder / "images.parquet").exists()

    def tables(self, job: Job, others: set[str]) -> Tables:
        """Its rows, without those of images in `others`: an image may have moved to another shard with the listing.

        Raises:
            Unreadable: files are missing or damaged.
        """
        try:
            parts = Parts(self.folder, job.properties)
            paths = set(parts.latest())
            if self.has_ended():  # else, of an image that is no longer in the listing, there may be rows
                counted = set(pq.read_table(self.folder / "images.parquet", columns=["path"])["path"].to_pylist())
                if lost := len(counted - paths):
                    raise Unreadable(
                        f"shard {self.folder}: its folder .parts lacks the rows of {lost} images: copy the whole folder"
                    )
                paths = counted
            return parts.merge(paths - others)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise Unreadable(f"shard {self.folder} cannot be read: {error}") from error


def find_shards(runs: Path, run: str | None) -> tuple[str, list[Shard]]:
    """The name of a run, and its shards in a folder; without a name those of the only run that has shards there.

    Raises:
        NotFound: there are none.
        InvalidSetting: there are shards of several runs.
    """
    found: dict[str, list[Shard]] = defaultdict(list)
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        name = FOLDER.fullmatch(folder.name)
        manifest = read_manifest(folder) if name else None
        if name and manifest and "shard" in manifest.get("identity", {}):
            found[name["run"]].append(Shard(folder, manifest))
    if run is None and len(found) > 1:
        one, other = (shards[0].identity for shards in list(found.values())[:2])
        raise InvalidSetting(
            f"{runs} holds shards of {', '.join(found)} (different: {', '.join(differences(other, one)) or 'the name'})"
            ": choose one with RUN=... or --run"
        )
    name_of = run or next(iter(found), None)
    if name_of not in found:
        raise NotFound(
            f"no shards{f' of run {run}' if run else ''} in {runs}: give the OUTPUT=... of `make run SHARD=1/8`"
            + (f"; there are shards of {', '.join(found)}" if found else "")
        )
    return name_of, sorted(found[name_of], key=lambda shard: int(shard.name.split("/")[0]))


def check_same_run(shards: list[Shard]) -> None:
    """See that shards are those of one run over one listing.

    Raises:
        OtherRun: they are not; says what differs.
    """
    first = shards[0]
    for each in shards[1:]:
        changed = differences(each.identity, first.identity)
        if each.name.split("/")[1] != first.name.split("/")[1]:
            changed.append(f"number of shards ({first.name} -> {each.name})")
        if changed:
            raise OtherRun(
                f"{each.folder} is no shard of the same run as {first.folder.name}; different: {', '.join(changed)}: "
                "remove the one that is wrong, and run it again as the others"
            )
    listings = {each.manifest["shard"]["listing"]: each for each in shards}
    if len(listings) > 1:
        seen = [f"shard {each.name} saw {each.manifest['shard']['listed']} images" for each in listings.values()]
        raise OtherRun(
            f"the listing changed between the shards of {first.folder.parent}: {', '.join(seen[:NAMED])}, and names or "
            "sizes differ: run each shard again, which does only what is missing; a list (.txt) does not change"
        )


def as_one_run(found: list[Tables]) -> Tables:
    """The rows of all shards as one run commits them: one image of each content was asked about.

    Of those that were asked in several shards, the one with the fewest failures stays, and the others are its
    duplicates.
    """
    images, detections = (pa.concat_tables(each[name] for each in found) for name in ("images", "detections"))
    unanswered = Counter(detections.filter(pc.equal(detections["outcome"], tables.FAILED))["path"].to_pylist())
    rows = list(zip(*(images[name].to_pylist() for name in ("path", "key", "outcome")), strict=True))
    best: dict[str, tuple[bool, int, int]] = {}
    for number, (path, key, result) in enumerate(rows):
        if key is not None:
            rank = (result == tables.FAILED, unanswered[path], number)
            best[key] = min(best.get(key, rank), rank)
    asked = [key is None or best[key][-1] == number for number, (_, key, _) in enumerate(rows)]
    outcomes = [row[2] if own else tables.DUPLICATE for row, own in zip(rows, asked, strict=True)]
    paths = pa.array([row[0] for row, own in zip(rows, asked, strict=True) if own], pa.string())
    return {
        "images": replaced(images, "outcome", pa.array(outcomes, pa.string())),
        "detections": detections.filter(pc.is_in(detections["path"], value_set=paths)),
    }


def place(files: Iterable[tuple[Path, Path]]) -> None:
    """Link files, or copy them where the file system has no links or is another.

    Raises:
        Unreadable: one is not there.
        OSError: one cannot be written.
    """
    for source, target in files:
        try:
            os.link(source, target)
        except FileNotFoundError as error:
            raise Unreadable(f"shard {source.parent.parent}: {source} is missing: copy the whole folder") from error
        except OSError:
            shutil.copy2(source, target)


def missing(shards: list[Shard], found: list[Tables]) -> str | None:
    """What a merged run lacks, for people; None: it is complete."""
    of = int(shards[0].name.split("/")[1])
    absent = [f"{number}/{of}" for number in range(1, of + 1) if f"{number}/{of}" not in {each.name for each in shards}]
    lacks = []
    if absent:
        images = shards[0].manifest["shard"]["listed"] - sum(each.manifest["shard"]["images"] for each in shards)
        more = f" and {len(absent) - NAMED} others" if len(absent) > NAMED else ""
        lacks.append(f"{len(absent)} of {of} shards ({', '.join(absent[:NAMED])}{more}) with {images} images")
    for each, own in zip(shards, found, strict=True):
        share = each.manifest["shard"]["images"]
        if (left := share - own["images"].num_rows) > 0:
            lacks.append(f"{left} of {share} images of shard {each.name} ({each.manifest['status']})")
    return f"missing are {'; '.join(lacks)}: run these shards, then merge again" if lacks else None


def described(shard: Shard, own: Tables) -> dict[str, Any]:
    """What the merged run.json says of a shard."""
    failed = sum(pc.sum(pc.equal(table["outcome"], tables.FAILED)).as_py() or 0 for table in own.values())
    images = shard.manifest["shard"]["images"]
    return {
        "shard": shard.name,
        "folder": shard.folder.name,
        "status": shard.manifest["status"],
        "images": images,
        "not_reached": max(images - own["images"].num_rows, 0),
        "failed": failed,
        "seconds": history.total(shard.manifest["starts"]),
    }


@contextmanager
def replacing(target: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """A new folder for a run, which takes the place of `target` when the block ends.

    Raises:
        OtherRun: the place holds something that no merge made.
        FolderInUse, Unwritable: another process works there, or nobody may write there.
    """
    fresh, old = target.with_name(f".{target.name}.merging"), target.with_name(f".{target.name}.old")
    with ExitStack() as stack:
        if target.exists():
            stack.enter_context(held(target))
            if "shards" not in (read_manifest(target) or {}) and {path.name for path in target.iterdir()} - {LOCK}:
                raise OtherRun(
                    f"output: {target} holds a run that was made or continued without SHARD: it needs no merge; to "
                    "merge all the same, move it away"
                )
        stack.enter_context(open_run_folder(fresh, identity, force=True))
        try:
            yield fresh
            sync_disk(fresh)
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)
            fresh.rename(target)
            sync_folder(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise unwritable(target, error) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def manifest_of(name: str, shards: list[Shard], found: list[Tables]) -> dict[str, Any]:
    """The run.json of a merged run, but for what follows from its rows."""
    first = shards[0].manifest
    same = ("job", "services", "versions", "left_out", "trial", "parent")
    starts = [start | {"shard": each.name} for each in shards for start in history.known(each.manifest)]
    return {
        "run": name,
        **outcome(missing(shards, found)),
        "started": min(each.manifest["started"] for each in shards),
        "starts": starts,
        "seconds": history.total(starts),
        "identity": shards[0].identity,
        "settings": first["settings"] | {"shard": None},
        **{key: first[key] for key in same if key in first},
        "shards": [described(each, own) for each, own in zip(shards, found, strict=True)],
    }


def read_all(shards: list[Shard], job: Job) -> list[Tables]:
    """The rows of each shard; no image is in two of them.

    Raises:
        Unreadable: see `Shard.tables`.
    """
    found: dict[str, Tables] = {}
    paths: set[str] = set()
    for each in sorted(shards, key=lambda shard: not shard.has_ended()):
        found[each.name] = each.tables(job, paths)
        paths |= set(found[each.name]["images"]["path"].to_pylist())
    return [found[each.name] for each in shards]


def merge(settings: Settings, run: str | None) -> Result:
    """Join the shards of a run.

    Raises:
        UsageError: there are no shards, they do not belong together, or the folder cannot be written.
    """
    name, shards = find_shards(settings.runs, run)
    check_same_run(shards)
    manifest = shards[0].manifest
    job = Job.model_validate({key: value for key, value in manifest["job"].items() if key != "name"})
    same = {key: manifest["settings"][key] for key in ("price_input", "price_output", "annotated")}
    settings = settings.model_copy(update={**same, "truth": settings.truth or manifest["settings"]["truth"]})
    found = read_all(shards, job)
    folder_of = {
        path: shard.folder
        for shard, own in zip(shards, found, strict=True)
        for path in own["images"]["path"].to_pylist()
    }
    target = settings.runs / name
    with replacing(target, shards[0].identity) as fresh:
        rows, parts = as_one_run(found), Parts(fresh, job.properties)
        parts.write(rows)
        written = parts.merge(set(folder_of))
        for file, write in FORMATS.items():
            write(written, fresh / file)
        crops = zip(*(rows["detections"][column].to_pylist() for column in ("path", "crop")), strict=True)
        place((folder_of[path] / crop, fresh / crop) for path, crop in crops if crop)
        drawn = pc.unique(written["detections"]["path"]).to_pylist()
        copies = {shard.folder: copies_in(shard.folder) for shard in shards}
        placed = [
            (folder_of[path], copy)
            for path in drawn[: settings.copies]
            for copy in copies_of([path], copies[folder_of[path]]).values()
        ]
        place((folder / copy, fresh / copy) for folder, copy in placed)
        manifest = manifest_of(name, shards, found) | {
            "annotated": {"copies": len(placed), "of": len(drawn), "limit": settings.copies},
            **ended(written, manifest["shard"]["listed"], job, settings),
        }
        if settings.truth:
            truth = read_truth(settings.truth, job, folder_of, Objects(settings.endpoint))
            manifest |= write_evaluation(fresh, written, truth, job, changed=True)
        write_report(fresh, manifest, written, copies_in(fresh), Path.cwd())
        write_manifest(fresh, manifest)
    point_latest_at(target, manifest["identity"])
    return Result(target, manifest)
