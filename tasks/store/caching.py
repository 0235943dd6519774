"""Prefect's cache on top of the store: a finished stage shows as Cached, a damaged one is computed again.

Prefect keeps one small JSON record a key, holding the reference a task returned. Reading the record verifies the files
it points to; Prefect takes a serializer that raises for a cache miss.
"""

import inspect
from collections.abc import Callable
from typing import Any

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.serializers import JSONSerializer
from pydantic import Field

from tasks.store.identity import Identity


class VerifiedJSONSerializer(JSONSerializer):
    """JSON that refuses a reference whose files are missing or changed."""

    type: str = Field(default="verified-json", frozen=True)

    def loads(self, blob: bytes) -> Any:
        value = super().loads(blob)
        value.verify()  # a reference class that has moved decodes to a plain dict: no such method, so a miss
        return value


def cached(identity: Callable[..., Identity]) -> dict[str, Any]:
    """Options for `@task`: cache under the key of `identity`, given those of the task's arguments that it takes."""

    read = inspect.signature(identity).parameters

    def key(_: Any, arguments: dict[str, Any]) -> str:
        return identity(**{name: value for name, value in arguments.items() if name in read}).key

    return {
        "cache_policy": CacheKeyFnPolicy(cache_key_fn=key),
        "persist_result": True,
        "result_serializer": VerifiedJSONSerializer(),
    }
