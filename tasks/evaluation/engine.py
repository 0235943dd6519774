"""Greedy answers of many prompts at once on one device.

transformers' own layers compute; what is here is what they compute on. Prompts are read in passes without padding, as
training reads its rows. Then every pass over the model makes one token of each live row, over a cache that holds the
rows' own tokens and nothing else (`cached.py`). A row that ends leaves its part of the cache to the next prompt. On a
GPU the pass is captured as a graph and replayed, since starting its thousand kernels takes longer than they do; so it
chooses, keeps and counts the tokens itself, and the host looks at what has ended only now and then.
"""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tasks.errors import UserError
from tasks.evaluation.cached import NAME, Cache, Decode, Prefill, Unsupported
from tasks.evaluation.loss import mean_losses
from tasks.model.attention import check_supported
from tasks.tokenization.schema import IGNORE_INDEX
from tasks.training.packing import Row, flatten

_SLOTS = {"cpu": 64, "cuda": 512}  # rows at once; more are hardly faster
_PREFILL_TOKENS = {"cpu": 2048, "cuda": 16_384}  # prompt tokens in one pass; likewise
_LOOK_EVERY = {"cpu": 1, "cuda": 8}  # passes between two looks at what has ended
_FEWEST_CAPTURED = 16  # rows of the smallest graph
_USED_SHARE = 0.9  # of the free memory; the rest is for fragments
_HOST_SHARE = 0.25  # of a host's free memory
_TRIAL = (6, 3)  # tokens of the prompts that a model is tried with
_TRIAL_ERROR = 0.2  # relative, of logits in 16 bits
_PROBES = (256, 1024)  # prompt tokens of the passes whose memory is measured


