from __future__ import annotations

import importlib.metadata
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


# How one distribution is spelt by those who install it: pip, setuptools in an editable install, distutils, Debian.
SPELLINGS = ["my_plug-{}.dist-info", "My.Plug-{}.dist-info", "my_plug.egg-info", "my__plug-{}-py3.11.egg-info"]
OTHERS = ["my-{}.dist-info", "myplug-{}.dist-info", "other_plug-{}.dist-info", "my_plug_more.egg-info"]
folders = st.lists(
    st.tuples(st.sampled_from(SPELLINGS), st.lists(st.sampled_from(OTHERS), unique=True)), min_size=1, max_size=4
)
numbers = itertools.count()


def put(folder: Path, name: str, version: str, entry: str) -> None:
    metadata = folder / name.format(version)
    metadata.mkdir(parents=True)
    distribution = name.partition("-")[0].removesuffix(".egg-info")
    file = "PKG-INFO" if name.endswith(".egg-info") else "METADATA"
    (metadata / file).write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[trainrun]\n{entry} = plug:Plug\n")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=folders)
def test_spellings_of_one_distribution_are_one_as_in_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[tuple[str, list[str]]]
) -> None:
    """One of each distribution in a folder: of several Python takes whichever the file system lists first."""
    root, path = tmp_path / str(next(numbers)), []
    for place, (mine, others) in enumerate(made):
        path.append(str(root / str(place)))
        for number, name in enumerate([mine, *others]):
            put(root / str(place), name, f"{place}.{number}", f"entry-{place}-{number}")
    with monkeypatch.context() as patched:
        patched.setattr("sys.path", path)
        theirs = {
            (e.name, e.value, e.dist and e.dist.version) for e in importlib.metadata.entry_points(group="trainrun")
        }
    assert {(e.name, e.value, e.version) for e in discover(path).entry_points} == theirs


def test_editable_install_beside_a_normal_one_is_one_distribution(tmp_path: Path) -> None:
    put(tmp_path / "source", "edit_plug.egg-info", "0.1.0", "edited")
    put(tmp_path / "site", "edit_plug-{}.dist-info", "0.1.0", "edited")
    (entry,) = discover([str(tmp_path / "source"), str(tmp_path / "site")]).plugins["edited"]
    assert entry.location == str(tmp_path / "source" / "edit_plug.egg-info")


@pytest.mark.parametrize("left", ["good_plug-1.0.dist-info", "good_plug.egg-info", "good_plug-1.2.dist-info"])
def test_empty_folder_of_a_removed_version_hides_nothing(tmp_path: Path, left: str) -> None:
    (tmp_path / "earlier" / left).mkdir(parents=True)
    (tmp_path / "site" / left).mkdir(parents=True)
    (tmp_path / "site" / left / "RECORD").touch()
    put(tmp_path / "site", "good_plug-{}.dist-info", "1.1", "good")
    (entry,) = discover([str(tmp_path / "earlier"), str(tmp_path / "site")]).plugins["good"]
    assert entry.version == "1.1"
