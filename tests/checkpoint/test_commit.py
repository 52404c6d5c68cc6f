from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import (
    BadCheckpoint,
    FileRecord,
    begin,
    clear,
    digest,
    discard,
    named,
    publish,
    scan,
    sync,
    verify,
)

Save = Callable[..., Path]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_begin_makes_a_folder_of_its_own(checkpoints: Path) -> None:
    first, second = begin(checkpoints, 300, 2), begin(checkpoints, 300, 2)
    assert first != second
    assert first.name.startswith(".tmp-000300-2-")
    assert names(first) == ["plugins", "state"]
    assert {path.stat().st_mode & 0o777 for path in (checkpoints, first, first / "state")} == {0o700}
    assert scan(checkpoints) == []


def test_begin_refuses_a_step_that_is_published(checkpoints: Path, save: Save) -> None:
    save(300)
    with pytest.raises(BadCheckpoint, match=r"step-000300: this step has been saved already"):
        begin(checkpoints, 300, 2)


def test_published_is_good(checkpoints: Path, save: Save) -> None:
    path = save(300)
    assert names(checkpoints) == ["step-000300"]
    assert verify(path) == []
    assert [(found.step, found.problem) for found in scan(checkpoints)] == [(300, None)]


@pytest.mark.parametrize("inside", [[], ["a"]], ids=["empty", "not empty"])
def test_publish_refuses_a_name_that_is_taken(
    inside: list[str], checkpoints: Path, write: Save, describe: Callable[..., Any]
) -> None:
    temp = write(300)
    target = checkpoints / "step-000300"
    target.mkdir()
    for name in inside:
        (target / name).touch()
    with pytest.raises(BadCheckpoint, match="never overwritten"):
        publish(temp, describe(temp, 300))
    assert names(target) == inside
    assert (temp / "rank-0.pt").exists()


def test_publish_refuses_a_dangling_link(checkpoints: Path, write: Save, describe: Callable[..., Any]) -> None:
    temp = write(300)
    (checkpoints / "step-000300").symlink_to("nowhere")
    with pytest.raises(BadCheckpoint, match="never overwritten"):
        publish(temp, describe(temp, 300))


def test_publish_refuses_other_files_than_the_manifest_lists(write: Save, describe: Callable[..., Any]) -> None:
    temp = write(300)
    manifest = describe(temp, 300)
    (temp / "rank-0.pt").write_bytes(b"shorter")
    (temp / "further.pt").touch()
    (temp / "training.pt").unlink()
    with pytest.raises(BadCheckpoint, match=r"'further.pt', 'rank-0.pt', 'training.pt'"):
        publish(temp, manifest)
    assert not (temp / "manifest.json").exists()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is asked of the disk, in order: fsync by path, and rename."""
    made: list[tuple[str, Path]] = []
    fsync, rename = os.fsync, os.rename

    def record_sync(descriptor: int) -> None:
        made.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        made.append(("rename", Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    return made


def test_everything_is_on_the_disk_before_it_is_published(
    checkpoints: Path, write: Save, describe: Callable[..., Any], calls: list[tuple[str, Path]]
) -> None:
    temp = write(300)
    target = publish(temp, describe(temp, 300))
    files = {("sync", path) for path in (temp / "rank-0.pt", temp / "training.pt", temp / "state/.metadata")}
    assert files <= set(calls[: calls.index(("sync", temp / "manifest.json"))])
    assert calls[-6:] == [
        ("sync", temp / "manifest.json"),
        ("sync", temp / "state"),
        ("sync", temp / "plugins"),
        ("sync", temp),
        ("rename", target),
        ("sync", checkpoints),
    ]


def failing(number: int, code: int, fsync: Callable[[int], None]) -> Callable[[int], None]:
    left = iter(range(number))

    def fail(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    return fail


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("number", range(5))
def test_a_sync_that_fails_publishes_nothing(
    number: int, code: int, checkpoints: Path, save: Save, write: Save, describe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Manifest, state, plugins, the folder itself, and the parent after the rename."""
    before = save(200)
    temp = write(300)
    manifest = describe(temp, 300)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number, code, os.fsync))
        with pytest.raises(OSError, match=os.strerror(code)):
            publish(temp, manifest)
    assert [found.path for found in scan(checkpoints)] == [before]
    discard(temp)
    assert names(checkpoints) == ["step-000200"]
    assert verify(save(300)) == []


