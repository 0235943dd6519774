"""The source as parts, each for one side or for both: files wherever they lie, or a data set on the Hub."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator

from tasks.config import DataConfig
from tasks.download.blocks import Block
from tasks.download.formats import read_file
from tasks.download.places import ENDINGS, Place, places
from tasks.errors import UserError

Reader = Callable[[], Iterator[Block]]


def source_parts(data: DataConfig, formats: Counter[str]) -> list[tuple[str, Reader]]:
    """The source as (side, reader) parts; side is empty where the rows themselves decide.

    Held-out parts come first: of two rows with one name it is the training row that goes.
    """
    return sorted(_parts(data, formats), key=lambda part: part[0] != "test")


def _parts(data: DataConfig, formats: Counter[str]) -> list[tuple[str, Reader]]:
    if data.hub_id:
        names = {data.train_split: "train", data.test_split: "test"}
        there = hub_splits(data)
        if data.train_split not in there:
            raise UserError(
                f"data.train_split: {data.hub_id} has no split {data.train_split!r}, only {', '.join(there)}."
            )
        given = data.test_split in there
        return [
            (side if given else "", functools.partial(read_hub, data, split, formats))
            for split, side in names.items()
            if split in there
        ]
    files = [("", place) for place in places(data, "path")]
    by_name = {data.train_split: "train", data.test_split: "test"}
    if data.test_path:
        files = [("train", place) for _, place in files]
        files += [("test", place) for place in places(data, "test_path")]
    elif {_stem(place) for _, place in files} >= set(by_name):
        files = [(by_name.get(_stem(place), "unused"), place) for _, place in files]
    return [(side, functools.partial(read_file, place, formats)) for side, place in files]


def _stem(place: Place) -> str:
    """The name without its ending: `train` of train.jsonl.gz."""
    ending = max((e for e in ENDINGS if place.name.lower().endswith(e)), key=len, default="")
    return place.name.removesuffix(place.name[len(place.name) - len(ending) :])


def read_hub(data: DataConfig, split: str, formats: Counter[str]) -> Iterator[Block]:
    """Rows of one split of a Hub data set at a pinned commit."""
    import datasets

    formats["Hub data set"] += 1
    rows = datasets.load_dataset(data.hub_id, data.hub_subset or None, split=split, revision=data.hub_revision)
    for batch in rows.iter(1024):
        yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def hub_splits(data: DataConfig) -> list[str]:
    import datasets

    return datasets.get_dataset_split_names(data.hub_id, data.hub_subset or None, revision=data.hub_revision)
