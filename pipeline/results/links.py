"""Links to a run's images, for formats that want them in one folder; copies may take terabytes."""

from __future__ import annotations

from pathlib import Path

from pipeline.results.finished_run import Picture, Tally, local_file

# Other programs look at the ending; a file may have any.
ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic"}


def link(picture: Picture, folder: Path, tally: Tally) -> bool:
    """Link an image in a folder, as its name with the ending of its format.

    False: this host has no file of it, and it is left out.

    Raises:
        OSError: the folder takes no links.
    """
    file = local_file(picture.path)
    if file is None:
        tally.leave_out(picture, "images without a file on this host")
        return False
    ending = ENDINGS.get(picture.format, picture.format.lower())
    (folder / f"{picture.name}.{ending}").symlink_to(file)
    return True
