from __future__ import annotations

from pathlib import Path

import pytest

from trainrun.doctor.filesystem import Mount, mount_of, size, space_of

TABLE = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:40 / {folder} rw,relatime shared:1 - nfs4 server:/runs rw,vers=4.2,local_lock=none
41 27 0:41 / {folder}/with\\040space rw - lustre a@tcp:/x rw,localflock
42 27 0:42 / {folder}/twice rw - ext4 /dev/vdb rw
43 27 0:43 / {folder}/twice rw,noexec - tmpfs tmpfs rw
not a line
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(TABLE.format(folder=tmp_path))
    return file


def test_the_nearest_mount_counts(table: Path, tmp_path: Path) -> None:
    assert mount_of(tmp_path.parent, table).kind == "ext4"
    assert mount_of(tmp_path / "a" / "b", table).kind == "nfs4"
    assert mount_of(tmp_path / "with space", table).kind == "lustre"
    assert mount_of(Path(f"{tmp_path}-other"), table).kind == "ext4"


def test_the_later_of_two_covers_the_earlier(table: Path, tmp_path: Path) -> None:
    mount = mount_of(tmp_path / "twice" / "x", table)
    assert (mount.kind, "noexec" in mount.options) == ("tmpfs", True)


def test_links_are_followed(table: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    assert mount_of(tmp_path / "link", table).kind == "ext4"


def test_without_a_table(tmp_path: Path) -> None:
    assert mount_of(tmp_path, tmp_path / "nothing").kind == "unknown"
    assert mount_of(tmp_path).kind != "unknown", "this system has one"


@pytest.mark.parametrize(
    ("kind", "options", "network", "local"),
    [
        ("ext4", "rw", False, False),
        ("ext4", "nolock", False, False),
        ("nfs4", "rw,local_lock=none", True, False),
        ("nfs", "rw,nolock", True, True),
        ("lustre", "rw,flock", True, False),
        ("lustre", "rw,localflock", True, True),
        ("fuse.sshfs", "rw", True, False),
        ("fuse.ntfs-3g", "rw", False, False),
        ("fuse", "rw", False, False),
    ],
)
def test_network(kind: str, options: str, network: bool, local: bool) -> None:
    mount = Mount("/", kind, frozenset(options.split(",")))
    assert (mount.is_network, mount.has_local_locks) == (network, local)


def test_space(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    assert 0 < space.free <= space.total


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 * 1024**2, "64 MiB"), (5.5 * 1024**4, "5.5 TiB")],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text
