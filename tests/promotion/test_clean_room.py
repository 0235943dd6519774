"""A published folder is loaded as a server would, and whatever is wrong with it is a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.promotion.clean_room import check, try_out
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import add_version
from tasks.publishing.schema import PROBES
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tests.promotion.registry import adapter_with_answers
from tests.tiny import noted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("made")
    adapter_with_answers(folder, tiny_model)
    return folder


def job(made: Path, base: Path) -> dict[str, Any]:
    probes = json.loads((made / PROBES).read_text())
    return {"version": str(made), "base": str(base), "probes": probes}


def test_a_whole_version_passes(made: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(job(made, tiny_model))
    assert "8 stored answers have the loss they had" in capsys.readouterr().out


def other_weights(folder: Path, change: Callable[[str, Any], tuple[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file(dict(change(name, value.clone()) for name, value in load_file(file).items()), file)


def sibling(folder: Path) -> None:
    other_weights(folder, lambda name, value: (name, -value if "lora_B" in name else value))


def another_name(folder: Path) -> None:
    other_weights(folder, lambda name, value: (name.replace("layers.1.", "layers.7."), value))


def another_shape(folder: Path) -> None:
    other_weights(folder, lambda name, value: (name, value[:2] if "lora_A" in name else value))


def not_finite(folder: Path) -> None:
    other_weights(folder, lambda name, value: (name, value * float("nan")))


def another_scale(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 8}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (sibling, "where evaluation measured"),
        (another_name, "does not load|has base_model"),
        (another_shape, "does not load|has base_model"),
        (not_finite, "has loss nan on stored answer 1"),
        (another_scale, "where evaluation measured .* The adapter acts, but less than in evaluation"),
    ],
)
def test_a_version_that_is_not_what_was_measured_is_refused(
    damage: Callable[[Path], None], sentence: str, made: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "v0001")
    damage(tmp_path / "v0001")
    with pytest.raises(UserError, match=sentence):
        check(job(tmp_path / "v0001", tiny_model))


def test_stored_answers_that_are_no_longer_as_likely_are_refused(made: Path, tiny_model: Path) -> None:
    work = job(made, tiny_model)
    row = work["probes"]["rows"][0]
    row["input_ids"] = row["input_ids"][:10] + [7] * 8
    row["labels"] = [-100] * 10 + [7] * 8
    with pytest.raises(UserError, match="where evaluation measured"):
        check(work)
    row["input_ids"][0] = 4000
    with pytest.raises(UserError, match="token ids that its base, with 393 of them"):
        check(work)


def test_another_base_is_refused_and_a_process_of_its_own_accepts_the_right_one(
    made: Path, tiny_model: Path, store: Path
) -> None:
    base = BaseModelRef.of(tiny_model, "owner/base", "c" * 40)
    identity = Identity(
        stage="publish",
        inputs={"adapter": "a", "model": base.digest},
        config={"source": base.source, "revision": base.revision},
    )

    def write(aside: Path, version: str) -> VersionFacts:
        shutil.copytree(made, aside, dirs_exist_ok=True)
        return noted(VersionFacts, version=version)

    version = add_version(identity, store / "registry" / "adapter", write).path
    for change, sentence in (
        ({"source": "owner/other"}, "has another base: owner/base, not owner/other"),
        ({"revision": "d" * 40}, "another revision of the base"),
        ({"digest": "e" * 64}, "another content"),
    ):
        with pytest.raises(UserError, match=sentence):
            try_out(version, base.model_copy(update=change), print)
    said: list[str] = []
    try_out(version, base, said.append)
    assert "v0001 loads on its base with plain PEFT; 8 stored answers" in said[-1]
