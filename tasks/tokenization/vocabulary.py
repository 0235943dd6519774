"""The base model's tokenizer as transformers loads it: text to ids, and positions of characters among the ids."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders

from tasks.errors import UserError
from tasks.process.child import main, run_child
from tasks.process.quiet import without_torch

SAVED = "vocabulary.json"

Split = Callable[[int], int]
"""A place in a text, in characters → how many tokens end there or before."""


class Vocabulary:
    """A tokenizer in which only chat templates make special tokens, never text of the data.

    transformers loads it, because added and special tokens, prefix spaces and other settings come from several files
    and from the tokenizer's class.

    Args:
        folder: the base model's folder.
        rendered: the text comes from a chat template, so names of special tokens in it are special tokens.
    Raises:
        UserError: there is no end-of-sequence token, or the model has no embedding for it.
    """

    def __init__(self, folder: Path, rendered: bool) -> None:
        from transformers import AutoTokenizer

        whole = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer, size = whole.backend_tokenizer, _embeddings(folder)
        if whole.eos_token_id is None or (size and whole.eos_token_id >= size):
            raise UserError(
                f"model.base: the tokenizer in {folder} names no end-of-sequence token that the model knows."
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        own, text = (tokenizer.encode("a", add_special_tokens=add).ids for add in (True, False))
        start = next((n for n in range(len(own)) if own[n : n + len(text)] == text), 0)
        tokenizer.post_processor = None  # it adds what `prefix` has, and changes offsets
        self._set(tokenizer, whole.eos_token_id, [] if rendered else own[:start], rendered, size)

    def saved(self, file: Path) -> dict[str, Any]:
        """Write it to a file; returns arguments of `opened`, which does without transformers."""
        file.write_text(self.tokenizer.to_str(), encoding="utf-8")
        given = {"eos": self.eos, "prefix": self.prefix, "rendered": self.rendered, "size": self.size}
        return {"file": str(file), **given}

    @classmethod
    def opened(cls, file: str, **given: Any) -> "Vocabulary":
        self = cls.__new__(cls)
        self._set(Tokenizer.from_file(file), **given)
        return self

    def _set(self, tokenizer: Tokenizer, eos: int, prefix: list[int], rendered: bool, size: int) -> None:
        self.tokenizer, self.eos, self.prefix, self.rendered, self.size = tokenizer, eos, prefix, rendered, size
        tokenizer.encode_special_tokens = not rendered
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        self.special_names = re.compile(names) if names and not rendered else None  # which are text here
        self._bytes = None
        if isinstance(tokenizer.decoder, decoders.ByteLevel):  # a token has a character for each of its bytes
            vocabulary = tokenizer.get_vocab(with_added_tokens=False)
            lengths = np.zeros(1 + max(tokenizer.get_vocab().values()), np.int64)
            lengths[list(vocabulary.values())] = [len(token) for token in vocabulary]
            for id, token in tokenizer.get_added_tokens_decoder().items():
                lengths[id] = len(token.content.encode())
            self._bytes = lengths

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text begins and ends, in characters; a part of a character stands where it does."""
        return self.tokenizer.encode(text, add_special_tokens=False).offsets

    def split(self, text: str, ids: list[int]) -> Split:
        """Maps a position in a text to an index among its ids. A token across the position belongs to what follows."""
        if self._bytes is not None:  # offsets take a quarter of the time of encoding
            ends = np.cumsum(self._bytes[ids])
            size = len(text.encode())
            if len(ids) and ends[-1] == size:
                if size == len(text):
                    return lambda place: int(np.searchsorted(ends, place, "right"))
                return lambda place: int(np.searchsorted(ends, len(text[:place].encode()), "right"))
        found = np.maximum.accumulate([0, *(end for _, end in self.offsets(text))])[1:]
        return lambda place: int(np.searchsorted(found, place, "right"))


def saved_vocabulary(folder: Path, rendered: bool, scratch: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Arguments of `Vocabulary.opened`. A process without transformers stays without it: a child loads the tokenizer.

    Args:
        folder, rendered: as for `Vocabulary`.
        scratch: folder for files that are read as long as the vocabulary is.
    """
    job = {"folder": str(folder), "rendered": rendered, "scratch": str(scratch)}
    if "transformers" in sys.modules:
        _save(job)
    else:
        run_child("tasks.tokenization.vocabulary", job, log)
    return json.loads((scratch / SAVED).read_text())


def _save(job: dict[str, Any]) -> None:
    scratch = Path(job["scratch"])
    saved = Vocabulary(Path(job["folder"]), job["rendered"]).saved(scratch / "tokenizer.json")
    (scratch / SAVED).write_text(json.dumps(saved))


def _embeddings(folder: Path) -> int:
    """Tokens that the model has embeddings for; 0: its configuration does not say."""
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    return int(config.get("text_config", config).get("vocab_size") or 0)


if __name__ == "__main__":
    without_torch()
    main(_save)
