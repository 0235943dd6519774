"""Answers and losses of the base and of base plus adapter, from one model in memory."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, TextStreamer

from tasks.config import FormattingConfig
from tasks.evaluation.answers.cached import Unsupported
from tasks.evaluation.answers.engine import Engine, too_long
from tasks.evaluation.answers.loss import mean_losses
from tasks.evaluation.answers.slots import position_limit
from tasks.model.lora import fuse
from tasks.model.quantization import load_options
from tasks.process.progress import Progress
from tasks.text import visible_lines
from tasks.tokenization.vocabulary import Vocabulary
from tasks.training.packing import Row, flatten

_PLAIN_TOKENS = 8192  # prompt tokens at once where `generate` answers
_EXPANDED_SHARE = 0.75  # of a GPU's memory that expanded weights may take; the rest is for the answers


def load(base: Path, adapter: Path, training: dict[str, Any]) -> PeftModel:
    """The base with the weights of training, and the adapter on it.

    A 4-bit base is quantized as in training. If there is room, it is dequantized once, which gives the same values
    without the cost of dequantizing them for every token. If one GPU is too small, the base is spread over several.
    """
    options = load_options(**training)
    dtype = options["dtype"]
    device_map: Any = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    if torch.cuda.device_count() > 1:
        device_map = "sequential"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, device_map=device_map, **options)
    if "quantization_config" in options and _room_for(model, dtype):
        model = model.dequantize().to(dtype)
    model.generation_config = GenerationConfig()  # the base's own may set beams or a repetition penalty
    return _adapted(model, adapter, dtype)


def exchange(model: PeftModel, adapter: Path, training: dict[str, Any]) -> PeftModel:
    """Another adapter on the base that `load` has loaded; the given model must not be used any more."""
    for module in list(model.modules()):
        if isinstance(module, ModulesToSaveWrapper):  # PEFT would leave its weights in the base
            module.modules_to_save["default"] = module.original_module
    base = cast(PreTrainedModel, model.unload())
    return _adapted(base, adapter, getattr(torch, training["compute_dtype"]))


def _adapted(model: PreTrainedModel, adapter: Path, dtype: torch.dtype) -> PeftModel:
    tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    lora: Any = tuned.peft_config["default"]
    if lora.use_dora:
        for name, parameter in tuned.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.data = parameter.data.float()
        set_peft_model_state_dict(tuned, load_peft_weights(str(adapter)))  # again, because they were rounded to `dtype`
    fuse(tuned, dtype)
    return tuned.eval()


def _room_for(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Whether dequantized weights fit: by the GPU's size, not its free memory, so that every run gives one result."""
    devices = {parameter.device for parameter in model.parameters()}
    if devices == {torch.device("cpu")}:
        return True
    total = min(torch.cuda.get_device_properties(device).total_memory for device in devices)
    return len(devices) == 1 and model.num_parameters() * dtype.itemsize < _EXPANDED_SHARE * total


def answer(
    model: PeftModel,
    prompts: list[list[int]],
    stop: list[int],
    max_new_tokens: int,
    batch_tokens: int,
    report: Callable[[str], None],
    rows: Sequence[Row] | None = None,
    losses: dict[int, float] | None = None,
) -> list[list[int]]:
    """Greedy continuations of token ids, in the given order, without the end-of-sequence token.

    Args:
        rows, losses: see `Engine.answer`; a model that the engine does not support gives no losses here.
        batch_tokens: prompt tokens in one pass; 0: as many as memory allows. Halved whenever memory runs out.
    Raises:
        UserError: the memory does not suffice for one row.
    """
    progress = Progress(len(prompts), "answers", report)
    limit = position_limit(cast(PreTrainedModel, model.get_base_model()))
    try:
        engine = Engine(model)
    except Unsupported as reason:
        report(f"answered by transformers' generate, which is slower: {reason}")
        batch_tokens = batch_tokens or _PLAIN_TOKENS
        answers = _plainly(model, prompts, stop, max_new_tokens, batch_tokens, report, progress, limit)
    else:
        answers = engine.answer(prompts, stop, max_new_tokens, batch_tokens, report, progress, rows, losses)
    most = [max_new_tokens if limit is None else max(0, limit - len(prompt)) for prompt in prompts]
    return [until(ids[:end], stop) for ids, end in zip(answers, most, strict=True)]


def losses(
    model: PeftModel, rows: Sequence[Row], report: Callable[[str], None], progress: Callable[[float, int], None]
) -> list[float]:
    """Mean negative log-likelihood of each row's target tokens, in nats; the caller has the adapter on or off.

    Args:
        rows: each with a target token after its first token.
    Raises:
        UserError: the memory does not suffice for one row.
    """
    found: dict[int, float] = {}
    try:
        engine = Engine(model)
    except Unsupported:
        base = cast(PreTrainedModel, model.get_base_model())
        for number, row in enumerate(rows):
            batch = flatten([row], base.device)
            try:
                with torch.inference_mode():
                    hidden = base.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[0]
                    (found[number],) = mean_losses(base, hidden, batch, [row])
            except torch.OutOfMemoryError:
                raise too_long(len(row.input_ids), 0) from None
            progress((number + 1) / len(rows), number + 1)
    else:
        engine.answer([row.input_ids.tolist() for row in rows], [], 1, 0, report, progress, rows, found)
    return [found[number] for number in range(len(rows))]


