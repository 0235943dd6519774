"""Credentials reach no parameter, error, log or page; a configuration that holds them is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest

from flows.config_file import load
from flows.run.logs import Readable
from tasks.config import DataConfig
from tasks.download.places import trouble
from tasks.errors import UserError
from tasks.process.failures import is_transient
from tasks.store.remote import Remote
from tasks.text import masked, public_url, visible

SECRET = "s3cr3t"
URLS = [
    f"https://me:{SECRET}@host.invalid/rows.jsonl",
    f"https://{SECRET}@host.invalid/rows.jsonl",
    f"https://me:a@b{SECRET}@host.invalid/rows.jsonl",
    f"ftp://me:{SECRET}@host.invalid/rows.jsonl",
    f"s3://AKIA:{SECRET}/with+slash@bucket/rows.jsonl",
    f"simplecache::https://me:{SECRET}@host.invalid/rows.jsonl",
    *(
        f"https://host.invalid/rows.jsonl?download=true&{name}={SECRET}"
        for name in (
            *("X-Amz-Signature", "x-amz-security-token", "X-Goog-Signature", "AWSAccessKeyId", "Signature", "sig"),
            *(
                "token",
                "access_token",
                "private_token",
                "api_key",
                "apikey",
                "key",
                "password",
                "client_secret",
                "auth",
            ),
        )
    ),
]
HARMLESS = [
    "https://host.invalid/rows.jsonl?download=true",
    "https://host.invalid/export?format=csv&id=12&page=2&author=me&tokenizer=gpt2&keyword=x&sort=key",
    "https://host.invalid:8443/a/@b/rows.jsonl",
    "https://host.invalid/a:b@c/rows.jsonl",
    "abfs://container@account.dfs.core.windows.net/rows.jsonl",
    "sftp://me@host.invalid/rows.jsonl",
    "s3://bucket/part-?[0-9]*.jsonl",
    "data/me@home/rows.jsonl",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("field", ["data.path", "data.test_path", "model.base", "publishing.registry"])
def test_a_configuration_with_credentials_is_refused(tmp_path: Path, url: str, field: str) -> None:
    group, _, name = field.partition(".")
    config = tmp_path / "config.yaml"
    config.write_text("data: {path: rows.jsonl}\n")
    with pytest.raises(UserError, match=f"{field}: .*environment of the process that runs the flow") as refused:
        load(config, {group: {name: url}})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", HARMLESS)
def test_what_is_no_secret_is_taken_as_it_is(url: str) -> None:
    assert DataConfig(path=url).path == url
    assert masked(url) == url


@pytest.mark.parametrize("name", ["hub_id", "hub_revision"])
def test_a_name_is_no_url(name: str) -> None:
    with pytest.raises(ValueError, match="it is a URL, and this field takes a name or a folder"):
        DataConfig(**{"path": "rows.jsonl", name: "https://huggingface.co/datasets/a/b"})


def test_the_api_refuses_it_before_it_keeps_the_parameters() -> None:
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import validate

    from flows.retrain import retrain

    schema: dict[str, Any] = parameter_schema(retrain).model_dump()
    assert validate({"data": {"path": HARMLESS[0]}}, schema, raise_on_error=False) == []
    for parameters in ({"data": {"path": URLS[0]}}, {"data": {"path": "x"}, "model": {"base": URLS[6]}}):
        assert validate(parameters, schema, raise_on_error=False)


@pytest.mark.parametrize("url", URLS)
def test_a_secret_is_masked_wherever_it_is_quoted(url: str) -> None:
    quoted = f"GET {url} failed, url=URL('{url}') (\"{url}\")"
    assert SECRET not in visible(quoted)
    assert SECRET not in str(UserError(quoted))
    assert SECRET not in public_url(url)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", (quoted,), (OSError, OSError(quoted), None))
    Readable().filter(record)
    assert SECRET not in logging.Formatter().format(record)


def test_tokens_are_masked_beside_urls_too() -> None:
    assert visible("Authorization: Bearer abcdefgh12345") == "Authorization: ***"
    assert visible("token hf_abcdefghijklmnopqrstuvwxyz is wrong") == "token *** is wrong"


@pytest.mark.parametrize("kind", [OSError, RuntimeError, ConnectionError, FileNotFoundError, PermissionError])
def test_what_a_file_system_raises_quotes_no_secret(kind: type[Exception]) -> None:
    """A redirect to signed storage is quoted by the client, whatever the configuration says."""
    with pytest.raises(Exception) as raised, trouble("https://host.invalid/rows.jsonl", "data.path"):
        raise kind(f"cannot read {URLS[6]}")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError])
def test_the_remote_store_is_named_without_credentials(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote("memory://results")
    with pytest.raises(Exception) as raised, remote._reaching():
        raise error(f"cannot reach {URLS[0]}")
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("QLORA_FLOW_REMOTE", f"nothing://me:{SECRET}@results")
    with pytest.raises(UserError, match=r"QLORA_FLOW_REMOTE=nothing://\*\*\*@results cannot be used") as refused:
        Remote.configured()
    assert SECRET not in str(refused.value)


def test_a_refusing_hub_quotes_no_signature() -> None:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    from tasks.download.hub import refusals

    def refused(status: int) -> HfHubHTTPError:
        answer = httpx.Response(status, request=httpx.Request("GET", URLS[6]))
        return HfHubHTTPError(f"Server error for url '{URLS[6]}'", response=answer)

    with pytest.raises(HfHubHTTPError) as raised, refusals("model.base", "a/b"):
        raise refused(503)
    assert SECRET not in str(raised.value)
    assert is_transient(raised.value)
