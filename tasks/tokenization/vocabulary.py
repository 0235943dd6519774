"""The base model's tokenizer without transformers: text to ids, and the ids that begin and end a sequence."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tasks.errors import UserError


class Vocabulary:
    """A fast tokenizer whose special tokens are never made by text in the data.

    Args:
        folder: the base model's folder.
        rendered: the text comes from a chat template, so special tokens written in it are meant.
    """

    def __init__(self, folder: Path, rendered: bool) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        settings = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
        self.eos = self._id(settings.get("eos_token"), folder)
        begins = settings.get("bos_token")
        bos = self._id(begins, folder) if begins else None
        own = self.tokenizer.encode("", add_special_tokens=True).ids
        self.prefix = [bos] if bos is not None and bos in own and not rendered else []
        self.tokenizer.encode_special_tokens = not rendered

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def inside(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Indices of a sequence's tokens, prefix included, that lie wholly inside one of some spans of characters."""
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        return [
            index
            for index, (a, b) in enumerate(offsets, len(self.prefix))
            if b > a and any(a >= start and b <= end for start, end in spans)
        ]

    def _id(self, token: str | dict[str, str] | None, folder: Path) -> int:
        text = token["content"] if isinstance(token, dict) else token
        id = self.tokenizer.token_to_id(text) if text else None
        if id is None:
            raise UserError(f"model.base: the tokenizer in {folder} names no end-of-sequence token that it knows.")
        return id


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
