"""Text that a person will see, in a log, a terminal or a Markdown page: it stays text, and it holds no secrets."""

import re
import unicodedata

LONGEST = 4000
"""Characters of one such text; a longer one ends with an ellipsis."""
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters (C0, DEL, C1), line separators, bidirectional overrides, halves of characters."""

_NAMES = (
    r"[\w.%-]*(?:token|secret|signature|password|passwd|passphrase|credentials?)"
    r"|[\w.%-]*(?:api|access|secret|account|subscription|private)[_-]?key(?:[_-]?id)?"
    r"|sig|sas|jwt|pwd|pass|key|auth|authorization|key-pair-id|googleaccessid|x-(?:amz|goog|ms|oss|cos|obs)-[\w-]+"
)
SECRET = re.compile(
    r"(?i)(?<=://)[^\s/?#'\"<>@]*:(?!\d*(?:[/?#]|$))[^\s'\"<>]*?@(?:[^\s/'\"<>@]*@)*"  # user and password
    r"|(?:(?<=http://)|(?<=https://))[^\s/?#'\"<>]+@"  # a token in their place
    rf"|(?<=[?&;#])(?:{_NAMES})=[^&;\s#'\"<>]+"  # signatures and tokens in a query
    r"|\bhf_[a-z0-9]{16,}|\bBearer +[\w.~+/=-]{8,}"
)
"""Credentials in a URL or beside one."""


def masked(text: str) -> str:
    """Without credentials.

    >>> masked("https://me:mine@host/a?download=true&sig=abc")
    'https://***@host/a?download=true&sig=***'
    """

    def mask(found: re.Match[str]) -> str:
        name, equals, _ = found[0].partition("=")
        return "***@" if found[0].endswith("@") else f"{name}=***" if equals else "***"

    return SECRET.sub(mask, text)


def public_url(where: str) -> str:
    """A URL without its query, which may hold a signature of a kind that is not known, and without a password."""
    if "://" not in where:
        return where
    protocol, _, rest = where.partition("://")
    rest = rest if protocol == "memory" else rest.partition("?")[0].partition("#")[0]
    return masked(f"{protocol}://{rest}")


def visible(text: object, longest: int = LONGEST) -> str:
    r"""On one line, without credentials: control characters as escapes such as \n and \x1b, cut to a length.

    >>> visible("a\n\x1b[31mb")
    'a\\n\\x1b[31mb'
    """
    text = str(text)
    shown = _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text[: 2 * longest])
    shown = masked(shown)
    return shown[:longest] + "…" if len(text) > longest or len(shown) > longest else shown


def hide_secrets(error: BaseException) -> None:
    """Mask what the message of another library's error quotes, which Prefect keeps with the run."""
    error.args = tuple(visible_lines(part) if isinstance(part, str) else part for part in error.args)


def visible_lines(text: object) -> str:
    """The same, line by line: for texts that have lines of their own, such as a traceback."""
    return "\n".join(map(visible, str(text).split("\n")))


def code(text: object) -> str:
    """As inline code of Markdown, in which nothing is a link, a tag or the end of a table's cell."""
    shown = visible(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def fenced(text: str, language: str = "text") -> str:
    """A block of code of Markdown that no text can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{visible_lines(text)}\n{fence}"


def answer_text(text: str, ending: str = "") -> str:
    """What counts as the answer of a text, for references and generated answers alike: up to the ending, stripped."""
    mark = ending.strip()
    return unicodedata.normalize("NFC", text.split(mark)[0] if mark else text).strip()


LONGEST_EXCERPT, MOST_LINES = 3000, 60
"""Characters and lines of one text; a longer one loses its middle, and says how much."""

Part = tuple[str, str]
"""(kind, text): `masked` and `learnt` tokens, `text`, or a `gap` that says what is left out."""


def excerpt(text: str, kind: str = "text", times: int = 1) -> list[Part]:
    """Beginning and end of a text, its middle left out where it is `times` too long for a page."""
    characters, lines = LONGEST_EXCERPT * times // 2, MOST_LINES * times // 2
    if len(text) <= 2 * characters and text.count("\n") < 2 * lines:
        return [(kind, text)]
    first = "".join(text[:characters].splitlines(keepends=True)[:lines])
    last = "".join(text[-characters:].splitlines(keepends=True)[-lines:])
    left_out = len(text) - len(first) - len(last)
    return (
        [(kind, first), ("gap", f"{left_out:,} characters left out"), (kind, last)] if left_out > 0 else [(kind, text)]
    )
