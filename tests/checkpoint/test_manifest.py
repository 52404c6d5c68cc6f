from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import BadCheckpoint, FileRecord, Manifest, read_manifest
from trainrun.checkpoint.manifest import LIMIT, is_inside, to_bytes

SHA = "0123456789abcdef" * 4


def full() -> Manifest:
    return Manifest(
        run="digits",
        attempt=2,
        step=300,
        epoch=3,
        samples_seen=19200,
        world_size=2,
        created=1.5e9,
        seconds=0.25,
        reason="every 100 steps",
        strategy="ddp",
        metrics={"loss": 0.1, "worst": math.inf, "none": math.nan},
        recipe={"train": {"steps": 400}},
        plugins={"clock": {"plugin": "clock", "distribution": "clocks", "version": "1", "hash": "00"}},
        versions={"torch": "2.13.0"},
        disabled=("slow",),
        finite=True,
        missing={"odd": "cannot pickle 'lock'"},
        dataset={"length": 1797},
        files={"rank-0.pt": FileRecord(3, SHA)},
    )


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(to_bytes(full()))
    found = read_manifest(tmp_path)
    assert math.isnan(found.metrics["none"])
    assert {**found.metrics, "none": 0} == {**full().metrics, "none": 0}
    assert found.to_json() | {"metrics": {}} == full().to_json() | {"metrics": {}}


def test_it_is_json_for_everybody(tmp_path: Path) -> None:
    value = json.loads(to_bytes(full()), parse_constant=pytest.fail)
    assert value["version"] == 1
    assert value["metrics"]["worst"] == "inf"


def test_keys_of_later_make_are_passed_over() -> None:
    assert Manifest.from_json(full().to_json() | {"more": 1}).step == 300


WRONG: list[tuple[str, Any]] = [
    *((key, None) for key in full().to_json()),
    ("step", "300"),
    ("step", 300.0),
    ("step", True),
    ("step", -1),
    ("attempt", [1]),
    ("world_size", 0),
    ("created", "now"),
    ("created", True),
    ("created", 10**400),
    ("metrics", []),
    ("metrics", {"loss": "low"}),
    ("metrics", {"loss": True}),
    ("recipe", []),
    ("plugins", {"clock": "clocks"}),
    ("plugins", {"clock": {"version": 1}}),
    ("versions", {"torch": 2}),
    ("disabled", "slow"),
    ("disabled", [1]),
    ("finite", "yes"),
    ("missing", {"odd": 1}),
    ("files", []),
    ("files", {"a.pt": SHA}),
    ("files", {"a.pt": {"size": 1}}),
    ("files", {"a.pt": {"size": -1, "sha256": SHA}}),
    ("files", {"a.pt": {"size": 1, "sha256": SHA.upper()}}),
    ("files", {"a.pt": {"size": 1, "sha256": SHA[1:]}}),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_a_wrong_type_is_refused_and_named(key: str, value: Any) -> None:
    with pytest.raises(BadCheckpoint, match=key):
        Manifest.from_json(full().to_json() | {key: value})


@pytest.mark.parametrize("key", [key for key in full().to_json() if key != "finite"])
def test_a_missing_key_is_refused_and_named(key: str) -> None:
    data = full().to_json()
    del data[key]
    with pytest.raises(BadCheckpoint, match=f"{key} is missing"):
        Manifest.from_json(data)


def test_older_versions_do_not_say_whether_it_is_finite() -> None:
    data = full().to_json()
    del data["finite"]
    assert Manifest.from_json(data).finite is False


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_no_object_is_refused(data: Any) -> None:
    with pytest.raises(BadCheckpoint, match="expected an object"):
        Manifest.from_json(data)


def test_another_version_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match="expected 1, got 2; another version of trainrun"):
        Manifest.from_json(full().to_json() | {"version": 2})


OUTSIDE = ["", ".", "..", "../a", "a/../../b", "/etc/passwd", "a//b", "./a", "a/", "a/.", "a\0b", "manifest.json"]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    assert not is_inside(name)
    with pytest.raises(BadCheckpoint, match="not one of a file inside"):
        Manifest.from_json(full().to_json() | {"files": {name: {"size": 1, "sha256": SHA}}})


def test_names_inside() -> None:
    assert all(map(is_inside, ["a", "state/.metadata", "a/b/c", "..a", "a b", "state/manifest.json"]))


def no_json(path: Path) -> None:
    path.write_bytes(b"not JSON")


def nested(path: Path) -> None:
    path.write_bytes(b"[" * 200_000)


def a_list(path: Path) -> None:
    path.write_bytes(b"[]")


def no_checksum(path: Path) -> None:
    path.write_text(json.dumps(full().to_json() | {"metrics": {}}))


def edited(path: Path) -> None:
    path.write_bytes(to_bytes(full()).replace(b"19200", b"19201"))


def huge(path: Path) -> None:
    path.write_bytes(to_bytes(full()))
    os.truncate(path, LIMIT + 1)


def huge_number(path: Path) -> None:
    path.write_bytes(b'{"step": ' + b"9" * 10_000 + b"}")


def no_utf8(path: Path) -> None:
    path.write_bytes(b'{"step": "\xff\xfe\xff"}')


def constant(path: Path) -> None:
    path.write_bytes(b'{"step": NaN}')


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(to_bytes(full()))
    path.symlink_to("elsewhere")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_json, "it is no JSON"),
        (nested, "it is no JSON"),
        (a_list, "no JSON object"),
        (no_checksum, "checksum: expected a SHA-256, got None"),
        (edited, "changed after it was written"),
        (huge, f"{LIMIT} are the most"),
        (huge_number, "it is no JSON"),
        (no_utf8, "it is no JSON"),
        (constant, "it is no JSON"),
        (a_link, "cannot be read"),
        (a_dangling_link, "cannot be read"),
        (a_loop, "cannot be read"),
        (a_pipe, "not a plain file"),
        (a_folder, "not a plain file"),
        (nothing, "never completed"),
    ],
)
def test_what_is_no_manifest_is_refused(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    make(tmp_path / "manifest.json")
    with pytest.raises(BadCheckpoint, match=said) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert caught.value.exit_code == 4


def test_a_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    """In a digit, a brace, a blank, the checksum itself."""
    text = to_bytes(Manifest(run="r", attempt=1, step=1, epoch=1, samples_seen=1, world_size=1, created=1e-7))
    path = tmp_path / "manifest.json"
    for place in range(len(text)):
        flipped = bytearray(text)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(BadCheckpoint):
            read_manifest(tmp_path)
