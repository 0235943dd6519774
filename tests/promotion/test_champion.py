"""One champion at any time, a history that loses nothing, and a sentence for whatever is wrong with either."""

import shutil
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.promote import earlier
from tasks.errors import UserError
from tasks.promotion import champion
from tasks.store.artifact import ArtifactRef
from tests.promotion.registry import folder, publish

pytestmark = pytest.mark.usefixtures("store")


def move(version: str) -> None:
    with champion.held(folder(), "a test") as history:
        history.move(version, f"to {version}")


def opponent(adapter: str) -> ArtifactRef | None:
    """As a run asks for it."""
    champion.begin(folder(), "a test")
    return champion.opponent(folder(), adapter)


def pointed() -> str:
    return champion.pointer(folder())


def test_the_pointer_is_a_relative_link_that_a_moved_registry_keeps(tmp_path: Path) -> None:
    publish("a"), publish("b")
    move("v0002")
    assert (folder() / "champion").readlink() == Path("v0002")
    assert (folder() / "champion" / "adapter_model.safetensors").read_text() == "b"
    shutil.move(folder().parent, tmp_path / "moved")
    with champion.held(tmp_path / "moved" / "adapter", "a test") as history:
        assert history.champion == "v0002"


def test_a_file_system_without_links_has_a_small_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    publish("a"), publish("b")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    move("v0001"), move("v0002")
    assert (folder() / "champion").read_text() == "v0002\n"
    assert pointed() == "v0002"


def test_versions_from_before_have_a_first_champion_the_newest_intact_one() -> None:
    publish("a"), publish("b"), publish("c")
    (folder() / "v0003" / "adapter_model.safetensors").write_text("x")
    compared = opponent("d")
    assert compared and compared.path.name == "v0002" == pointed()
    assert "from before this history" in champion.read(folder())[0].reason


def test_a_first_run_is_compared_with_the_base_also_when_it_is_repeated() -> None:
    assert opponent("a") is None
    publish("a")  # and is killed here
    assert opponent("a") is None


def test_a_move_that_was_cut_off_is_completed() -> None:
    publish("a"), publish("b")
    move("v0001")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(champion, "point", lambda *_: None)
        move("v0002")
    assert pointed() == "v0001"
    with champion.held(folder(), "a test") as history:
        assert history.champion == pointed() == "v0002"


def test_a_pointer_that_was_deleted_comes_back() -> None:
    publish("a")
    move("v0001")
    (folder() / "champion").unlink()
    with champion.held(folder(), "a test"):
        assert pointed() == "v0001"


def test_a_pointer_that_was_changed_by_hand_is_said_and_can_be_recorded() -> None:
    publish("a"), publish("b"), publish("c")
    move("v0001"), move("v0002")
    for target in ("v0003", "../x", "/etc"):
        (folder() / "champion").unlink()
        (folder() / "champion").symlink_to(target)
        with pytest.raises(UserError, match="was changed by hand"), champion.held(folder(), "t"):
            pass
    assert main(["adapters", "rollback", "adapter@v0001", "--reason", "it was an emergency"]) == 0
    assert pointed() == "v0001" == champion.champion_of(champion.read(folder()))