def _plainly(
    model: PeftModel,
    prompts: list[list[int]],
    stop: list[int],
    max_new_tokens: int,
    batch_tokens: int,
    report: Callable[[str], None],
    progress: Callable[[float, int], None],
    limit: int | None = None,
) -> list[list[int]]:
    """With transformers' own `generate`, in batches of similar length, longest first.

    Args:
        batch_tokens: prompt tokens in a batch, with padding.
        limit: most tokens of a row; rows that could reach it are answered one by one.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    while waiting:
        width = len(prompts[waiting[0]])
        batch = waiting[: max(1, batch_tokens // max(1, width))]
        most = max_new_tokens
        if limit is not None and width + max_new_tokens > limit:
            batch, most = batch[:1], max(1, limit - width)
        try:
            found = _generate(model, [prompts[index] for index in batch], stop, most)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise too_long(width, max_new_tokens) from None
            batch_tokens = len(batch) // 2 * width
            found = None
        if found is None:  # not in the handler, because the traceback keeps memory allocated
            torch.cuda.empty_cache()
            report(f"out of memory: {batch_tokens:,} prompt tokens at once from here on")
            continue
        for index, ids in zip(batch, found, strict=True):
            answers[index] = ids
        waiting = waiting[len(batch) :]
        progress(1 - len(waiting) / len(prompts), len(prompts) - len(waiting))
    return answers


def _generate(model: PeftModel, prompts: list[list[int]], stop: list[int], max_new_tokens: int) -> list[list[int]]:
    """Continuations of one batch, longest prompt first, with the padding after their ends."""
    width = len(prompts[0])
    ids = torch.full((len(prompts), width), stop[0])
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):  # padded on the left
        ids[line, width - len(prompt) :] = torch.tensor(prompt)
        mask[line, width - len(prompt) :] = 1
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=stop[0],
        )
    return out[:, width:].tolist()


def until(ids: list[int], stop: list[int]) -> list[int]:
    """The ids before the first end-of-sequence id."""
    return next((ids[:i] for i, id in enumerate(ids) if id in stop), ids)


def stop_ids(base: Path, eos: int) -> list[int]:
    """Ids that end an answer: the tokenizer's, then those of the base's generation_config.json."""
    file = base / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
    return list(dict.fromkeys([eos, *(named if isinstance(named, list) else [named] if named is not None else [])]))


def tokenizer_of(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base, trust_remote_code=False)


class Asked:
    """An adapter on its base, loaded as in evaluation, so that it gives the answers that were scored.

    Args:
        training: the fields for loading the base (tasks.model.quantization.FIELDS).
    """

    def __init__(self, base: Path, adapter: Path, training: dict[str, Any], config: FormattingConfig) -> None:
        self.vocabulary = Vocabulary(base, rendered=config.style == "chat")
        self.stop = stop_ids(base, self.vocabulary.eos)
        self.tokenizer = tokenizer_of(base)
        self.mark = config.ending.strip() if config.style == "template" else ""
        self.model = load(base, adapter, training)

    def answer(self, prompt: str, max_new_tokens: int) -> None:
        """Print the answer to a prompt, up to the ending."""
        ids = self.vocabulary.prefix + self.vocabulary.encode([prompt])[0] or self.stop[:1]
        given = torch.tensor([ids], device=self.model.device)
        printed = _Printed(self.tokenizer, self.mark)
        with torch.inference_mode():
            self.model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.stop,
                pad_token_id=self.stop[0],
                streamer=printed,
                stopping_criteria=[lambda ids, scores, **_: torch.tensor([printed.over], device=ids.device)],
            )


class _Printed(TextStreamer):
    """Prints text as soon as it is certain that the mark does not begin in it."""

    def __init__(self, tokenizer: Any, mark: str) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.mark, self.text, self.printed, self.over = mark, "", 0, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """transformers calls this with each new part of the answer."""
        self.text += text
        shown, mark, _ = self.text.partition(self.mark) if self.mark else (self.text, "", "")
        self.over, shown = bool(mark), shown.strip()
        if not (stream_end or mark):  # the mark may have begun
            begun = max((n for n in range(len(self.mark)) if shown.endswith(self.mark[:n])), default=0)
            shown = shown[: len(shown) - begun]
        print(visible_lines(shown[self.printed :]), end="\n" if stream_end else "", flush=True)
        self.printed = max(self.printed, len(shown))
