"""A source as parts, each of one split or of both: files on this machine or elsewhere, or a data set on the Hub."""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.config import DataConfig
from tasks.download.formats.blocks import Block
from tasks.download.formats.files import read_file
from tasks.download.hub import refusals
from tasks.download.places import ENDINGS, Place, places
from tasks.errors import UserError

_HELD_OUT = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "holdout")
"""Usual names of splits that are not trained on."""
Reader = Callable[[], Iterator[Block]]


def source_parts(data: DataConfig, formats: Counter[str]) -> list[tuple[str, Reader]]:
    """The source as (split, reader) parts; the split is empty if each row decides."""
    if not data.hub_id:
        return [(split, functools.partial(read_file, place, formats)) for split, place in split_files(data)]
    there = hub_splits(data)
    if data.train_split not in there:
        raise UserError(f"data.train_split: {data.hub_id} has no split {data.train_split!r}, only {', '.join(there)}.")
    if data.test_split not in there:
        return [("", functools.partial(read_hub, data, data.train_split, formats))]
    names = {data.train_split: "train", data.test_split: "test"}
    return [(split, functools.partial(read_hub, data, name, formats)) for name, split in names.items()]


def split_files(data: DataConfig) -> list[tuple[str, Place]]:
    """The files of a source, each with the split that its name says, as on the Hub; empty if each row decides.

    Raises:
        UserError: a split that is no training data lies among other files, and not both splits are there.
    """
    files = places(data, "path")
    if data.test_path:
        return [("train", place) for place in files] + [("test", place) for place in places(data, "test_path")]
    splits = {data.train_split: "train", data.test_split: "test"}
    folders = [place.shown.split("/")[:-1] for place in files]
    levels = enumerate(zip(*folders, strict=False))  # what folders are called in which all files are says nothing
    below = next((n for n, level in levels if len(set(level)) > 1), min(map(len, folders)))
    known = {*splits, *_HELD_OUT}
    named = [(_split(place.name, folder[below:], known), place) for place, folder in zip(files, folders, strict=True)]
    names = {name for name, _ in named}
    if names >= set(splits):
        return [(splits.get(name, "unused"), place) for name, place in named]
    if len(names) > 1 and (other := sorted(names & {data.test_split, *_HELD_OUT})):
        missing, field = ("train", "train_split") if data.test_split in names else ("held-out", "test_split")
        raise UserError(
            f"data.path has files of the split {other[0]} among others, and no {missing} ones called "
            f"{getattr(data, field)!r}: name the {missing} split in data.{field}, or give the files of both splits in "
            "data.path and data.test_path."
        )
    return [("", place) for place in files]


def _split(name: str, folders: list[str], known: set[str]) -> str:
    """`train` of train.jsonl.gz, train-00000-of-00002.parquet, my_train.csv, train/part.csv, split=train/2024/part.csv.

    Args:
        folders: in which the file stands, outermost first.
    Returns:
        one of the known splits; empty: the names say none.
    """
    stem = name.lower().removesuffix(max((e for e in ENDINGS if name.lower().endswith(e)), key=len, default=""))
    lower = {split.lower(): split for split in known}
    for part in (stem, *map(str.lower, reversed(folders))):
        words = [split for split in lower if re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z])", part)]
        if len(words) > 1:  # only the whole name tells
            words = [split for split in words if split in (part, re.sub(r"-\d+-of-\d+$", "", part))]
        if words:
            return lower[words[0]]
    return ""


def read_hub(data: DataConfig, split: str, formats: Counter[str]) -> Iterator[Block]:
    """Rows of one split of a Hub data set at a pinned commit."""
    import datasets

    from tasks.download.formats.typed import typed_rows

    formats["Hub data set"] += 1
    with refusals("data.hub_id", data.hub_id):
        where, commit = _at_the_commit(data)
        rows = datasets.load_dataset(where, data.hub_subset or None, split=split, revision=commit)
    for batch in rows.with_format("arrow").iter(1024):
        yield typed_rows(batch)


def _at_the_commit(data: DataConfig) -> tuple[str, str | None]:
    """The name and commit for `datasets`. Offline the folder in the Hub's cache, where it would take any commit.

    Raises:
        UserError: something of that name lies in the working directory, which `datasets` would read instead.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(data.hub_id).exists():
        raise UserError(
            f"data.hub_id: {data.hub_id} is also in the working directory, {Path.cwd()}. Give data.path to read "
            "that, or start the run from another folder to read the Hub's."
        )
    if constants.is_offline_mode():
        with contextlib.suppress(LocalEntryNotFoundError):
            commit = data.hub_revision
            return snapshot_download(data.hub_id, repo_type="dataset", revision=commit, local_files_only=True), None
    return data.hub_id, data.hub_revision


def hub_splits(data: DataConfig) -> list[str]:
    import datasets

    try:
        with refusals("data.hub_id", data.hub_id):
            where, commit = _at_the_commit(data)
            return datasets.get_dataset_split_names(where, data.hub_subset or None, revision=commit)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise UserError(
            f"data.hub_id: {data.hub_id} is a Python script that makes the rows, and such code is never run; take its "
            "files (the Hub keeps them as Parquet at the revision refs/convert/parquet)."
        ) from error
    except ValueError as error:  # of a subset it says which there are
        if not (subsets := re.search(r"onfig.*(\[.*\])", str(error), re.DOTALL)):
            raise
        raise UserError(f"data.hub_subset: {data.hub_id} takes one of {subsets[1]}.") from error