class Engine:
    """Answers with one model, whose adapter is on or off as its caller left it.

    Args:
        graphs: whether a GPU's passes are captured.
    Raises:
        Unsupported: this model's answers cannot be computed here.
    """

    def __init__(self, model: PeftModel, graphs: bool = True) -> None:
        self.base = cast(PreTrainedModel, model.get_base_model())
        self.head = self.base.get_output_embeddings()
        self.last_position = (position_limit(self.base) or 1 << 40) - 1
        self.words = self.base.config.get_text_config().vocab_size
        devices = {parameter.device for parameter in self.base.parameters()}
        if len(devices) > 1:
            raise Unsupported("it lies on several devices")
        (self.device,) = devices
        self.graphs = graphs and self.device.type == "cuda"
        try:
            check_supported(self.base.config)
        except UserError as error:
            raise Unsupported(str(error)) from None
        for module in self.base.modules():
            kinds = str(getattr(module, "rope_type", ""))
            if "dynamic" in kinds or "longrope" in kinds:
                raise Unsupported("its rotations depend on the longest row of a pass")
        self._try()

    @contextlib.contextmanager
    def attention(self) -> Iterator[None]:
        """The base's layers attend over the cache inside."""
        usual = self.base.config._attn_implementation
        self.base.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.base.set_attn_implementation(usual)

    def hidden(self, ids: Tensor, positions: Tensor, cached: Prefill | Decode) -> Tensor:
        """Last hidden states `[tokens, width]` of ids and positions (int64, `[tokens]`)."""
        positions = positions.clamp(max=self.last_position)  # a row that goes on until others end is cut there
        output = self.base.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False, cached=cached)
        return cast(Tensor, output.last_hidden_state[0])

    @torch.inference_mode()
    def _try(self) -> None:
        """Compare one token after two short prompts with what the model itself computes for it.

        Raises:
            Unsupported: it is another one.
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
            raise Unsupported("its attention is not told of its sliding window")  # but a mask is, and there is none
        for ours, theirs in zip(got.float(), want, strict=True):
            theirs = (theirs.float() - theirs.float().mean()) / theirs.float().std()
            ours = (ours - ours.mean()) / ours.std()  # a head's scale does not change which token is the largest
            if not (ours - theirs).norm() < _TRIAL_ERROR * theirs.norm():
                raise Unsupported("its layers compute something else with one token at a time")

    def room(self, asked: int, longest: int) -> tuple[int, int]:
        """Tokens that the cache may hold, and prompt tokens of a pass, measured with two passes on a GPU.

        Args:
            asked: prompt tokens of a pass where the user said so, else 0.
            longest: tokens of the longest prompt with its answer.
        """
        tokens = asked or _PREFILL_TOKENS[self.device.type]
        if self.device.type == "cpu":
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return int(_HOST_SHARE * free / self.bytes_per_token), tokens
        peaks = [self._peak(length) for length in _PROBES]
        slope = (peaks[1] - peaks[0]) / (_PROBES[1] - _PROBES[0])
        fixed = max(0.0, peaks[0] - slope * _PROBES[0]) + 6 * _SLOTS["cuda"] * self.words
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        allowed = torch.cuda.memory.get_per_process_memory_fraction(self.device) * total
        left = _USED_SHARE * min(free, allowed - torch.cuda.memory_allocated(self.device)) - fixed
        if not asked:
            tokens = int(min(tokens, max(longest, left / 3 / slope)))
        return int(max(0.0, left - slope * tokens) / self.bytes_per_token), tokens

    def _peak(self, tokens: int) -> int:
        """Bytes that one pass over so many prompt tokens needs beside the cache."""
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
        """Greedy continuations of token ids, in the order given, with the id that ended them.

        Args:
            prefill_tokens: prompt tokens in one pass; 0: by memory.
            report: told when memory runs out, or a GPU's passes cannot be captured.
            progress: told what share of the tokens are done, and how many answers.
            rows: the prompts with their target tokens, which are read in the same passes.
            losses: takes the held-out loss of each of these rows, by its number.
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
                # outside the handler, whose traceback holds on to memory
                room, slots = (held // 2, max(1, room[1] // 2)), None
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                report(f"out of memory: a cache of {room[0]:,} tokens, {room[1]:,} prompt tokens a pass from here on")
        return cast(list[list[int]], answers)


def position_limit(base: PreTrainedModel) -> int | None:
    """Tokens that a model with a table of positions can read, after which an answer ends; None for other models."""
    table = any(
        isinstance(module, torch.nn.Embedding) and ("position" in name or name.endswith("wpe"))
        for name, module in base.named_modules()
    )
    return int(base.config.get_text_config().max_position_embeddings) if table else None


def too_long(prompt: int, max_new_tokens: int) -> UserError:
    """For a prompt of so many tokens that cannot be answered in the memory there is."""
    return UserError(
        f"evaluation: memory does not suffice to answer a prompt of {prompt:,} tokens with up to {max_new_tokens:,} "
        "new ones; lower evaluation.max_new_tokens or tokenization.max_length."
    )


class Slots:
    """Parts of a cache, each with a row that is being answered. All tensors below are by slot, the last one no row's.

    Slots are made for the longest prompts, which are answered first, so every later prompt fits into any slot.

    Args:
        waiting: numbers of the prompts to be answered, longest first.
        places: tokens that the cache may hold; one row's are always made room for.
        prefill_tokens: prompt tokens in one pass.
        rows, losses: as `Engine.answer` takes them.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: list[list[int]],
        stop: list[int],
        max_new_tokens: int,
        waiting: deque[int],
        places: int,
        prefill_tokens: int = 0,
        rows: Sequence[Row] | None = None,
        losses: dict[int, float] | None = None,
    ) -> None:
        self.whole, self.losses = rows, losses
        self.engine, self.prompts, self.max_new_tokens = engine, prompts, max_new_tokens
        self.waiting, self.prefill_tokens = waiting, prefill_tokens
        device = engine.device
        sizes = [len(prompts[i]) + max_new_tokens for i in itertools.islice(waiting, _SLOTS[device.type])]
        ends = list(itertools.accumulate(sizes))
        self.count = max(1, sum(end <= places for end in ends))
        self.places, self.longest = ends[self.count - 1], sizes[0]
        self.cache = Cache(self.places + 1)  # the last place takes what no row needs
        self.starts = torch.tensor([0, *ends[: self.count - 1], self.places], device=device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(self.count + 1, *shape, dtype=dtype, device=device)

        self.ids, self.lengths, self.made = zeros(), zeros(), zeros()  # last token, tokens in the cache, tokens made
        self.done = zeros(dtype=torch.bool)
        self.done[-1] = True
        self.out = zeros(max_new_tokens + 1, dtype=torch.int32)  # one column more, for a row that is done
        self.stop = torch.tensor(stop, dtype=torch.int64, device=device)
        self.rows: dict[int, int] = {}  # slot → number of its prompt
        self.free = list(range(self.count))[::-1]
        self.lanes = zeros()  # the slots of a pass; a captured one reads them here
        self.captured: dict[int, Any] = {}
        self.look_every = _LOOK_EVERY[device.type]

    def run(self, answers: list[list[int] | None], progress: Callable[[float, int], None]) -> None:
        """Answer what is waiting; finished answers are put into `answers` at once."""
        weights = [len(prompt) + self.max_new_tokens for prompt in self.prompts]
        made: dict[int, int] = {}
        while self.waiting or self.rows:
            self.fill()
            steps = min(self.look_every, self.max_new_tokens - 1 - min(made.get(slot, 0) for slot in self.rows))
            self.advance(max(0, steps))
            done, counts = torch.stack([self.done.long(), self.made]).tolist()
            made = {slot: counts[slot] - 1 for slot in self.rows if not done[slot]}
            ended = [slot for slot in self.rows if done[slot]]
            for slot, ids in zip(ended, self.out[ended].tolist(), strict=True):
                answers[self.rows.pop(slot)] = ids[: counts[slot]]
                self.free.append(slot)
            finished = sum(w for w, answer in zip(weights, answers, strict=True) if answer is not None)
            live = sum(len(self.prompts[row]) + counts[slot] for slot, row in self.rows.items())
            progress((finished + live) / sum(weights), sum(answer is not None for answer in answers))

    def fill(self) -> None:
        """Read waiting prompts into free slots."""
        while self.waiting and self.free:
            batch, tokens = list[tuple[int, int]](), 0
            while self.waiting and self.free:
                tokens += len(self._read(self.waiting[0]).input_ids)
                if batch and tokens > self.prefill_tokens:
                    break
                batch.append((self.free.pop(), self.waiting.popleft()))
            self.prefill(batch)

    def prefill(self, batch: list[tuple[int, int]]) -> None:
        """One pass over the prompts of (slot, number) pairs, which makes their first tokens."""
        device = self.engine.device
        rows = [self._read(number) for _, number in batch]
        flat = flatten(rows, device)
        slots = torch.tensor([slot for slot, _ in batch], device=device)
        lengths = torch.tensor([len(self.prompts[number]) for _, number in batch], device=device)
        sizes = torch.tensor([len(row.input_ids) for row in rows], device=device)
        ids, positions = flat.input_ids[0], flat.position_ids[0]
        starts, ends = (t.repeat_interleave(sizes, output_size=len(ids)) for t in (self.starts[slots], lengths))
        places = torch.where(positions < ends, starts + positions, self.places)  # what follows a prompt is not kept
        hidden = self.engine.hidden(ids, positions, Prefill(self.cache, places, flat.boundaries, flat.longest))
        if self.losses is not None:
            found = mean_losses(self.engine.base, hidden, flat, rows)
            self.losses |= {number: loss for (_, number), loss in zip(batch, found, strict=True)}
        self.lengths[slots] = lengths
        self.made[slots] = 0
        self.done[slots] = False
        self.rows |= dict(batch)
        self._keep(slots, hidden[flat.boundaries[:-1] + lengths - 1])

    def _read(self, number: int) -> Row:
        """What a pass reads of a prompt: with its targets, where losses are asked for."""
        if self.whole is not None:
            return self.whole[number]
        ids = torch.tensor(self.prompts[number])
        return Row(ids, torch.full_like(ids, IGNORE_INDEX))

    def advance(self, steps: int) -> None:
        """Make so many tokens of every live row."""
        live = list(self.rows)
        if not steps:
            return
        if not self.engine.graphs:
            for _ in range(steps):
                self.step(torch.tensor(live, device=self.engine.device))
            return
        size = self.count
        while size // 2 >= max(len(live), _FEWEST_CAPTURED):
            size //= 2
        self.lanes[:size] = torch.tensor([*live, *[self.count] * (size - len(live))], device=self.engine.device)
        if size not in self.captured:
            self._capture(size)
            steps -= 1
        for _ in range(steps):
            self.captured[size].replay() if self.engine.graphs else self.step(self.lanes[:size])

    def _capture(self, size: int) -> None:
        """Make one token as usual, for kernels must have run before they are captured, and capture that."""
        lanes = self.lanes[:size]
        stream = torch.cuda.Stream(self.engine.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(lanes)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=next((g.pool() for g in self.captured.values()), None)):
                self.step(lanes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a layer that waits for the device
            self.engine.graphs = False
            self.engine.report(f"kernels are started one by one, which is slower: {str(error).splitlines()[0]}")
        else:
            self.captured[size] = graph

    def step(self, lanes: Tensor) -> None:
        """One more token for the slots `lanes` (int64, `[rows]`); done ones stay as they are."""
        self._keep(lanes, self.next_hidden(lanes), cached=1)

    def next_hidden(self, lanes: Tensor) -> Tensor:
        """Hidden states `[rows, width]` after each slot's last token, whose key and value go into the cache."""
        lengths = self.lengths[lanes]
        cached = Decode(self.cache, self.starts[lanes], lengths + 1, self.longest)
        return self.engine.hidden(self.ids[lanes], lengths, cached)

    def _keep(self, lanes: Tensor, hidden: Tensor, cached: int = 0) -> None:
        """Choose each slot's next token; `cached`: tokens that the pass added to the cache of every row not done."""
        logits = self.engine.head(hidden)
        chosen = (logits if logits.is_cuda else logits.float()).argmax(-1)  # of 16 bits it is slow on a CPU
        going, made = ~self.done[lanes], self.made[lanes]
        self.out[lanes, made] = chosen.int()
        made = made + going
        self.lengths[lanes] += going * cached
        self.made[lanes] = made
        self.ids[lanes] = chosen
        self.done[lanes] = ~going | (chosen[:, None] == self.stop).any(1) | (made >= self.max_new_tokens)
