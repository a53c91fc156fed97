"""The Mermaid library, as a page loads it: from the machine's package registry through npm, checked, and kept."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

VERSION = "12.3.0"
INTEGRITY = "sha512-4113TdXeLAsMruJ79OpFL5O8+LTFXhQqZ260rF3tgUmiNAtRm4Uume04I+65PRN6yZ69J4f8rVYWW8zRk65UYw=="
"""What the registry says of the package's file; of another file the test would say nothing."""

MEMBER = "package/dist/mermaid.min.js"


def fetch(cache: Path) -> Path:
    """The library's script, bundled for a page; fetched once.

    Raises:
        RuntimeError: npm could not fetch it, or what came is not what was pinned.
    """
    script = cache / f"mermaid-{VERSION}.min.js"
    if script.is_file():
        return script
    with tempfile.TemporaryDirectory(dir=cache) as fresh:  # two test processes may be at it
        done = subprocess.run(
            ["npm", "pack", "--silent", f"mermaid@{VERSION}", "--pack-destination", fresh],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"npm cannot fetch mermaid {VERSION}: {done.stderr.strip()[-500:]}")
        packed = next(Path(fresh).glob("*.tgz"))
        if f"sha512-{base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()}" != INTEGRITY:
            raise RuntimeError(f"mermaid {VERSION}: npm fetched another file than {Path(__file__).name} pins")
        with tarfile.open(packed) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            unpacked = Path(fresh) / script.name
            unpacked.write_bytes(member.read())
        unpacked.replace(script)
    return script
