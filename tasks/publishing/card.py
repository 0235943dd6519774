"""The model card: the adapter, its origin, its scores, and a program that generates an answer with it."""

from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes

from tasks.config import FormattingConfig
from tasks.evaluation.tables import health_table, markdown, score_table
from tasks.store.model import BaseModelRef
from tasks.store.root import at_home
from tasks.text import code, fenced


def _literal(text: str) -> str:
    """A Python literal of a text, with one string for each line."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2:
        return repr(text)
    return "(\n" + "".join(f"    {line!r}\n" for line in lines) + ")"


_ENVIRONMENT = jinja2.Environment(
    undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(Path(__file__).parent)
)
_ENVIRONMENT.filters.update(code=code, fenced=fenced, literal=_literal)


def model_card(base: BaseModelRef, formatting: FormattingConfig, **parts: Any) -> str:
    """Render card.md.j2 with the program of snippet.py.j2. `parts` must have every other name that they use."""
    chat = formatting.style == "chat"
    parts |= {
        "base": base,
        # the Hub takes no folder for a base's name
        "on_hub": at_home(base.source, "model.base").absolute() != Path(base.folder),
        "formatting": formatting,
        "chat": chat,
        "row": {} if chat else dict.fromkeys(_columns(formatting.prompt), "..."),
        "score_table": markdown(score_table(parts["evaluation"]["scores"], parts["percent"])),
        "watch_table": markdown(score_table(watch, parts["percent"]))
        if (watch := parts["evaluation"]["watch"])
        else "",
        "health_table": markdown(health_table(parts["evaluation"]["health"])),
    }
    snippet = _ENVIRONMENT.get_template("snippet.py.j2").render(parts)
    return _ENVIRONMENT.get_template("card.md.j2").render(parts, snippet=snippet)


def _columns(prompt: str) -> list[str]:
    """The columns that a prompt's template names as variables."""
    names = list(_ENVIRONMENT.parse(prompt).find_all(jinja2.nodes.Name))
    own = {name.name for name in names if name.ctx != "load"}
    return sorted({name.name for name in names} - own - {"row"} - _ENVIRONMENT.globals.keys())
