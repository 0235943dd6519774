"""A base is what is loaded: safetensors beside its configuration, every one in its digest, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.errors import UserError
from tasks.model.quantization import load_options
from tasks.store.manifest import DamagedArtifact
from tasks.store.model import BaseModelRef, weight_files


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path, store: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "base")


@pytest.fixture
def sharded(base: Path) -> Path:
    """The same in two parts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="100KB")
    assert len(list(base.glob("model-*.safetensors"))) > 1
    return base


def of(folder: Path) -> BaseModelRef:
    return BaseModelRef.of(folder, "owner/base", "")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    torch.save({}, folder / "pytorch_model.bin")


def configured(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (pickled, "has no weights as safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights as safetensors"),
        (configured(transformers_weights="adapter_model.bin"), "transformers_weights"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is no JSON object"),
    ],
)
def test_what_would_be_loaded_otherwise_is_refused(base: Path, edit: Callable[[Path], object], said: str) -> None:
    assert of(base).verify() is None
    edit(base)
    with pytest.raises(UserError, match=said):
        of(base)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../other/model.safetensors", "beside it"),
        ("/other/model.safetensors", "beside it"),
        ("part/model.safetensors", "beside it"),
        ("pytorch_model.bin", "beside it"),
        ("..", "beside it"),
        ("missing.safetensors", "is not there"),
        (1, "takes metadata and weight_map"),
    ],
)
def test_an_index_names_files_beside_it(sharded: Path, name: object, said: str) -> None:
    for there in ("../other", "part"):
        shutil.copytree(sharded, sharded / there)
    (sharded / "pytorch_model.bin").write_bytes(b"")
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["lm_head.weight"] = name
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=said):
        of(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', "[" * 9000])
def test_an_index_that_is_none_is_one_sentence(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="takes metadata and weight_map"):
        of(sharded)


def test_every_part_is_in_the_digest_and_a_decoy_is_not(sharded: Path) -> None:
    before = of(sharded)
    (sharded / "x.safetensors").write_bytes(b"decoy")
    assert of(sharded) == before
    for name in weight_files(sharded):
        raw = (sharded / name).read_bytes()
        (sharded / name).write_bytes(raw + b" ")
        with pytest.raises(DamagedArtifact, match="has changed"):
            before.verify()
        (sharded / name).write_bytes(raw)
    before.verify()
    next(sharded.glob("model-*.safetensors")).unlink()
    with pytest.raises(DamagedArtifact, match="is not there"):
        before.verify()


def test_the_files_are_those_that_transformers_chooses(sharded: Path, tiny_model: Path) -> None:
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    for folder in (sharded, tiny_model):
        files, _ = _get_resolved_checkpoint_files(str(folder), None, None, True, None, False)
        names = {Path(file).name for file in files or ()}
        assert names == {name for name in weight_files(folder) if name.endswith(".safetensors")}


def test_links_into_a_download_cache_are_followed(base: Path) -> None:
    before = of(base)
    (base / "model.safetensors").rename(base.parent / "blob")
    (base / "model.safetensors").symlink_to("../blob")
    assert of(base) == before
    (base.parent / "blob").write_bytes(b"other")
    with pytest.raises(DamagedArtifact):
        before.verify()


def test_a_pickle_is_not_loaded_even_if_it_is_all_there_is(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    pickled(base)
    options = load_options(quantization="none", quant_type="nf4", compute_dtype="float32", double_quant=False)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(base, **options)
