"""What `clean` removes, and what stays however old it is."""

import os
import shutil
from pathlib import Path

import pytest

from flows.clean import LONGEST_LOG, clean
from tasks.promotion.champion import held
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import add_version
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.facts import Facts
from tasks.store.identity import Identity
from tests.tiny import Rows, noted

TOMORROW = -1
"""As `keep_days`: everything is older."""


def result(stage: str, number: int, **inputs: str) -> ArtifactRef:
    def write(folder: Path) -> Facts:
        (folder / "file").write_text(f"{stage} {number}")
        return Rows()

    return produce(Identity(stage=stage, config={"number": number}, inputs=inputs), write)


def version(store: Path, number: int, adapter: ArtifactRef) -> str:
    def write(folder: Path, name: str) -> VersionFacts:
        (folder / "adapter_model.safetensors").write_text(name)
        (store / "reports").mkdir(exist_ok=True)
        (store / "reports" / f"a-{name}-0123456789ab.html").write_text("report")
        return noted(VersionFacts, name="a", version=name)

    identity = Identity(stage="publish", config={"number": number}, inputs={"adapter": adapter.digest, "model": "m"})
    return add_version(identity, store / "registry" / "a", write).path.name


@pytest.fixture
def years(store: Path) -> list[ArtifactRef]:
    """Six versions: v0002 was in use, v0005 is, v0003 waits for approval, and the others were refused."""
    adapters = [result("train", number) for number in range(6)]
    names = [version(store, number, adapter) for number, adapter in enumerate(adapters)]
    with held(store / "registry" / "a", "test") as history:
        for name in names:
            history.add("decision", version=name, better=name in ("v0002", "v0003", "v0005"))
            if name in ("v0002", "v0005"):
                history.move(name, "it is better")
    return adapters


def there(store: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in store.glob(pattern))


def test_refused_versions_go_with_what_they_alone_were_made_from(store: Path, years: list[ArtifactRef]) -> None:
    keys = [adapter.path.name for adapter in years]
    (store / "results").mkdir()
    for n in (0, 1):
        record = '{"result": "{\\"name\\":\\"artifacts/' + keys[n] + '\\"}"}'
        (store / "results" / f"record-{n}").write_text(record)
    wanted = [f"artifacts/{keys[n]}" for n in (0, 3)]
    wanted += [f"{place}{name}{end}" for name in ("v0001", "v0004") for place, end in PLACES]
    assert clean(2, 30) == ([], 0)  # they are young
    removed, freed = clean(2, TOMORROW, dry_run=True)
    assert removed == sorted(wanted)
    assert len(there(store, "registry/a/v*")) == 6
    assert clean(2, TOMORROW) == (removed, freed) and freed > 0
    assert there(store, "registry/a/v*") == ["v0002", "v0003", "v0005", "v0006"]
    assert there(store, "artifacts/*") == sorted(keys[n] for n in (1, 2, 4, 5))
    assert there(store, "locks/train-*") == sorted(f"{keys[n]}.lock" for n in (1, 2, 4, 5))
    assert there(store, "results/*") == ["record-1"]
    assert len(there(store, "reports/*")) == 4
    assert version(store, 7, result("train", 7)) == "v0007"


PLACES = (("registry/a/", ""), ("reports/a-", "-0123456789ab.html"))


def test_answers_go_with_their_adapter_and_their_base(store: Path, years: list[ArtifactRef]) -> None:
    stay = [result("answers", 0, model="m", adapter=""), result("answers", 1, model="m", adapter=years[4].digest)]
    result("answers", 2, model="another", adapter="")
    result("answers", 3, model="m", adapter=years[0].digest)
    last = result("answers", 4, model="m", adapter="one that was not published")
    os.utime(last.path)
    clean(1, TOMORROW)
    assert set(there(store, "artifacts/answers-*")) >= {ref.path.name for ref in stay}
    assert len(there(store, "artifacts/answers-*")) == 3  # and the latest


def test_abandoned_checkpoints_go_and_logs_are_shortened(store: Path) -> None:
    for name in ("old", "young"):
        (store / "work" / name / "checkpoint-1").mkdir(parents=True)
        (store / "work" / name / "checkpoint-1" / "state").write_text("state")
    for path in (store / "work" / "old", *(store / "work" / "old").rglob("*")):
        os.utime(path, (0, 0))
    lines = [f"line {number:020}\n" for number in range(LONGEST_LOG // 20)]
    (store / "worker.log").write_text("".join(lines))
    with (store / "worker.log").open("a") as writer:
        assert clean(3)[0] == ["work/old"]
        writer.write("and on\n")
    assert there(store, "work/*") == ["young"]
    text = (store / "worker.log").read_text()
    assert text.startswith("line ") and text.endswith(f"{lines[-1]}and on\n")
    assert len(text) <= LONGEST_LOG // 10 + 10


def test_the_remote_store_forgets_what_nobody_has_used(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = tmp_path / "remote"
    monkeypatch.setenv("QLORA_FLOW_REMOTE", f"file://{remote}")
    refs = [result("train", number) for number in range(3)]
    keys = [ref.path.name for ref in refs]
    place = remote / "checkpoints" / keys[0]
    for folder in ("manifests", "blobs"):
        (place / folder).mkdir(parents=True)
    for n in (0, 1):  # made on another machine, long ago
        shutil.rmtree(refs[n].path)
        os.utime(remote / "manifests" / f"{keys[n]}.json", (0, 0))
    for blob in (remote / "blobs").iterdir():
        os.utime(blob, (0, 0))
    clean(1)
    assert there(remote, "manifests/*") == [f"{keys[2]}.json"]
    assert len(there(remote, "blobs/*")) == 1 and not there(remote, "checkpoints/*")
    os.utime(remote / "manifests" / f"{keys[2]}.json", (0, 0))
    clean(1)
    assert there(remote, "manifests/*") == [f"{keys[2]}.json"]  # it is kept here
    shutil.rmtree(refs[2].path)
    assert result("train", 2) == refs[2]  # fetched: it is of use
    shutil.rmtree(refs[2].path)
    clean(1)
    assert there(remote, "manifests/*") == [f"{keys[2]}.json"]
