"""The base model as stages see it: a folder that is read in place, and the digests that go into keys."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.errors import UserError
from tasks.store.artifact import ArtifactRef
from tasks.store.checked import content_digest
from tasks.store.identity import digest_of
from tasks.store.manifest import MANIFEST, DamagedArtifact

LENGTH_FIELDS = ("n_positions", "max_position_embeddings", "seq_length")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    "config.json",  # it decides the tokenizer's class, and says how many tokens the model knows
)
WEIGHTS = "model.safetensors"


class BaseModelRef(BaseModel):
    """A base model on disk.

    Args:
        folder: where it lies.
        digest: sha256 over names and contents of its weights, configuration and tokenizer.
        tokenizer_digest: the same over the tokenizer's files alone.
        source: what an adapter names as its base: a Hub id or a folder.
        revision: commit on the Hub, empty for a folder.
        max_length: longest sequence its configuration allows, in tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    digest: str
    tokenizer_digest: str
    source: str
    revision: str
    max_length: int

    @classmethod
    def of(cls, folder: Path, source: str, revision: str) -> "BaseModelRef":
        """The reference of a base model's folder.

        Raises:
            UserError: it has no readable configuration, safetensors or fast tokenizer, or needs code of its own.
        """
        for what, name in (("config.json", "config.json"), ("fast tokenizer (tokenizer.json)", "tokenizer.json")):
            if not (folder / name).is_file():
                raise UserError(f"model.base: {folder} has no {what}.")
        if (folder / "adapter_config.json").exists():
            raise UserError(f"model.base: {folder} holds an adapter (adapter_config.json); a base has none.")
        try:
            config = json.loads((folder / "config.json").read_text())
            limit = length_limit(config)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"model.base: {folder / 'config.json'} is no JSON object: {error}.") from error
        if config.get("transformers_weights"):
            raise UserError(
                f"model.base: {folder / 'config.json'} names a file of weights (transformers_weights); this flow reads "
                "model.safetensors, or model.safetensors.index.json and its parts."
            )
        if kernel := _kernel_of_a_repository(config):
            raise UserError(
                f"model.base: {folder / 'config.json'} asks for code of the repository {kernel} (its attention or "
                "experts), and code that a model names is never run; take that line out."
            )
        refuse_code(folder)
        digests = _digests(folder)
        return cls(
            folder=str(folder),
            digest=digest_of(digests),
            tokenizer_digest=digest_of({name: digests[name] for name in TOKENIZER_FILES if name in digests}),
            source=source,
            revision=revision,
            max_length=limit,
        )

    def verify(self) -> None:
        """Raises DamagedArtifact if a file is missing or has changed."""
        try:
            found = digest_of(_digests(Path(self.folder)))
        except (FileNotFoundError, NotADirectoryError, UserError) as error:
            raise DamagedArtifact(f"base model: {error}") from error
        if found != self.digest:
            raise DamagedArtifact(f"the base model in {self.folder} has changed")


class Source(BaseModel):
    """Rows and base model of a run: the result of download."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: ArtifactRef
    model: BaseModelRef

    def verify(self) -> None:
        """Raises DamagedArtifact if a file of either is missing or has changed."""
        self.rows.verify()
        self.model.verify()


def length_limit(config: dict[str, Any]) -> int:
    """The model's longest sequence in tokens: the first of LENGTH_FIELDS that its configuration has, else 1024."""
    config = config.get("text_config", config)
    return next((int(config[name]) for name in LENGTH_FIELDS if config.get(name)), 1024)


def _kernel_of_a_repository(config: Any) -> str:
    """The first `…_implementation` that names a repository, from which transformers would fetch code."""
    if not isinstance(config, dict):
        return ""
    for name, value in config.items():
        if "implementation" in name:
            if found := next((v for v in [value, *getattr(value, "values", list)()] if "/" in str(v)), ""):
                return str(found)
        elif found := _kernel_of_a_repository(value):
            return found
    return ""


def refuse_code(folder: Path) -> None:
    """Raises UserError for a model that transformers can load only by running Python code of the model's author."""
    files = [folder / name for name in ("config.json", "tokenizer_config.json")]
    if not any(b'"auto_map"' in file.read_bytes() for file in files if file.exists()):
        return  # what follows imports torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        own = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
        if own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError("trust_remote_code")
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.base: {folder} needs Python code that comes with the model (auto_map in config.json or "
                "tokenizer_config.json), and such code is never run; take a base that transformers knows."
            ) from None


class _Index(BaseModel):
    """The fields of model.safetensors.index.json that transformers reads."""

    metadata: dict[str, Any]
    weight_map: dict[str, str]


def weight_files(folder: Path) -> list[str]:
    """The files of a model's weights: one, or an index and its parts. Raises UserError if they are no safetensors."""
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not index.is_file():
        raise UserError(
            f"model.base: {folder} has no weights as safetensors ({WEIGHTS}, or {index.name} and its parts)."
        )
    try:
        parts = sorted(set(_Index.model_validate_json(index.read_bytes()).weight_map.values()))
    except ValueError as error:
        raise UserError(f"model.base: {index} is no index of safetensors: it takes metadata and weight_map.") from error
    for name in parts:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UserError(f"model.base: {index} names {name!r}; a part is a .safetensors file beside it.")
        if not (folder / name).is_file():
            raise UserError(f"model.base: {index} names {name}, which is not there.")
    return [index.name, *parts]


def _digests(folder: Path) -> dict[str, str]:
    """Name → sha256 of every file that loading the model or its tokenizer reads, and of other JSON files."""
    names = {p.name for p in folder.iterdir() if p.suffix in {".json", ".jinja"} and p.is_file()} - {MANIFEST}
    names |= {name for name in TOKENIZER_FILES if (folder / name).is_file()} | set(weight_files(folder))
    return {name: content_digest(folder / name) for name in sorted(names)}
