"""Greedy answers of many prompts at once on one device, with transformers' own layers.

Prompts are read in packed passes without padding, as in training. Then each pass over the model makes one token of
every live row, with a cache that holds no padding (`cached.py`). When a row ends, the next prompt takes its part of the
cache. On a GPU the pass is captured as a graph and replayed, because launching its thousand kernels takes longer than
they run. So the pass itself chooses, stores and counts the tokens, and the host checks only now and then which rows
have ended.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tasks.errors import UserError
from tasks.evaluation.answers.cached import Unsupported
from tasks.evaluation.answers.slots import MOST_SLOTS, Passes, Slots
from tasks.model.attention import check_supported
from tasks.training.packing import Row

_PREFILL_TOKENS = {"cpu": 2048, "cuda": 16_384}  # prompt tokens in one pass; more are hardly faster
_USED_SHARE = 0.9  # of a GPU's free memory; the rest is for fragmentation
_HOST_SHARE = 0.25  # of a host's free memory
_TRIAL = (6, 3)  # tokens of the prompts with which a model is tested
_TRIAL_ERROR = 0.2  # relative, of logits in 16 bits
_PROBES = (256, 1024)  # prompt tokens of the passes whose memory is measured


class Engine(Passes):
    """Answers with one model; the caller has its adapter on or off.

    Args:
        graphs: whether passes on a GPU are captured.
    Raises:
        Unsupported: the model does not compute the same with the cache.
    """

    def __init__(self, model: PeftModel, graphs: bool = True) -> None:
        super().__init__(cast(PreTrainedModel, model.get_base_model()), graphs)
        self.words = self.base.config.get_text_config().vocab_size
        try:
            check_supported(self.base.config)
        except UserError as error:
            raise Unsupported(str(error)) from None
        for module in self.base.modules():
            kinds = str(getattr(module, "rope_type", ""))
            if "dynamic" in kinds or "longrope" in kinds:
                raise Unsupported("its rotations depend on the longest row of a pass")
        self._try()

    @torch.inference_mode()
    def _try(self) -> None:
        """Compare the logits after two short prompts with those of the model's usual forward pass.

        Raises:
            Unsupported: they differ.
        """
        rows = [
            [(7 * place + 3 * row + 1) % self.words for place in range(length + 1)] for row, length in enumerate(_TRIAL)
        ]
        try:
            want = [self.base(torch.tensor([row], device=self.device), use_cache=False).logits[0, -1] for row in rows]
            with self.attention():
                slots = Slots(self, [row[:-1] for row in rows], [], 2, deque(range(len(rows))), 10**6)
                slots.prefill(list(enumerate(range(len(rows)))))
                slots.ids[: len(rows)] = torch.tensor([row[-1] for row in rows], device=self.device)
                got = self.head(slots.next_hidden(torch.arange(len(rows), device=self.device)))
        except (torch.OutOfMemoryError, Unsupported):
            raise
        except Exception as error:
            raise Unsupported(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
        self.bytes_per_token = slots.cache.bytes_per_token()
        config = self.base.config.get_text_config()
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
        if sliding and getattr(config, "sliding_window", None) and slots.cache.windows == {None}:
            raise Unsupported("its attention gets its sliding window as a mask")  # and there is no mask here
        for ours, theirs in zip(got.float(), want, strict=True):
            theirs = (theirs.float() - theirs.float().mean()) / theirs.float().std()
            ours = (ours - ours.mean()) / ours.std()  # the scale of logits does not change the greedy token
            if not (ours - theirs).norm() < _TRIAL_ERROR * theirs.norm():
                raise Unsupported("its layers compute something else with one token at a time")

    def room(self, asked: int, longest: int) -> tuple[int, int]:
        """Tokens of the cache and prompt tokens of a pass that fit in memory, on a GPU measured with two passes.

        Args:
            asked: prompt tokens of a pass if the user set them, else 0.
            longest: tokens of the longest prompt with its answer.
        """
        tokens = asked or _PREFILL_TOKENS[self.device.type]
        if self.device.type == "cpu":
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return int(_HOST_SHARE * free / self.bytes_per_token), tokens
        peaks = [self._peak(length) for length in _PROBES]
        slope = (peaks[1] - peaks[0]) / (_PROBES[1] - _PROBES[0])
        fixed = max(0.0, peaks[0] - slope * _PROBES[0]) + 6 * MOST_SLOTS["cuda"] * self.words
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        allowed = torch.cuda.memory.get_per_process_memory_fraction(self.device) * total
        left = _USED_SHARE * min(free, allowed - torch.cuda.memory_allocated(self.device)) - fixed
        if not asked:
            tokens = int(min(tokens, max(longest, left / 3 / slope)))
        return int(max(0.0, left - slope * tokens) / self.bytes_per_token), tokens

    def _peak(self, tokens: int) -> int:
        """Peak bytes of one pass over so many prompt tokens, without the cache."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        Slots(self, [[1] * tokens], [], 1, deque([0]), 10**6).prefill([(0, 0)])
        return torch.cuda.max_memory_allocated(self.device) - before - tokens * self.bytes_per_token

    @torch.inference_mode()
    def answer(
        self,
        prompts: list[list[int]],
        stop: list[int],
        max_new_tokens: int,
        prefill_tokens: int,
        report: Callable[[str], None],
        progress: Callable[[float, int], None] = lambda share, done: None,
        rows: Sequence[Row] | None = None,
        losses: dict[int, float] | None = None,
    ) -> list[list[int]]:
        """Greedy continuations of token ids, in the given order, each with the id that ended it.

        Args:
            prefill_tokens: prompt tokens in one pass; 0: by memory.
            report: is called when memory runs out, or passes cannot be captured.
            progress: is called with the share of tokens done, and the number of finished answers.
            rows: the prompts with their target tokens, to be read in the same passes.
            losses: receives the held-out loss of each of these rows, by its number.
        Raises:
            UserError: the memory does not suffice for one row.
        """
        self.report = report
        answers: list[list[int] | None] = [None] * len(prompts)
        longest = max(map(len, prompts), default=0) + max_new_tokens
        with self.attention():
            room = None
            while waiting := deque(
                sorted((i for i, a in enumerate(answers) if a is None), key=lambda i: (-len(prompts[i]), i))
            ):
                slots, first = None, waiting[0]
                try:
                    if room is None:
                        room = self.room(prefill_tokens, longest)
                    slots = Slots(self, prompts, stop, max_new_tokens, waiting, *room, rows, losses)
                    slots.run(answers, progress)
                except torch.OutOfMemoryError:
                    if room is None or (slots is not None and slots.count == 1):
                        raise too_long(len(prompts[first]), max_new_tokens) from None
                    held = slots.places if slots is not None else room[0]
                else:
                    continue
                # not in the handler, because the traceback keeps memory allocated
                room, slots = (held // 2, max(1, room[1] // 2)), None
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                report(f"out of memory: a cache of {room[0]:,} tokens, {room[1]:,} prompt tokens a pass from here on")
        return cast(list[list[int]], answers)


def too_long(tokens: int, max_new_tokens: int) -> UserError:
    """The error for a prompt that does not fit in memory with its answer, or with 0 new tokens, a row for its loss."""
    if not max_new_tokens:
        what, fields = f"for the loss of a row of {tokens:,} tokens", ""
    else:
        what = f"to answer a prompt of {tokens:,} tokens with up to {max_new_tokens:,} new ones"
        fields = "evaluation.max_new_tokens or "
    return UserError(f"evaluation: memory does not suffice {what}; lower {fields}tokenization.max_length.")
