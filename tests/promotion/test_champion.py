"""One champion at any time, a history that loses nothing, and a sentence for whatever is wrong with either."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import flows.promote
from flows.__main__ import main
from flows.promote import earlier
from tasks.errors import UserError
from tasks.promotion import champion
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import add_version
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tests.promotion.registry import BASE, folder, publish
from tests.store.test_manifest import of_format
from tests.tiny import noted

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


def test_a_version_of_an_earlier_format_is_named_and_in_nobodys_way(capsys: pytest.CaptureFixture[str]) -> None:
    file = publish("a").path / "manifest.json"
    file.write_bytes(of_format(1, file.read_bytes()))
    assert opponent("b") is None
    assert main(["adapters", "list"]) == 0
    assert main(["adapters", "verify", "adapter"]) == 1
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())  # cells of a table
    assert "another version of qlora-flow wrote it" in shown


@pytest.mark.parametrize("columns", ["80", ""])
def test_versions_and_decisions_can_be_read_at_80_columns_and_when_piped(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
    reason = "it reads better than all of the others, says everybody who has seen it: " + 3 * "word " + "end"
    publish("a")
    with champion.held(folder(), "a test") as history:
        history.move("v0001", reason)
    for command in (["adapters", "list"], ["adapters", "show", "adapter", "--store", os.environ["QLORA_FLOW_STORE"]]):
        assert main(command) == 0
        said = capsys.readouterr().out.splitlines()
        table = [line for line in said if line[0] in "┏┃┡│└"]
        assert len(table) == 5 and max(map(len, table)) <= 80 and "…" not in "".join(table)
        assert any(reason in line for line in said)


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
    later = time.time() + 5
    for target in ("v0003", "../x", "/etc", "v0001"):  # the last one is the version before
        (folder() / "champion").unlink()
        (folder() / "champion").symlink_to(target)
        os.utime(folder() / "champion", (later, later), follow_symlinks=False)
        with pytest.raises(UserError, match="was changed by hand"), champion.held(folder(), "t"):
            pass
    assert main(["adapters", "rollback", "adapter@v0001", "--reason", "it was an emergency"]) == 0
    assert pointed() == "v0001" == champion.champion_of(champion.read(folder()))


@pytest.mark.parametrize("damage", ["cut", "flipped", "line taken out", "line twice", "not text", "deleted"])
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
    file.write_bytes(whole[damage]) if damage in whole else file.unlink()
    with pytest.raises(UserError, match=r"is damaged at entry|is missing beside"), champion.held(folder(), "a test"):
        pass
    assert main(["adapters", "promote", "adapter@v0001", "--reason", "x"]) == 2
    assert main(["adapters", "verify", "adapter"]) == 1
    assert main(["adapters", "list"]) == 0
    assert "Traceback" not in "".join(capsys.readouterr())
    assert main(["adapters", "renew", "adapter", "--reason", "a disk failed"]) == 0
    assert pointed() == "v0002" == champion.champion_of(champion.read(folder()))
    assert len([*folder().glob("history.jsonl.damaged-*")]) == (damage != "deleted")


def test_a_renewal_that_is_killed_leaves_the_damaged_history(monkeypatch: pytest.MonkeyPatch) -> None:
    publish("a"), publish("b")
    move("v0001")
    file = folder() / "history.jsonl"
    file.write_bytes(damaged := file.read_bytes()[:-20])
    with monkeypatch.context() as patch:
        patch.setattr(champion, "_replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            champion.renew(folder(), "a test", "a disk failed")
    assert file.read_bytes() == damaged
    assert "begins with v0001 in use" in champion.renew(folder(), "a test", "a disk failed")


def test_a_full_disk_leaves_the_history_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
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
        assert main(["adapters", "rollback", "adapter@v0001", "--reason", "x"]) == 0  # it is in use already
        publish("b")
        patch.setattr(flows.promote, "try_out", lambda *_: None)
        patch.setattr(flows.promote, "base_of", lambda _: BASE)
        assert main(["adapters", "promote", "adapter@v0002", "--reason", "x"]) == 1
    assert capsys.readouterr().err.startswith("A disk is full (")
    assert (folder() / "history.jsonl").read_bytes() == before
    move("v0001")
    assert len(champion.read(folder())) == 3


def test_a_champion_that_is_damaged_or_gone_is_a_sentence_that_names_another() -> None:
    publish("a"), publish("b")
    move("v0002")
    shutil.rmtree(folder() / "v0002")
    with pytest.raises(UserError, match=r"v0002 of adapter is missing or damaged .*adapters promote adapter@v0001"):
        opponent("c")
    shutil.rmtree(folder() / "v0001")
    with pytest.raises(UserError, match=r"or remove .*adapter with its history to begin anew\.$"):
        opponent("c")


def put_another_in_its_place() -> None:
    shutil.rmtree(folder() / "v0002")
    shutil.copytree(folder() / "v0001", folder() / "v0002")


def take_away_the_last_and_publish_another() -> None:
    """A number of a version that was in use, and was deleted since, is given again."""
    move("v0001")
    shutil.rmtree(folder() / "v0002")
    publish("c")


def damage_the_last() -> None:
    (folder() / "v0002" / "adapter_model.safetensors").write_text("x")


def make_a_folder_of_the_history() -> None:
    (folder() / "history.jsonl").rename(folder() / "copy")
    (folder() / "history.jsonl").mkdir()


def make_a_folder_of_the_page() -> None:
    (folder() / "README.md").unlink(missing_ok=True)
    (folder() / "README.md").mkdir()


def copy_without_links() -> None:
    (folder() / "champion").unlink()
    shutil.copytree(folder() / "v0002", folder() / "champion")


@pytest.mark.parametrize(
    ("tamper", "command", "sentence"),
    [
        (put_another_in_its_place, "begin", "v0002 of adapter has other weights than those that were put in use"),
        (put_another_in_its_place, "verify adapter --json", "v0002 of adapter has other weights"),
        (take_away_the_last_and_publish_another, "rollback adapter@v0002", "v0002 of adapter was never in use"),
        (damage_the_last, "begin", "v0002 of adapter is missing or damaged"),
        (damage_the_last, "promote adapter@v0002", "v0002 of adapter is missing or damaged"),
        (damage_the_last, "rollback adapter@v0002", "v0002 of adapter is missing or damaged"),
        (lambda: None, "promote adapter@../v0001", "'../v0001' names no version of adapter"),
        (make_a_folder_of_the_history, "begin", "history.jsonl cannot be read (Is a directory)"),
        (make_a_folder_of_the_history, "promote adapter@v0001", "history.jsonl cannot be read (Is a directory)"),
        (make_a_folder_of_the_history, "verify adapter --json", "history.jsonl cannot be read (Is a directory)"),
        (make_a_folder_of_the_page, "promote adapter@v0001", "cannot be written (Is a directory): "),
        (copy_without_links, "begin", "champion is a folder, and the pointer to the champion has that name"),
        (copy_without_links, "rollback adapter@v0001", "champion is a folder, and the pointer"),
        (lambda: None, "rollback adapter@v0003", "There is no version v0003 of adapter"),
        (lambda: publish("c"), "rollback adapter@v0003", "v0003 of adapter was never in use, so it was not tried"),
    ],
)
def test_what_was_exchanged_or_never_tried_is_not_put_in_use(
    tamper: Callable[[], None], command: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("a"), publish("b")
    move("v0001"), move("v0002")
    tamper()
    history = folder() / "history.jsonl"
    before = history.read_bytes() if history.is_file() else b""
    if command == "begin":
        with pytest.raises(UserError, match=re.escape(sentence)):
            champion.begin(folder(), "a test")
    else:
        more = [] if command.startswith("verify") else ["--reason", "x"]
        assert main(["adapters", *command.split(), *more]) in (1, 2)
        assert sentence in " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert (history.read_bytes() if history.is_file() else b"") == before


def test_a_registry_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "adapter"
    add_version(Identity(stage="publish"), elsewhere, lambda aside, version: noted(VersionFacts))
    elsewhere.parent.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"disk is gone, and versions were published to it\. Is its disk mounted"):
        champion.begin(elsewhere, "a test")
    assert not elsewhere.parent.exists()


def test_a_registry_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"registry .*file/adapter cannot be written \(Not a directory\)"):
        champion.begin(tmp_path / "file" / "adapter", "a test")


def test_a_page_that_is_no_text_is_written_again() -> None:
    publish("a")
    (folder() / "README.md").write_bytes(b"\xff\xfe")
    assert main(["adapters", "rollback", "adapter@v0001", "--reason", "x"]) == 0
    assert (folder() / "README.md").read_text().startswith("# adapter")


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
    assert last.reason == "Rolled back from v0002 to v0001: more complaints." and "@" in last.by


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "nothing"], "There is no adapter 'nothing' in"),
        (["show", "../x"], "There is no adapter '../x' in"),
        (["show", "adapter@../x"], "'../x' names no version of adapter"),
        (["show", "adapter@"], "'' names no version of adapter"),
        (["compare", "adapter@v0001", "../x"], "'../x' names no version"),
        (["compare", "adapter"], "Compare two versions"),
        (
            ["rollback", "adapter@v0009", "--reason", "x"],
            "There is no version v0009 of adapter; there are",
        ),
        (["rollback", "adapter", "--reason", "x"], "there is none to go back to"),
        (
            ["promote", "adapter@v0009", "--reason", "x"],
            "There is no version v0009 of adapter; there are",
        ),
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
    rows = json.loads(capsys.readouterr().out)
    assert [(row["version"], row["champion"], row["scores"]) for row in rows] == [
        ("v0001", False, {"loss": 2.5}),
        ("v0002", True, {"loss": 2.25}),
    ]
    assert rows[1]["decision"] == "to v0002"
    for action in (["list"], ["show", "adapter"], ["compare", "adapter@v0001"], ["verify", "adapter"]):
        assert main(["adapters", *action]) == 0
        assert "v0002" in capsys.readouterr().out