def test_folders_that_cannot_be_synced_are_no_failure(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert verify(save(300)) == []


def test_a_file_that_cannot_be_synced_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "fsync", failing(0, errno.EINVAL, os.fsync))
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "a")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB and 32 files, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k,nr_inodes=32", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    block = bytes(4096)
    with (folder / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        any(not file.write(block) for _ in range(1000))


def test_a_full_disk_publishes_nothing(small_disk: Path, checkpoint_files: Callable[..., Mapping[str, bytes]]) -> None:
    folder, contents = small_disk / "checkpoints", checkpoint_files(300, {"rank-0.pt": "random numbers"})
    temp = begin(folder, 300, 1)
    manifest = described(temp, contents)
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        publish(temp, manifest)
    assert scan(folder) == []
    (small_disk / "full").unlink()
    discard(temp)
    temp = begin(folder, 300, 1)
    assert verify(publish(temp, described(temp, contents))) == []


@pytest.mark.parametrize("free", range(4))
def test_a_full_disk_when_it_begins(free: int, small_disk: Path) -> None:
    """The folder of checkpoints, the temporary one, and the two in it."""
    files = [small_disk / str(number) for number in range(os.statvfs(small_disk).f_ffree - free)]
    for path in files:
        path.touch()
    with pytest.raises(OSError, match="No space left"):
        begin(small_disk / "checkpoints", 300, 1)
    assert not list((small_disk).glob("checkpoints/.tmp*"))


def described(temp: Path, contents: Mapping[str, bytes]) -> Any:
    from trainrun.checkpoint import Manifest

    for name, content in contents.items():
        (temp / name).write_bytes(content)
    files = {name: digest(temp / name) for name in contents}
    facts = {"run": "r", "attempt": 1, "step": 300, "epoch": 1, "samples_seen": 1, "world_size": 1, "created": 1.0}
    return Manifest(files=files, **facts)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from trainrun.checkpoint import Manifest, begin, publish, scan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
temp = begin(Path(sys.argv[1]), 300, 1)
facts = {"run": "r" * 4096, "attempt": 1, "step": 300, "epoch": 1, "samples_seen": 1, "world_size": 1, "created": 1.0}
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    publish(temp, Manifest(**facts))
except OSError as error:
    print(error.strerror, scan(Path(sys.argv[1])))
"""


def test_a_file_that_may_not_grow_publishes_nothing(checkpoints: Path) -> None:
    """As for a user with a quota: no right to mount is needed."""
    command = [sys.executable, "-c", LIMITED, str(checkpoints)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "File too large []"


def test_a_folder_that_may_not_be_written_to(checkpoints: Path) -> None:
    checkpoints.write_text("a file in its place")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        begin(checkpoints, 300, 1)


def test_discard_takes_only_temporary_folders(save: Save, write: Save) -> None:
    path, temp = save(300), write(400)
    discard(temp)
    assert not temp.exists()
    discard(temp)
    with pytest.raises(ValueError, match="only a temporary"):
        discard(path)
    assert verify(path) == []


def test_clear_removes_what_earlier_attempts_left(checkpoints: Path, save: Save, write: Save) -> None:
    path, temp = save(300), write(400)
    (checkpoints / ".tmp-mine").mkdir()
    (checkpoints / "bad-step-000100").mkdir()
    assert clear(checkpoints) == [temp.name]
    assert names(checkpoints) == [".tmp-mine", "bad-step-000100", path.name]
    assert clear(checkpoints) == []


def test_clear_does_not_follow_links(checkpoints: Path, save: Save) -> None:
    path = save(300)
    link = checkpoints / ".tmp-000400-1-0a"
    link.symlink_to(path)
    clear(checkpoints)
    assert verify(path) == []


def test_clear_without_a_folder(checkpoints: Path) -> None:
    assert clear(checkpoints) == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_digest_reads_plain_files_only(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(OSError, match=r"plain file|symbolic links"):
        digest(tmp_path / "a")


def test_digest_of_many_blocks(tmp_path: Path) -> None:
    import hashlib

    content = os.urandom(3 * 1024 * 1024 + 17)
    (tmp_path / "a").write_bytes(content)
    assert digest(tmp_path / "a") == FileRecord(len(content), hashlib.sha256(content).hexdigest())


def test_what_was_not_published_cannot_be_named(write: Save, describe: Callable[..., Any], save: Save) -> None:
    from trainrun.checkpoint.manifest import to_bytes

    temp = write(300)
    (temp / "manifest.json").write_bytes(to_bytes(describe(temp, 300)))
    with pytest.raises(BadCheckpoint, match="never published"):
        named(temp)