@pytest.mark.parametrize("damage", ["cut", "flipped", "line taken out", "line twice", "not text"])
def test_a_damaged_history_is_a_sentence_and_nothing_is_decided(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("a"), publish("b")
    move("v0001"), move("v0002")
    file = folder() / "history.jsonl"
    lines = file.read_bytes().split(b"\n\n")
    whole = {
        "cut": file.read_bytes()[:-20],
        "flipped": file.read_bytes().replace(b"to v0001", b"to v0003"),
        "line taken out": b"\n\n".join([lines[0], lines[2]]),
        "line twice": b"\n\n".join([*lines, lines[2]]),
        "not text": b"\xff\xfe\n",
    }
    file.write_bytes(whole[damage])
    with pytest.raises(UserError, match="is damaged at entry"), champion.held(folder(), "a test"):
        pass
    assert main(["adapters", "promote", "adapter@v0001", "--reason", "x"]) == 2
    assert main(["adapters", "verify", "adapter"]) == 1
    assert main(["adapters", "list"]) == 0
    assert "Traceback" not in "".join(capsys.readouterr())
    assert main(["adapters", "renew", "adapter", "--reason", "a disk failed"]) == 0
    assert pointed() == "v0002" == champion.champion_of(champion.read(folder()))
    assert len([*folder().glob("history.jsonl.damaged-*")]) == 1


def test_a_full_disk_leaves_the_history_as_it_was() -> None:
    from tasks.store import lines

    publish("a")
    move("v0001")
    before = (folder() / "history.jsonl").read_bytes()

    def half(file: Path, value: object) -> None:
        with file.open("a") as torn:
            torn.write("0123 {")
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "append", half)
        with pytest.raises(OSError, match="No space"):
            move("v0001")
    assert (folder() / "history.jsonl").read_bytes() == before
    move("v0001")
    assert len(champion.read(folder())) == 3


def test_a_champion_that_is_damaged_or_gone_is_a_sentence_that_names_another() -> None:
    publish("a"), publish("b")
    move("v0002")
    shutil.rmtree(folder() / "v0002")
    with pytest.raises(UserError, match=r"v0002 of adapter is missing or damaged .*adapters promote adapter@v0001"):
        opponent("c")


def test_a_registry_that_cannot_be_written_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    publish("a")
    monkeypatch.setattr(champion, "locked", refuse)
    with pytest.raises(UserError, match=r"registry .* cannot be written \(Permission denied\)"):
        opponent("a")


def test_going_back_twice_goes_back_two_versions() -> None:
    for weights in "abc":
        move(publish(weights).path.name)
    assert earlier(champion.read(folder())) == "v0002"
    assert main(["adapters", "rollback", "adapter", "--reason", "complaints"]) == 0
    assert main(["adapters", "rollback", "adapter", "--reason", "more complaints"]) == 0
    assert pointed() == "v0001"
    assert main(["adapters", "rollback", "adapter", "--reason", "even more"]) == 2
    last = champion.read(folder())[-1]
    assert (last.version, last.champion) == ("v0001", "v0002")
    assert last.reason == "Rolled back from v0002 to v0001: more complaints" and "@" in last.by


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "nothing"], "There is no adapter 'nothing' in"),
        (["show", "../x"], "There is no adapter '../x' in"),
        (["show", "adapter@../x"], "'../x' names no version of adapter"),
        (["show", "adapter@"], "'' names no version of adapter"),
        (["compare", "adapter@v0001", "../x"], "'../x' names no version"),
        (["compare", "adapter"], "Compare two versions"),
        (["rollback", "adapter@v0009", "--reason", "x"], "v0009 of adapter is missing or damaged"),
        (["rollback", "adapter", "--reason", "x"], "there is none to go back to"),
        (["promote", "adapter@v0009", "--reason", "x"], "v0009 of adapter is missing or damaged"),
        (["promote", "adapter", "--reason", "x"], "Name a version"),
        (["promote", "adapter@v0001", "--reason", " "], "--reason takes a sentence"),
        (["promote", "adapter@v0001", "--reason", "x"], "The base owner/base is not on this machine"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("a"), publish("b")
    assert main(["adapters", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert pointed() in ("", "v0002")


def test_people_and_programs_see_versions_and_decisions(capsys: pytest.CaptureFixture[str]) -> None:
    publish("a", 2.5), publish("b", 2.25)
    move("v0002")
    assert main(["adapters", "list", "--json"]) == 0
    import json

    rows = json.loads(capsys.readouterr().out)
    assert [(row["version"], row["champion"], row["scores"]) for row in rows] == [
        ("v0001", False, {"loss": 2.5}),
        ("v0002", True, {"loss": 2.25}),
    ]
    assert rows[1]["decision"] == "to v0002"
    for action in (["list"], ["show", "adapter"], ["compare", "adapter@v0001"], ["verify", "adapter"]):
        assert main(["adapters", *action]) == 0
        assert "v0002" in capsys.readouterr().out
