"""What a path lies on: file system, mount options, and the room that is left."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "fhgfs", "glusterfs", "gpfs", "lustre", "mmfs", "nfs"),
        *("nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs"),
    }
)
_NETWORK_FUSE = ("ceph", "gcsfuse", "gluster", "goofys", "juicefs", "rclone", "s3fs", "sshfs")
_LOCAL_LOCKS = frozenset({"nolock", "local_lock=all", "local_lock=flock", "localflock", "nobrl"})
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mounted file system: `kind` as in `ext4`, and the options of mount and file system."""

    point: str
    kind: str
    options: frozenset[str]

    @property
    def is_network(self) -> bool:
        """Whether other machines may see it too."""
        name = self.kind.removeprefix("fuse.").lower()
        return self.kind in _NETWORK or (self.kind.startswith("fuse") and name.startswith(_NETWORK_FUSE))

    @property
    def has_local_locks(self) -> bool:
        """Whether it is a network file system whose locks other machines do not see."""
        return self.is_network and bool(self.options & _LOCAL_LOCKS)


class Space(NamedTuple):
    """Bytes in all and free for this user, and files that can still be made; None if there is no limit."""

    total: int
    free: int
    inodes: int | None


def mount_of(folder: Path, table: Path = Path("/proc/self/mountinfo")) -> Mount:
    """Return the mount that holds an existing folder.

    It is of kind `unknown` if the system does not report it.
    """
    found = Mount("", "unknown", frozenset())
    try:
        lines = table.read_text(errors="replace").splitlines()
    except OSError:
        return found
    path = os.path.realpath(folder)
    for mount in filter(None, map(_parsed, lines)):
        # Of two with one point the later one covers the earlier.
        if len(mount.point) >= len(found.point) and _holds(mount.point, path):
            found = mount
    return found


def space_of(folder: Path) -> Space:
    """Return how much room there is. Quotas are not seen by this."""
    found = os.statvfs(folder)
    inodes = found.f_favail if found.f_files else None
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, inodes)


def size(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB" if count < 1024 else f"{count:,.0f} TiB"


def _parsed(line: str) -> Mount | None:
    """Parse one line of the table of mounts.

    It is `ID PARENT DEVICE ROOT POINT OPTIONS [TAGS …] - KIND SOURCE SUPER_OPTIONS`.
    """
    left, _, right = line.partition(" - ")
    before, after = left.split(), right.split()
    if len(before) < 6 or not after:
        return None
    options = {*before[5].split(","), *(after[2].split(",") if len(after) > 2 else ())}
    return Mount(_OCTAL.sub(lambda found: chr(int(found[1], 8)), before[4]), after[0], frozenset(options))


def _holds(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
