"""A retrain that continues an adapter, and mixes earlier rows into new ones."""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.schemas.objects import State
from safetensors.torch import load_file, save_file

from flows.__main__ import main
from flows.checks import check
from flows.config_file import load
from flows.retrain import retrain
from flows.run.plan import plan
from tasks.config import TrainingConfig
from tasks.download.facts import RowsFacts
from tasks.errors import UserError
from tasks.promotion import champion
from tasks.publishing.facts import VersionFacts
from tasks.store.manifest import read_manifest
from tasks.store.model import BaseModelRef
from tasks.training.start import adapter_folder, check_start
from tests.tiny import make_model, make_rows, read_rows_file, write_jsonl

pytestmark = pytest.mark.usefixtures("prefect_server", "children_here")
LORA = {"learning_rate": 1e-2, "lora_r": 4, "batch_size": 8, "max_steps": 3}


class Nights:
    """Retrains of one adapter on rows that change from night to night."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.rows, self.file, self.registry = folder / "rows.jsonl", folder / "c.yaml", folder / "registry" / "night"
        self.file.write_text(
            f"""
data: {{path: {self.rows}, replay_share: 0.25}}
model: {{base: {model}}}
training: {json.dumps(LORA | {"start_from": "champion"})}
evaluation: {{max_new_tokens: 2}}
publishing: {{name: night, registry: {folder / "registry"}}}
"""
        )

    def groups(self, first: int, last: int, **training: Any) -> dict[str, Any]:
        write_jsonl(self.rows, make_rows(last)[first:])
        return load(self.file, {"training": training})

    def run(self, first: int, last: int, **training: Any) -> State[Any]:
        return retrain(**self.groups(first, last, **training), return_state=True)

    def made(self, state: State[Any], stage: str) -> Path:
        return Path(state.result()["stages"][stage]["path"])

    def use(self, version: str) -> None:
        with champion.held(self.registry, "a person") as history:
            if history.champion != version:
                history.move(version, "a test")


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_FLOW_STORE", str(folder / "store"))
        nights = Nights(folder, tiny_model)
        first = nights.run(0, 40)
        assert first.is_completed(), first.message
        nights.use("v0001")
        yield nights


def start_of(nights: Nights, version: str) -> tuple[str, str]:
    """The key of a version's training, and what it began from."""
    facts = read_manifest(nights.registry / version).facts(VersionFacts)
    return facts.training, facts.begun_from


def weights(nights: Nights, version: str) -> str:
    return read_manifest(nights.registry / version).files["adapter_model.safetensors"].sha256


