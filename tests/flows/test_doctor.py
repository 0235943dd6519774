"""`qlora-flow doctor` says what a run would lack on this machine, and ends with 1 when one would fail."""

import re
import shutil
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.commands import doctor


def test_a_machine_that_can_train_is_called_so(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert {line.split()[1] for line in shown.splitlines() if "→" not in line} == set(doctor.CHECKS)
    assert re.search(r"^ok +GPU +4-bit forward and backward: the gradient is within \d\.\d%", shown, re.MULTILINE)
    assert not store.exists()


def found(check: str) -> list[tuple[str, str, str]]:
    return list(doctor.CHECKS[check]())


def test_a_store_that_cannot_be_written_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_FLOW_STORE", "/proc/store")
    ((status, text, mend),) = found("store")
    assert (status, text.partition(":")[0]) == ("fail", "/proc/store cannot be used")
    assert "QLORA_FLOW_STORE" in mend


def test_a_remote_store_that_does_not_answer_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_FLOW_REMOTE", "nosuch://bucket")
    assert [status for status, *_ in found("store")] == ["ok", "fail"]


def test_a_full_disk_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    assert {status for status, *_ in found("disk")} == {"fail"}


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token := "hf_" + "abcdefgh" * 4)
    ((_, text, _),) = found("Hub")
    assert "hf_…gh" in text and token not in text


def test_another_version_than_the_tested_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("pyyaml==0.1\nnot_installed==1\n")
    monkeypatch.setattr(doctor, "PINS", pins)
    (met, other) = found("packages")
    assert (met[0], other[0]) == ("ok", "warning")
    assert re.fullmatch(r"pyyaml [\d.]+, tested with 0\.1", other[1])


def test_a_server_that_does_not_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        ((status, text, mend),) = found("Prefect")
    assert status == "fail" and "http://127.0.0.1:9/api does not answer" in text and "qlora-flow serve" in mend


@pytest.mark.parametrize(("skew", "status"), [(0, "ok"), (3600, "fail"), (-3600, "fail")])
def test_the_clock_is_compared_with_a_servers(skew: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DATES", {"https://host": formatdate(time.time() + skew)})
    assert [line[0] for line in found("clock")] == [status]


def test_a_check_that_fails_itself_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "CHECKS", {"GPU": broken})
    assert main(["doctor"]) == 1
    assert re.fullmatch(r"fail +GPU +RuntimeError: no such thing\n", capsys.readouterr().out)
