"""Files that are no recipe. The same through the command line: tests/cli/test_bad_recipes.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainrun.errors import RecipeError
from trainrun.recipe.text import read_text


def _message(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_text(path)
    return str(caught.value).replace(str(path), "PATH")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xef\xbb\xbfa = 1", "PATH:1:1: starts with a byte-order mark (BOM); save it as UTF-8 without BOM"),
        ("a = 1".encode("utf-16"), "PATH: is UTF-16; save it as UTF-8"),
        ("a = 1\nb = 'ä'".encode("latin-1"), "PATH:2:6: is not UTF-8: byte 0xe4; save it as UTF-8"),
        (b"\xff", "PATH:1:1: is not UTF-8: byte 0xff; save it as UTF-8"),
    ],
)
def test_encodings(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(raw)

    assert _message(path) == message


def test_the_size_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"#" * (1 << 20))
    assert len(read_text(path)) == 1 << 20

    path.write_bytes(b"#" * ((1 << 20) + 1))
    assert "is 1,048,577 bytes large" in _message(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert _message(tmp_path / "pipe") == "PATH: is a named pipe; name a TOML file"
    assert _message(tmp_path) == "PATH: is a directory; name a TOML file"
    assert _message(Path("/dev/zero")) == "PATH: is a device; name a TOML file"


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.toml").touch()

    assert _message(tmp_path / "tran.toml") == "PATH: no such file; did you mean 'train.toml'?"
    assert "trainrun init" in _message(tmp_path / "elsewhere" / "other.toml")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert "File name too long" in _message(tmp_path / ("x" * 300))
