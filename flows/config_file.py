"""YAML file and flags → the flow's parameters, or one sentence a mistake."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tasks.config import GROUPS, Group
from tasks.errors import UserError


def load(path: Path, overrides: dict[str, dict[str, Any]]) -> dict[str, Group]:
    """Read a configuration and lay flags over it.

    Args:
        path: YAML file with the groups of tasks/config.py as its top level.
        overrides: group → field → value.
    Raises:
        UserError: the file is not YAML, or a field is unknown or wrong; every mistake is a line.
    """
    values = _read(path)
    groups: dict[str, Group] = {}
    mistakes = [
        f"{path}: there is no group {name!r}; the groups are {', '.join(GROUPS)}."
        for name in values
        if name not in GROUPS
    ]
    for name, model in GROUPS.items():
        given = values.get(name) or {}
        if not isinstance(given, dict):
            mistakes.append(f"{path}: {name} takes fields ({', '.join(model.model_fields)}), not {given!r}.")
            continue
        try:
            groups[name] = model.model_validate(given | overrides.get(name, {}))
        except ValidationError as error:
            mistakes += [_sentence(name, model, e) for e in error.errors()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return groups


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML's own loaders keep the last and drop what the first one said."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)  # a SafeLoader
    except OSError as error:
        raise UserError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"The configuration {path} takes the groups {', '.join(GROUPS)} at its top level.")
    return values


def no_such_field(group: str, field: Any) -> str:
    return f"{group}.{field}: there is no such field; {group} has {', '.join(GROUPS[group].model_fields)}."


def _sentence(group: str, model: type[Group], error: Any) -> str:
    field = error["loc"][0] if error["loc"] else ""
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return no_such_field(group, field)
    reason = error["msg"].removeprefix("Value error, ")
    if not field:
        return f"{reason}."
    about = model.model_fields[str(field)].description
    return f"{group}.{field}: {error['input']!r} is wrong: {reason[0].lower()}{reason[1:]}. It takes: {about}"
