"""What data holds stays text: on its line, without effect on a terminal or a page."""

import logging
import re

import pytest

from flows.run.logs import Readable
from tasks.errors import UserError
from tasks.text import LONGEST, code, fenced, visible, visible_lines


@pytest.mark.parametrize(
    "sign", ["\n", "\r", "\x1b", "\x07", "\x00", "\x7f", "\x85", "\x9b", "\u202e", "\u2066", "\u2028"]
)
def test_a_sign_that_moves_or_hides_is_an_escape(sign: str) -> None:
    assert visible(f"a{sign}b") == f"a{sign.encode('unicode_escape').decode()}b"


def test_text_in_any_script_is_left_as_it_is() -> None:
    text = "naïve 你好 می‌خواهم नमस्ते 👩‍👩‍👧 ⏎ [a](b) <i> `c` |"
    assert visible(text) == text


def test_a_long_text_ends() -> None:
    assert visible("x" * 10**6) == "x" * LONGEST + "…"
    assert len(str(UserError("x" * 10**6))) == LONGEST + 1


def test_half_a_character_can_be_printed() -> None:
    assert visible("\ud800") == "\\ud800"


@pytest.mark.parametrize("text", ["a`b", "``", "`", "", " ", "a|b", "<b>", "[x](javascript:y)", "a\n\nb", "*x* _y_"])
def test_inline_code_has_one_end(text: str) -> None:
    shown = code(text)
    fence = re.match("`+", shown)[0]
    inside = shown[len(fence) : -len(fence)]
    assert shown.endswith(fence) and fence not in re.findall("`+", inside)
    assert "\n" not in shown and not re.search(r"(?<!\\)\|", shown)


def test_a_block_has_one_end() -> None:
    assert fenced("a\n```\n````\nb").split("\n")[0] == "`````text"
    assert fenced("a\x1b[0m\nb") == "```text\na\\x1b[0m\nb\n```"


def test_a_mistake_that_quotes_data_is_one_line_each() -> None:
    assert str(UserError("column a\nb", "column c\x1b")) == "column a\\nb\ncolumn c\\x1b"


def test_log_lines_hold_what_they_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readable, "command_tells", False)  # a command that ran in this process before has set it

    def shown(level: int, text: str, error: BaseException | None = None) -> str:
        info = (type(error), error, None) if error else None
        record = logging.LogRecord("x", level, "", 0, "%s", (text,), info)
        assert Readable().filter(record)
        return logging.Formatter().format(record)

    assert shown(logging.INFO, "row a\nforged \x1b]0;t\x07") == "row a\\nforged \\x1b]0;t\\x07"
    assert shown(logging.ERROR, "failed:\n  \x9b1m") == "failed:\n  \\x9b1m"
    assert shown(logging.ERROR, "failed", ValueError("a\x1bb")).endswith("ValueError: a\\x1bb")
    assert shown(logging.ERROR, "failed", UserError("a\nb")) == "a\\nb"
    assert visible_lines("a\n\x1bb") == "a\n\\x1bb"
