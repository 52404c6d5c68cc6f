from __future__ import annotations

import importlib.metadata
from pathlib import Path

from trainrun.plugin.discovery import discover
from trainrun.testing.distribution import DistributionInstaller


def test_finds_entry_points_sorted_by_distribution_then_name(install: DistributionInstaller) -> None:
    install("zoo", {}, {"b": "zoo:B", "a": "zoo:A"})
    install("ant", {}, {"z": "ant:Z"})
    found = [(entry.distribution, entry.name) for entry in discover().entry_points if entry.distribution != "trainrun"]
    assert [one for one in found if one[0] in ("ant", "zoo")] == [("ant", "z"), ("zoo", "a"), ("zoo", "b")]


def test_agrees_with_the_standard_library(install: DistributionInstaller) -> None:
    install("watchers", {}, {"w": "watchers.deep:Watcher.Inner", "x": "watchers"}, version="2.1.dev3")
    ours = {(e.distribution, e.version, e.name, e.value) for e in discover().entry_points if e.group == "trainrun"}
    theirs = {
        (e.dist.name, e.dist.version, e.name, e.value)
        for e in importlib.metadata.entry_points(group="trainrun")
        if e.dist
    }
    assert ours == theirs


def test_one_name_in_two_distributions_keeps_both(install: DistributionInstaller) -> None:
    install("one", {}, {"same": "one:A"})
    install("two", {}, {"same": "two:A"})
    assert [entry.distribution for entry in discover().plugins["same"]] == ["one", "two"]


def test_commands_are_a_group_of_their_own(install: DistributionInstaller) -> None:
    install("extra", {}, {"dance": "extra:dance"}, group="trainrun.commands")
    found = discover()
    assert "dance" in found.commands
    assert "dance" not in found.plugins


def test_fingerprint_changes_when_something_is_installed(install: DistributionInstaller) -> None:
    before = discover().fingerprint
    assert discover().fingerprint == before
    install("new", {}, {})
    assert discover().fingerprint != before


def test_the_first_on_the_path_hides_others_of_the_same_distribution(tmp_path: Path) -> None:
    for folder, version in (("first", "2.0"), ("second", "1.0")):
        metadata = tmp_path / folder / f"same-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "entry_points.txt").write_text("[trainrun]\nthing = same:Thing\n")
    (entry,) = discover([str(tmp_path / "first"), str(tmp_path / "second")]).entry_points
    assert entry.version == "2.0"


def test_survives_metadata_that_is_damaged(tmp_path: Path) -> None:
    metadata = tmp_path / "odd-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_bytes(
        b"[trainrun]\n; note\n\nno equals sign\n\xff = odd:\xff\nok = odd:Ok [x]\n"
    )
    (metadata / "METADATA").mkdir()
    found = discover([str(tmp_path), str(tmp_path / "missing"), str(metadata / "entry_points.txt")])
    assert ("odd", "1.0", "ok", "odd:Ok") in {(e.distribution, e.version, e.name, e.value) for e in found.entry_points}
