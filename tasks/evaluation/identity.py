"""Identities of evaluations, kept answers and watch sets."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks.config import METRICS, DataConfig, EvaluationConfig, FormattingConfig, TokenizationConfig, WatchSet
from tasks.download.identity import rows_identity
from tasks.errors import UserError
from tasks.evaluation.champion import trained_before
from tasks.formatting.facts import PromptFacts
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity, digest_of, files_digest, installed
from tasks.store.manifest import read_manifest
from tasks.store.model import BaseModelRef
from tasks.tokenization.facts import TokenFacts

VERSION, ANSWERS_VERSION, WATCH_VERSION = 8, 3, 1
"""Of the stage, of a model's kept answers, of a watch set; raised when the same inputs can give another result
(docs/caching.md)."""


def identity(
    adapter: ArtifactRef,
    tokens: ArtifactRef,
    prompts: ArtifactRef,
    model: BaseModelRef,
    config: EvaluationConfig,
    champion: ArtifactRef | None = None,
) -> Identity:
    before, _ = trained_before(adapter, champion)  # their rows are not compared
    return Identity(
        stage="evaluate",
        inputs={
            "adapter": adapter.part("adapter"),
            "tokens": tokens.digest,
            "prompts": prompts.digest,
            "model": model.digest,
            **({"rows": prompts.manifest.identity.inputs["rows"]} if config.slices else {}),
            **({"champion": champion.digest} if champion else {}),
            **(
                {"trained on before": digest_of(sorted(read_manifest(each).digest for each in before))}
                if before
                else {}
            ),
            **{f"watch {each.name}": watch_identity(each, tokens, prompts, model).key for each in config.watch},
            **{name: own_metric(name) for name in config.metrics if name not in METRICS},
        },
        config=config.model_dump(exclude={"watch"}) | {"ending": prompts.facts(PromptFacts).ending},
        version=VERSION,
        libraries=installed(
            *("torch", "transformers", "peft", "bitsandbytes", "evaluate", "rouge_score", "nltk", "regex", "rensa"),
            *(["sacrebleu"] if "chrf" in config.metrics else []),
        ),
    )


def watch_identity(watch: WatchSet, tokens: ArtifactRef, prompts: ArtifactRef, model: BaseModelRef) -> Identity:
    """Identity of a watch set: its rows, and the formatting and tokenization of this run."""
    formatting = watch.formatting or prompts.manifest.fields(FormattingConfig)
    return Identity(
        stage="watch",
        inputs={"rows": rows_identity(DataConfig(path=watch.path)).key, "tokenizer": model.tokenizer_digest},
        config=formatting.model_dump()
        | tokens.manifest.fields(TokenizationConfig).model_dump(exclude={"max_length"})
        | {"limit": tokens.facts(TokenFacts).limit},
        version=WATCH_VERSION,
        libraries=installed("jinja2", "pyarrow", "tokenizers", "transformers"),
    )


def answers_identity(
    model: str, adapter: str, device: str, training: dict[str, Any], decoding: dict[str, Any]
) -> Identity:
    """Identity of a model's kept losses and answers, in which a row is known by its tokens.

    Args:
        model, adapter: digests; without an adapter the base alone.
        device: name of the processor, since rounding depends on it.
        training: the fields for loading the base (tasks.model.quantization.FIELDS).
        decoding: how an answer ends.
    """
    return Identity(
        stage="answers",
        inputs={"model": model, "adapter": adapter},
        config={"device": device, **training, **decoding},
        version=ANSWERS_VERSION,
        libraries=installed("torch", "transformers", "peft", "bitsandbytes"),
    )


_FIND = """
import importlib, json, sys
module, function = sys.argv[1].split(":")
if not callable(getattr(importlib.import_module(module), function, None)):
    raise AttributeError(f"{module} has no function {function}")
top = sys.modules[module.partition(".")[0]]
print(json.dumps([*getattr(top, "__path__", [top.__file__])]))
"""


@functools.cache
def own_metric(name: str) -> str:
    """Digest of the package or single module of the function `package.module:function`.

    Raises:
        UserError: no installed package has it.
    """
    # in a separate process, which searches the same paths as the one that scores: without the working directory
    found = subprocess.run(
        [sys.executable, "-P", "-c", _FIND, name], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if found.returncode:
        why = (found.stderr.strip().splitlines() or [f"exit status {found.returncode}"])[-1]
        raise UserError(f"evaluation.metrics: no installed package has {name}: {why}")
    return digest_of([files_digest(Path(place)) for place in json.loads(found.stdout.splitlines()[-1])])
