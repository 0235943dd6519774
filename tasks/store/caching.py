"""Prefect's cache on top of the store: a finished stage shows as Cached, a damaged one is computed again.

Prefect keeps a small JSON record for each key: the reference that a task returned. Reading it verifies the files behind
it; Prefect takes a serializer that raises for a cache miss.

A record names the serializer that is to read it, and Prefect obeys: a pickle, a module to import, a function to call.
So does the state of a run that a server sends. In a process that imports this module Prefect reads with the serializer
below and with no other, whatever a record or a server says.
"""

import inspect
import json
from collections.abc import Callable
from typing import Any

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.serializers import Serializer, UnknownSerializer
from prefect.settings import get_current_settings
from prefect.utilities.dispatch import get_registry_for_type
from pydantic import BaseModel, Field, TypeAdapter

from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import Source

REFERENCE: TypeAdapter[ArtifactRef | Source] = TypeAdapter(ArtifactRef | Source)
LARGEST_RECORD = 1 << 20
"""Bytes. Prefect reads a whole record into memory; ours take less than a thousandth of this."""


class VerifiedJSONSerializer(Serializer):
    """JSON of a reference. Reading verifies the files that it refers to."""

    type: str = Field(default="verified-json", frozen=True)

    def dumps(self, obj: Any) -> bytes:
        """Prefect also stores exceptions; they become a text that nobody reads."""
        return obj.model_dump_json().encode() if isinstance(obj, BaseModel) else json.dumps(str(obj)).encode()

    def loads(self, blob: bytes) -> ArtifactRef | Source:
        """Raises ValueError for anything but a reference, DamagedArtifact if its files are missing or have changed."""
        value = REFERENCE.validate_json(blob)
        value.verify()
        return value


_serializers: dict[str, Any] = get_registry_for_type(Serializer) or {}
for _name, _serializer in _serializers.items():
    if _serializer is not VerifiedJSONSerializer:
        _serializer.loads = UnknownSerializer.loads  # of an instance made before, or by a record that names none
        _serializers[_name] = UnknownSerializer  # which takes any options and raises when it is used


def cached(identity: Callable[..., Identity]) -> dict[str, Any]:
    """Options for `@task` that cache its result under the key of `identity`, which gets the arguments that it names."""
    read = inspect.signature(identity).parameters

    def key(_: Any, arguments: dict[str, Any]) -> str:
        key = identity(**{name: value for name, value in arguments.items() if name in read}).key
        record = get_current_settings().results.local_storage_path.expanduser() / key
        if record.is_file() and record.stat().st_size > LARGEST_RECORD:
            record.unlink()
        return key

    return {
        "cache_policy": CacheKeyFnPolicy(cache_key_fn=key),
        "persist_result": True,
        "result_serializer": VerifiedJSONSerializer(),
    }
