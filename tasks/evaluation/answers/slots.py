"""Passes over a model's layers with a cache, and the slots of the cache, in which rows are answered."""

import contextlib
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.evaluation.answers.cached import NAME, Cache, Decode, Places, Prefill, Shared, Unsupported
from tasks.evaluation.answers.loss import mean_losses
from tasks.tokenization.schema import IGNORE_INDEX
from tasks.training.packing import Row, flatten

MOST_SLOTS = {"cpu": 64, "cuda": 512}  # rows at once; more are hardly faster
_LOOK_EVERY = {"cpu": 1, "cuda": 8}  # passes between two checks which rows have ended
HEADS_FIRST = {"cpu": True, "cuda": False}  # layout of the cache
_FULL = 0.75  # least share of a slot that its first row fills, where neighbouring slots have one size
_FEWEST_SHARED = 8  # tokens with which prompts begin alike; fewer are not worth reading apart
_FEWEST_CAPTURED = 16  # rows of the smallest graph


class Passes:
    """A base on one device whose layers use a cache.

    Args:
        graphs: whether passes on a GPU are captured.
    Raises:
        Unsupported: the base is on several devices.
    """

    report: Callable[[str], None]
    """Is called when passes cannot be captured."""

    def __init__(self, base: PreTrainedModel, graphs: bool) -> None:
        self.base, self.head = base, base.get_output_embeddings()
        self.last_position = (position_limit(base) or 1 << 40) - 1
        devices = {parameter.device for parameter in base.parameters()}
        if len(devices) > 1:
            raise Unsupported("it lies on several devices")
        (self.device,) = devices
        self.graphs = graphs and self.device.type == "cuda"

    @contextlib.contextmanager
    def attention(self) -> Iterator[None]:
        """In this context the base's layers use the cache."""
        usual = self.base.config._attn_implementation
        self.base.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.base.set_attn_implementation(usual)

    def hidden(self, ids: Tensor, positions: Tensor, cached: Shared | Prefill | Decode) -> Tensor:
        """Last hidden states `[tokens, width]` of ids and positions (int64, `[tokens]`)."""
        positions = positions.clamp(max=self.last_position)  # tokens beyond it are cut off afterwards
        output = self.base.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False, cached=cached)
        return cast(Tensor, output.last_hidden_state[0])


def position_limit(base: PreTrainedModel) -> int | None:
    """Most tokens of a row for a model with a table of positions; None for other models."""
    table = any(
        isinstance(module, torch.nn.Embedding) and ("position" in name or name.endswith("wpe"))
        for name, module in base.named_modules()
    )
    return int(base.config.get_text_config().max_position_embeddings) if table else None


