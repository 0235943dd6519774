"""Rows that come twice: what is held out must not be trained on, and what repeats within a side is counted."""

import hashlib


class Repeats:
    """Remembers prompts and answers as 12-byte marks; case and white space make no difference.

    `counts` holds, for the manifest, `leaks` (training rows equal to a held-out one, to be left out), `shared_prompts`
    (training rows with a held-out row's prompt and another answer) and `duplicates` (rows equal to an earlier one of
    their side); the latter two are reported and kept.
    """

    def __init__(self) -> None:
        self.counts = {"leaks": 0, "shared_prompts": 0, "duplicates": 0}
        self._held_out: set[bytes] = set()
        self._held_out_prompts: set[bytes] = set()
        self._training: set[bytes] = set()

    def leaks(self, split: str, prompt: str, completion: str) -> bool:
        """Note a row; True for a training row that is equal to a held-out one. Held-out rows come first."""
        asked = _mark(prompt)
        both = _mark(prompt, completion)
        if split == "train" and both in self._held_out:
            self.counts["leaks"] += 1
            return True
        mine = self._training if split == "train" else self._held_out
        self.counts["duplicates"] += both in mine
        mine.add(both)
        if split == "train":
            self.counts["shared_prompts"] += asked in self._held_out_prompts
        else:
            self._held_out_prompts.add(asked)
        return False


def _mark(*texts: str) -> bytes:
    plain = "\0".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.blake2b(plain.encode(), digest_size=12).digest()
