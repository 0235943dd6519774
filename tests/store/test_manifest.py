"""A manifest is as it was written, or it is damaged: then its result is made anew, and no command fails by it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.clean import clean
from flows.run.plan import _found
from tasks.errors import UserError
from tasks.publishing.registry import NOTED, add_version, registries
from tasks.store import lines
from tasks.store.artifact import produce
from tasks.store.facts import Facts
from tasks.store.identity import Identity
from tasks.store.manifest import LARGEST, MANIFEST, DamagedArtifact, Manifest

WHO = Identity(stage="test", config={"share": 0.1, "names": ["ä"]}, inputs={"rows": "0" * 64})


class Scored(Facts):
    rows: int
    scores: list[dict[str, Any]]
    loss: float


def write(folder: Path) -> Facts:
    (folder / "part").mkdir()
    (folder / "part" / "file").write_text("content")
    return Scored(rows=3, scores=[{"metric": "rougeL", "tuned": 0.25}], loss=float("nan"))


def never(folder: Path) -> Facts:
    raise AssertionError("computed again")


def edited(edit: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def damage(raw: bytes) -> bytes:
        manifest = json.loads(raw)
        changed = edit(manifest)
        return json.dumps(manifest if changed is None else changed, indent=1, ensure_ascii=False).encode()

    return damage


def of_format(number: int, raw: bytes) -> bytes:
    """A manifest as earlier versions wrote it, with digests of source files and, in format 1, without a checksum."""
    manifest = json.loads(raw) | {"format": number}
    manifest["identity"]["code"] = {"tasks.publishing": "0" * 64}
    for name in ("format", "checksum") if number == 1 else ():
        del manifest[name]
    return json.dumps(manifest).encode()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "a list": lambda raw: b"[]",
    "an empty object": lambda raw: b"{}",
    "not UTF-8": lambda raw: b"\xff" + raw,
    "deep": lambda raw: b"[" * 100_000,
    "huge": lambda raw: raw + b" " * LARGEST,
    "a space more": lambda raw: raw + b" ",
    **{f"without {name}": edited(lambda m, name=name: m.pop(name) and None) for name in ("key", "created", "info")},
    "another number in info": edited(lambda m: m["info"]["scores"][0].update(tuned=9.25)),
    "another file": edited(lambda m: m["files"].update(other=m["files"]["part/file"])),
    "a negative size": edited(lambda m: m["files"]["part/file"].update(size=-1)),
    "a size in words": edited(lambda m: m["files"]["part/file"].update(size="7")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_manifest_is_a_miss_that_is_said_once_and_heals(
    store: Path, damage: Callable[[bytes], bytes]
) -> None:
    ref = produce(WHO, write)
    file = ref.path / MANIFEST
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DamagedArtifact, match=MANIFEST):
        ref.verify()
    folder, why = _found(WHO, [ref.path], None)  # what `plan` asks
    assert folder is None and str(file.parent) in why
    said: list[str] = []
    assert produce(WHO, write, said.append) == ref
    assert len(said) == 1 and said[0].startswith("test runs again: ")
    assert produce(WHO, never) == ref
    file.write_bytes(damage(file.read_bytes()))
    clean(keep_last=1)


def test_facts_are_read_through_their_type_alone(store: Path) -> None:
    class Others(Facts):
        rows: int
        speed: float

    ref = produce(WHO, write)
    assert ref.facts(Scored).scores[0]["tuned"] == 0.25
    with pytest.raises(DamagedArtifact, match=r"test-\w+ was noted by another version of qlora-flow \(Others: speed "):
        ref.facts(Others)


def test_every_flipped_bit_is_noticed(store: Path) -> None:
    raw = (produce(WHO, write).path / MANIFEST).read_bytes()
    assert Manifest.parse(raw).encoded() == raw
    for place in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError):
            Manifest.parse(bytes(flipped))


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "", ".", "a//b", "a/", MANIFEST, "a\0b", "part/file/inside"]
)
def test_a_manifest_names_files_of_its_folder_alone(store: Path, name: str) -> None:
    manifest = produce(WHO, write).manifest
    files = {**manifest.files, name: manifest.files["part/file"]}
    raw = Manifest.model_construct(**{**dict(manifest), "files": files}).encoded()
    with pytest.raises(ValueError, match="file"):
        Manifest.parse(raw)


def test_the_manifest_of_another_result_is_no_result(store: Path) -> None:
    produce(WHO, write)
    other = Identity(stage="test")
    (store / "artifacts" / WHO.key).rename(store / "artifacts" / other.key)
    said: list[str] = []
    produce(other, write, said.append)
    assert f"has the manifest of {WHO.key}" in said[0]


def published(registry: Path, *origins: str) -> Path:
    identity = Identity(stage="publish", inputs={str(n): digest for n, digest in enumerate(origins)})
    return add_version(identity, registry / "demo", lambda folder, name: Facts()).path


@pytest.mark.parametrize("number", [1, 2])
def test_an_earlier_format_is_computed_again_or_named_with_what_to_do(store: Path, number: int) -> None:
    file = produce(WHO, write).path / MANIFEST
    file.write_bytes(of_format(number, file.read_bytes()))
    said: list[str] = []
    produce(WHO, write, said.append)
    assert "another version of qlora-flow wrote it" in said[0] and file.exists()
    file = published(store / "registry") / MANIFEST
    file.write_bytes(old := of_format(number, file.read_bytes()))
    with pytest.raises(UserError, match=r"v0001 .* wrote it, .* a published version can be moved out of the registry"):
        clean(keep_last=1)
    assert published(store / "registry").name == "v0002" and file.read_bytes() == old


def test_clean_removes_nothing_when_it_cannot_know_what_versions_were_made_from(store: Path, tmp_path: Path) -> None:
    origin = produce(WHO, write)
    version = published(tmp_path / "elsewhere", origin.digest)
    produce(Identity(stage="test"), write)
    for file in (version / MANIFEST, store / NOTED):
        whole = file.read_bytes()
        file.write_bytes(whole.replace(b"s", b"r", 1))
        with pytest.raises(UserError, match=str(file.parent)):
            clean(keep_last=1)
        assert origin.path.exists()
        file.write_bytes(whole)
    (tmp_path / "elsewhere").rename(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"elsewhere were made from is unknown: the folder is gone"):
        clean(keep_last=1)
    (tmp_path / "unmounted").rename(tmp_path / "elsewhere")
    clean(keep_last=1)
    assert origin.path.exists()


def test_a_registry_is_noted_once_and_after_a_torn_line(store: Path, tmp_path: Path) -> None:
    store.mkdir()
    (store / NOTED).write_text('0123456789abcdef "/torn')
    for _ in range(2):
        published(tmp_path / "elsewhere")
    assert (store / NOTED).read_text().count("elsewhere") == 1
    (store / NOTED).write_text("".join((store / NOTED).read_text().splitlines(True)[1:]))
    assert registries() == [store / "registry", tmp_path / "elsewhere"]


@pytest.mark.parametrize("line", [b"\xff\n", b"\0\n", b"1\n", b"[]\n", b"{" * 9000 + b"\n", b"/plain\n"])
def test_a_damaged_note_of_registries_is_one_sentence(store: Path, line: bytes) -> None:
    produce(WHO, write)
    (store / NOTED).write_bytes(line)
    with pytest.raises(UserError, match="is damaged"):
        clean(keep_last=1)
    lines.append(store / NOTED, ["a", "list"])
    with pytest.raises(UserError, match="is damaged"):
        registries()