class Slots:
    """Parts of a cache, each with a row that is being answered. Tensors are indexed by slot; the last slot has no row.

    The slots are sized for the longest prompts, which are answered first, so every later prompt fits into any slot.

    Args:
        waiting: numbers of the prompts to be answered, longest first.
        places: tokens of the cache; there is at least one slot.
        prefill_tokens: prompt tokens in one pass.
        rows, losses: see `Engine.answer`.
    """

    def __init__(
        self,
        engine: Passes,
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
        sizes = [len(prompts[i]) + max_new_tokens for i in itertools.islice(waiting, MOST_SLOTS[device.type])]
        heads_first = HEADS_FIRST[device.type]
        for i in range(1, len(sizes) if heads_first else 0):  # neighbours of one size attend together
            sizes[i] = sizes[i - 1] if sizes[i] >= _FULL * sizes[i - 1] else sizes[i]
        ends = list(itertools.accumulate(sizes))
        self.count = max(1, sum(end <= places for end in ends))
        self.places, self.longest = ends[self.count - 1], sizes[0]
        self.cache = Cache(self.places + 1, heads_first)  # tokens that no row needs are written to the last place
        self.starts = torch.tensor([0, *ends[: self.count - 1], self.places], device=device)
        self.sizes = torch.tensor([*sizes[: self.count], 1], device=device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(self.count + 1, *shape, dtype=dtype, device=device)

        self.ids, self.lengths, self.made = zeros(), zeros(), zeros()  # last token, tokens in the cache, tokens made
        self.done = zeros(dtype=torch.bool)
        self.done[-1] = True
        self.out = zeros(max_new_tokens + 1, dtype=torch.int32)  # the last column is for tokens of rows that are done
        self.stop = torch.tensor(stop, dtype=torch.int64, device=device)
        self.rows: dict[int, int] = {}  # slot → number of its prompt
        self.free = list(range(self.count))[::-1]
        self.lanes = zeros()  # the slots of a pass; a captured one reads them here
        self.captured: dict[int, Any] = {}
        self.look_every = _LOOK_EVERY[device.type]
        self.shared: Shared | None = None
        self.begun: dict[int, tuple[int, int]] = {}  # prompt → where its first tokens are in `shared`, and how many

    def run(self, answers: list[list[int] | None], progress: Callable[[float, int], None]) -> None:
        """Answer all waiting prompts; each answer is put into `answers` as soon as it is finished."""
        weights = [len(prompt) + self.max_new_tokens for prompt in self.prompts]
        made: dict[int, int] = {}
        self._read_shared()
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

    def _read_shared(self) -> None:
        """On a CPU read once what several prompts begin with; those that save most, as many as a pass may have."""
        groups = defaultdict[tuple[int, ...], list[int]](list)
        for number in self.waiting if self.cache.heads_first else ():
            groups[tuple(self.prompts[number][:_FEWEST_SHARED])].append(number)
        found, rows = list[tuple[list[int], list[int]]](), list[Row]()
        for numbers in groups.values():
            first, last = (choose(self.prompts[number] for number in numbers) for choose in (min, max))
            differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
            found.append((numbers, first[: next(differing, len(first))]))
        for numbers, ids in sorted(found, key=lambda each: -len(each[1]) * (len(each[0]) - 1)):
            offset = sum(len(row.input_ids) for row in rows)
            if len(numbers) > 1 and len(ids) >= _FEWEST_SHARED and offset + len(ids) <= self.prefill_tokens:
                rows.append(Row(torch.tensor(ids), torch.full((len(ids),), IGNORE_INDEX)))
                self.begun |= {number: (offset, min(len(ids), self._first_needed(number))) for number in numbers}
        if rows:
            flat = flatten(rows, self.engine.device)
            self.shared = Shared(self.cache, flat.boundaries, flat.longest)
            self.engine.hidden(flat.input_ids[0], flat.position_ids[0], self.shared)

    def _first_needed(self, number: int) -> int:
        """Position of the first token of a row whose hidden state is needed."""
        learnt = (self._read(number).labels[1:] != IGNORE_INDEX).nonzero().flatten().tolist()
        return min([len(self.prompts[number]) - 1, *learnt[:1]])

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
        """One pass over the prompts of (slot, number) pairs, which also makes their first tokens."""
        device = self.engine.device
        rows = [self._read(number) for _, number in batch]
        flat = flatten(rows, device)
        slots = torch.tensor([slot for slot, _ in batch], device=device)
        lengths = torch.tensor([len(self.prompts[number]) for _, number in batch], device=device)
        sizes = torch.tensor([len(row.input_ids) for row in rows], device=device)
        ids, positions = flat.input_ids[0], flat.position_ids[0]
        slot, ends = (t.repeat_interleave(sizes, output_size=len(ids)) for t in (slots, lengths))
        slot = slot.where(positions < ends, self.count)  # targets are not kept
        places = Places(self.starts[slot], positions.where(positions < ends, 0), self.sizes[slot])
        passed = Prefill(self.cache, places, flat.boundaries, flat.longest, self.shared)
        if self.shared:
            begun = torch.tensor([self.begun.get(number, (0, 0)) for _, number in batch])
            offsets, read = begun.repeat_interleave(sizes, 0).unbind(1)
            mine = positions >= read
            passed.own = mine.nonzero().squeeze(1)
            passed.whole = torch.where(mine, self.shared.tokens + mine.cumsum(0) - 1, offsets + positions)
            found = self.engine.hidden(ids[passed.own], positions[passed.own], passed)
            hidden = found.new_zeros(len(ids), found.shape[1]).index_copy_(0, passed.own, found)
        else:
            hidden = self.engine.hidden(ids, positions, passed)
        if self.losses is not None:
            means = mean_losses(self.engine.base, hidden, flat, rows)
            self.losses |= {number: loss for (_, number), loss in zip(batch, means, strict=True)}
        self.lengths[slots] = lengths
        self.made[slots] = 0
        self.done[slots] = False
        self.rows |= dict(batch)
        self._keep(slots, hidden[flat.boundaries[:-1] + lengths - 1])

    def _read(self, number: int) -> Row:
        """The tokens that a pass reads: a prompt, with its targets if losses are required."""
        if self.whole is not None:
            return self.whole[number]
        ids = torch.tensor(self.prompts[number])
        return Row(ids, torch.full_like(ids, IGNORE_INDEX))

    def advance(self, steps: int) -> None:
        """Make so many tokens for every live row."""
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
        """Make one token without a graph, because kernels must run once before capture, and then capture the pass."""
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
        """One more token for the slots `lanes` (int64, `[rows]`); finished slots do not change."""
        self._keep(lanes, self.next_hidden(lanes), cached=1)

    def next_hidden(self, lanes: Tensor) -> Tensor:
        """Hidden states `[rows, width]` of each slot's last token; its key and value are added to the cache."""
        lengths = self.lengths[lanes]
        cached = Decode(self.cache, self.starts[lanes], self.sizes[lanes], lengths + 1, self.longest)
        return self.engine.hidden(self.ids[lanes], lengths, cached)

    def _keep(self, lanes: Tensor, hidden: Tensor, cached: int = 0) -> None:
        """Choose each slot's next token; `cached`: tokens that the pass added to the cache of each live row."""
        logits = self.engine.head(hidden)
        chosen = (logits if logits.is_cuda else logits.float()).argmax(-1)  # slow on a CPU in 16 bits
        going, made = ~self.done[lanes], self.made[lanes]
        self.out[lanes, made] = chosen.int()
        made = made + going
        self.lengths[lanes] += going * cached
        self.made[lanes] = made
        self.ids[lanes] = chosen
        self.done[lanes] = ~going | (chosen[:, None] == self.stop).any(1) | (made >= self.max_new_tokens)
