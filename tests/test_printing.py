"""What is not trainrun's own is shown so that a terminal does not obey it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli

from trainrun.printing import clean, escape, inline, shorten

UNSAFE = [*map(chr, [*range(9), *range(0xB, 0x20), *range(0x7F, 0xA0)]), *"\u202a\u202e\u2066\u2069\ud800\udfff"]


def test_control_characters_are_escaped_and_nothing_else() -> None:
    for sign in UNSAFE:
        assert escape(f"a{sign}b") == f"a\\u{ord(sign):04x}b"
    kept = "grüße 日本 🚀 שלום\ttab\nline"
    assert escape(kept) == kept
    assert escape("a\r\nb") == "a\nb"


def test_what_must_stay_in_its_line_does() -> None:
    assert inline("a\nerror: all is lost\tb\x1b[2J") == "a\\nerror: all is lost\\tb\\u001b[2J"


def test_documents_stay_documents() -> None:
    value = {"a": "".join(UNSAFE[:-2])}
    assert json.loads(escape(json.dumps(value))) == value
    assert tomli.loads(escape('a = "\x9b\u202e"')) == {"a": "\x9b\u202e"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("10%\r50%\r100%\r", "100%"),
        ("tab\there", "tab    here"),
        ("bell\x07 null\x00", "bell null"),
        ("\x9b31mred", "31mred"),
        ("a\u202eb\udc80", "a\\u202eb\\udc80"),
    ],
)
def test_clean(line: str, shown: str) -> None:
    assert clean(line) == shown


def test_long_line_is_cut() -> None:
    shown = clean("x" * 10_000_000)
    assert len(shown) < 2100
    assert shown.endswith("(9998000 more characters)")


def test_a_text_that_is_short_enough_stays() -> None:
    text = "\n".join(["x" * 2000] * 30)
    assert shorten(text, Path("file")) == text


def test_a_text_that_is_too_long_is_cut_once_and_names_the_file_that_has_it_all() -> None:
    shown = shorten("x" * 50_000_000, Path("runs/1/file"))
    assert len(shown) < 2100
    assert shown.endswith("… (49998000 more characters)\n… all of it: runs/1/file")
    assert shorten(shown, Path("other")) == shown


def test_of_many_lines_the_first_and_the_last_are_shown() -> None:
    shown = shorten("\n".join(map(str, range(1000))), "file", lines=6)
    assert shown.split("\n") == ["0", "1", "2", "3", "… 994 more lines", "998", "999", "… all of it: file"]
    assert shorten(shown, "other", lines=6) == shown