def test_nights(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    assert start_of(nights, "v0001")[1] == ""  # no version was in use
    same = nights.run(0, 40)
    assert same.message == "Nothing changed: rows, base, configuration and code are those of night v0001"

    second = nights.run(100, 160)
    assert str(second.message).startswith("Published night v0002")
    assert start_of(nights, "v0002")[1] == weights(nights, "v0001")
    rows = read_rows_file(nights.made(second, "download") / "rows.parquet")
    old = [row for row in rows if row["_id"] < "r100"]
    facts = read_manifest(nights.made(second, "download")).facts(RowsFacts)
    counts = facts.sources["earlier rows"]
    assert counts["read"] == 40 and len(rows) == 60 + len(old) == facts.rows
    assert counts["train"] == round((facts.train - counts["train"]) / 3) > 9
    assert counts["test"] == round((facts.test - counts["test"]) / 3) > 1
    first = {row["_id"]: row for row in read_rows_file(_rows_of(nights, "v0001"))}
    assert all(row == first[row["_id"]] for row in old)  # each is in the split that it was in
    assert main(["preview", str(nights.file), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"Mixed in: {counts['train']} earlier rows to train on, and {counts['test']} held out." in shown
    assert shown.count("── training row r0") == 1 == shown.count("── held-out row r0")

    # the adapter's content decides, not how it is named
    by_path = nights.run(100, 160, start_from=str(nights.registry / "v0001"))
    assert by_path.result()["stages"]["train"]["outcome"] == "reused"
    nights.use("v0002")
    assert str(nights.run(100, 160).message).startswith("Nothing changed: ")
    assert all(stage.reused for stage in plan(nights.groups(100, 160)))
    changed = plan(nights.groups(100, 160, learning_rate=1e-3))
    assert next(stage.stage for stage in changed if not stage.reused) == "train"

    third = nights.run(200, 260)
    ids = {row["_id"] for row in read_rows_file(nights.made(third, "download") / "rows.parquet")}
    assert {id[:2] for id in ids} == {"r0", "r1", "r2"}  # nothing earlier is forgotten at once
    assert start_of(nights, "v0003")[1] == weights(nights, "v0002")
    from_nothing = nights.run(200, 260, start_from="")
    losses = [run.result()["training"]["loss_first"] for run in (third, from_nothing)]
    assert losses[0] < losses[1] - 0.1

    nights.use("v0001")
    shutil.rmtree(_rows_of(nights, "v0001").parent)
    with pytest.raises(UserError, match="the rows that v0001 was made from are not in this store any more"):
        list(plan(nights.groups(300, 320)))


def _rows_of(nights: Nights, version: str) -> Path:
    from flows.run.changes import rows_of
    from tasks.store.origins import by_digest, results

    manifests = results()
    found = rows_of(read_manifest(nights.registry / version), manifests, by_digest(manifests))
    assert found
    return found.path / "rows.parquet"


BAD: list[tuple[str, dict[str, Any], Callable[[Path], object], str]] = [
    ("other rank", {"lora_r": 8}, lambda _: 0, "was trained with lora_r 4, and training.lora_r is 8"),
    ("other scale", {"rslora": True}, lambda _: 0, "was trained with rslora False, and training.rslora is True"),
    (
        "other layers",
        {"target_modules": ["q_proj"]},
        lambda _: 0,
        "adapts down_proj, .*training.target_modules is q_proj",
    ),
    ("no folder", {}, shutil.rmtree, "the folder .* does not exist"),
    ("no adapter", {}, lambda f: (f / "adapter_config.json").unlink(), "is no adapter: .* has no adapter_config.json"),
    (
        "no JSON",
        {},
        lambda f: (f / "adapter_config.json").write_text("{"),
        "adapter_config.json cannot be read: Expect",
    ),
    ("another method", {}, lambda f: changed(f, peft_type="IA3"), "has peft_type 'IA3', which cannot be continued"),
    ("a changed base", {}, lambda f: changed(f, init_lora_weights="pissa"), "has init_lora_weights 'pissa'"),
    ("other scales", {}, lambda f: changed(f, alpha_pattern={"q_proj": 1}), "has alpha_pattern"),
    ("other base", {}, lambda f: changed(f, base_model_name_or_path="a/b"), "was trained on another base: a/b, not"),
    ("no weights", {}, lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors.$"),
    (
        "pickled",
        {},
        lambda f: pickled(f, "adapter_model.bin"),
        "adapter_model.bin is pickled, and such files are never",
    ),
    (
        "pickled all the same",
        {},
        lambda f: pickled(f, "adapter_model.safetensors"),
        "is no safetensors file, or damaged",
    ),
    ("of another type", {}, lambda f: retyped(f, torch.int8), "is of type I8, and weights are F32, F16 or BF16"),
]


def changed(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def pickled(folder: Path, name: str) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(print))


def retyped(folder: Path, kind: torch.dtype, value: float = 0) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.full_like(weight, value, dtype=kind) for name, weight in load_file(file).items()}, file)


def test_an_adapter_that_cannot_be_continued_ends_the_run_before_it_begins(
    nights: Nights, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(nights.registry / "v0001", folder)
        for file in ("manifest.json", "README.md", "SHA256SUMS", "probes.json"):  # as if trained elsewhere
            (folder / file).unlink()
        return folder

    def refused(start: Path | str, **training: Any) -> str:
        with pytest.raises(UserError) as error:
            check(nights.groups(0, 40, start_from=str(start), **training))
        assert str(error.value).startswith("training.start_from: ")
        return str(error.value)

    check(nights.groups(0, 40, start_from=str(copy("good"))))
    for name, training, damage, said in BAD:
        damage(folder := copy(name))
        assert re.search(said, refused(folder, **training)), name
    assert "is not in the Hub's cache" in refused_by_the_hub("nobody/no-adapter")

    # shape and values of what is for all layers are seen when the base is there
    from tasks.model import base

    config = TrainingConfig(**LORA, quantization="none", target_modules=["q_proj", "v_proj"])
    with pytest.raises(UserError, match=r"has .*down_proj.* as \[4, 128\], and this run trains it not at all"):
        base.load(tiny_model, config, torch.device("cpu"), start=str(copy("others")))
    retyped(folder := copy("not finite"), torch.float32, float("nan"))
    with pytest.raises(UserError, match="is not finite"):
        base.load(tiny_model, TrainingConfig(**LORA, quantization="none"), torch.device("cpu"), start=str(folder))

    # a version knows the content of its base
    other = make_model(tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    with pytest.raises(UserError, match="another base: its weights, configuration or tokenizer have another content"):
        check_start(nights.registry / "v0001", "v0001", TrainingConfig(**LORA), BaseModelRef.of(other, "x", ""))
    tampered = tmp_path / "v0001"
    shutil.copytree(nights.registry / "v0001", tampered)
    retyped(tampered, torch.float32)
    assert "is damaged" in refused(tampered)
    with (nights.registry / "v0001" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(UserError, match="v0001 of night is missing or damaged"):
        nights.use("v0001")
        check(nights.groups(0, 40))


def refused_by_the_hub(name: str) -> str:
    with pytest.raises(UserError) as error:
        adapter_folder(name)
    return str(error.value)
