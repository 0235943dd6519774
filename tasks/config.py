"""Every field a run can have: the YAML file, the command-line flags and the form in the Prefect UI are this file.

One frozen model per stage. Cheap rules are written as bounds and choices, because the Prefect API refuses those when a
run is triggered; rules across fields are validators and are refused when the configuration is read.
"""

import datetime
import difflib
import os
import re
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from tasks.text import SECRET

ARTICLE_PROMPT = """
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruct: Summarize the below conversation.

{% if dialogue %}{{ dialogue }}

{% endif %}### Output:
"""


class Section(BaseModel):
    """Fields of one subject. Unknown names and values of another type are refused; values cannot change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, hide_input_in_errors=True)


def _without_credentials(value: str) -> str:
    if SECRET.search(value):
        raise ValueError(
            "it holds credentials, which the run would keep and show: leave them out, and put them into the "
            "environment of the process that runs the flow (docs/data.md, Credentials)"
        )
    return value


def _no_url(value: str) -> str:
    if "://" in _without_credentials(value):
        raise ValueError("it is a URL, and this field takes a name or a folder")
    return value


# The patterns are for the Prefect API, which refuses what a schema refuses before it keeps anything.
Where = Annotated[
    str,
    AfterValidator(_without_credentials),
    WithJsonSchema({"type": "string", "not": {"pattern": SECRET.pattern}}),
]
Name = Annotated[
    str,
    AfterValidator(_no_url),
    WithJsonSchema({"type": "string", "not": {"pattern": rf"{SECRET.pattern}|://"}}),
]


class Metric(NamedTuple):
    """How a metric is shown, and which of two values is the better one."""

    title: str
    lower_is_better: bool = False

    @property
    def label(self) -> str:
        return f"{self.title} (lower is better)" if self.lower_is_better else self.title

    def gain(self, difference: float) -> float:
        """A difference of two values as a gain, which is better when it is larger."""
        return -difference if self.lower_is_better else difference


METRICS = {
    "loss": Metric("held-out loss", lower_is_better=True),
    "rouge1": Metric("ROUGE-1"),
    "rouge2": Metric("ROUGE-2"),
    "rougeL": Metric("ROUGE-L"),
    "rougeLsum": Metric("ROUGE-Lsum"),
    "exact_match": Metric("exact match"),
    "token_f1": Metric("token F1"),
    "chrf": Metric("chrF"),
}
"""Metrics that come with the project."""


def metric(name: str) -> Metric:
    """One that comes with the project, or a function of the user's own."""
    return METRICS.get(name, Metric(name))


PERMITTED = [name.strip() for name in os.environ.get("QLORA_FLOW_METRICS", "").split(",") if name.strip()]
"""Functions that a run may also score with when its fields come from a Prefect server."""
TRUSTED = {"own metrics": True}
"""Validation context of a configuration whose author may run code here: a file that the command reads."""


def _a_metric(name: str, info: ValidationInfo) -> str:
    if name in METRICS or name in PERMITTED:
        return name
    if ":" not in name:
        plain = {re.sub("[^a-z0-9]", "", known.lower()): known for known in METRICS}
        close = difflib.get_close_matches(re.sub("[^a-z0-9]", "", name.lower()), plain, 1)
        raise ValueError(f"there is no such metric{f' (did you mean {plain[close[0]]}?)' if close else ''}")
    if not re.fullmatch(r"([^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*", name):
        raise ValueError("write a metric of your own as package.module:function")
    if not info.context:
        raise ValueError(
            "a metric of your own is code: name it in a configuration file or a flag, or permit it by "
            "QLORA_FLOW_METRICS in the environment of the worker (docs/evaluation.md)"
        )
    return name


# The server's form offers the choices alone, and the server refuses anything else.
MetricName = Annotated[
    str, AfterValidator(_a_metric), WithJsonSchema({"type": "string", "enum": [*METRICS, *PERMITTED]})
]


class MixedSource(Section):
    """One source of `data.mix`."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = Field(
        description="Short name; ids of its rows begin with it."
    )
    path: Where = Field("", description="As data.path.")
    hub_id: Name = Field("", description="As data.hub_id.")
    hub_subset: Name = Field("", description="As data.hub_subset.")
    hub_revision: Name = Field("", description="As data.hub_revision.")
    train_split: str = Field("train", description="As data.train_split.", min_length=1)
    test_split: str = Field("test", description="As data.test_split.", min_length=1)
    share: float = Field(1.0, description="Share of its rows that is used; a hash of the id decides.", gt=0, le=1)
    max_rows: int = Field(
        0, description="Use at most this many of its rows, those with the lowest hashes (0: all).", ge=0
    )
    repeat: int = Field(1, description="How often each of its training rows is used in an epoch.", ge=1, le=100)


class DataConfig(Section):
    """Where the rows come from and which of them are held out."""

    path: Where = Field(
        "",
        description="Rows to train on: a .jsonl, .json, .csv (each also .gz or .zst), .parquet or .arrow file, a "
        "folder of them, or a glob pattern; also behind a URL (https://, s3://, gs://). A relative path starts at the "
        "working directory.",
    )
    test_path: Where = Field(
        "", description="Held-out rows in a separate file, folder or glob pattern. Empty: split `path`."
    )
    hub_id: Name = Field("", description="A data set on the Hugging Face Hub (owner/name) instead of files.")
    hub_subset: Name = Field("", description="Configuration (subset) of the Hub data set. Empty: its default.")
    hub_revision: Name = Field(
        "", description="Branch, tag or commit of the Hub data set; resolved to a commit when a run begins."
    )
    train_split: str = Field("train", description="Name of the training split in the source.", min_length=1)
    test_split: str = Field("test", description="Name of the held-out split in the source.", min_length=1)
    id_column: str = Field(
        "id", description="Column that names a row. Without it, ids are made from the row's content."
    )
    group_column: str = Field(
        "",
        description="Rows with the same value in this column are always in the same split, also for validation. Empty: "
        "the row id decides.",
    )
    test_share: float = Field(
        0.2,
        description="Share of the rows held out when the source has no held-out split (a fraction of 1). A hash of a "
        "row's id or group decides, so a row stays in its split as the data grows.",
        gt=0,
        lt=1,
    )
    max_train_rows: int = Field(0, description="Use at most this many training rows (0: all).", ge=0)
    mix: list[MixedSource] = Field(
        [],
        description="Several sources instead of `path` or `hub_id`: each has a name, a path or hub_id of its own, and "
        "share, max_rows or repeat as it needs (docs/data.md). There is no flag for it.",
    )
    max_lost_share: float = Field(
        0.05,
        description="The run fails when more than this share of the rows (a fraction of 1) is unusable or too long.",
        ge=0,
        le=1,
    )
    max_removed_share: float = Field(
        0.5,
        description="The run fails before training when more than this share of the rows (a fraction of 1) of the "
        "adapter's last version is not in the source any more, as after an export that broke. 1: never.",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(map(bool, (self.path, self.hub_id, self.mix))) != 1:
            raise ValueError(
                "give either data.path (files) or data.hub_id (a Hub data set), one of the two, or several in data.mix"
            )
        names = [source.name for source in self.mix]
        for source in self.mix:
            if names.count(source.name) > 1:
                raise ValueError(f"data.mix has two sources called {source.name}; each needs a name of its own")
            if bool(source.path) == bool(source.hub_id):
                raise ValueError(f"data.mix: the source {source.name} needs either a path or a hub_id")
        if self.mix and self.test_path:
            raise ValueError("data.test_path goes with data.path; a source of data.mix is split by its files or ids")
        if self.test_path and self.hub_id:
            raise ValueError(
                "data.test_path goes with data.path; a Hub data set names its held-out split in data.test_split"
            )
        return self


class ModelConfig(Section):
    """The base model. It is read in place and never changed."""

    base: Name = Field(
        "smollm2-135m-instruct",
        description="A model id on the Hub (owner/name, safetensors only), a local folder, or the bundled example "
        "model smollm2-135m-instruct.",
        min_length=1,
    )
    revision: Name = Field(
        "", description="Branch, tag or commit of a Hub model; resolved to a commit when a run begins."
    )


class FormattingConfig(Section):
    """How a row becomes a prompt and the answer to learn."""

    style: Literal["template", "chat", "text"] = Field(
        "template",
        description="template: the Jinja2 texts below. chat: the model's own chat template over a column of messages. "
        "text: a column of plain text, of which every token is learnt.",
    )
    prompt: str = Field(
        ARTICLE_PROMPT,
        description="Jinja2 template of the prompt (sandboxed); every column of the row is a variable, "
        "and `row` the row.",
        min_length=1,
    )
    completion: str = Field("{{ summary }}", description="Jinja2 template of the answer to learn.", min_length=1)
    ending: str = Field(
        "\n\n### End", description="Text learnt after the answer; a generated answer is cut where it begins."
    )
    input_column: str = Field(
        "dialogue",
        description="Column whose text may be shortened when a row is too long; instruction and answer stay whole.",
    )
    references: list[str] = Field(
        [],
        description="Columns with human answers to score against (text, or lists of texts); the best one counts. "
        "Empty: the completion.",
    )
    messages_column: str = Field(
        "messages",
        description="Column with the conversation (style: chat): a list of role and content, or of ShareGPT's from and "
        "value; also as JSON text.",
        min_length=1,
    )
    answer_column: str = Field(
        "",
        description="Column with the answer to learn (style: chat), where `messages_column` has only what comes before "
        "it, such as `chosen` of preference rows: text, a message, or a list of messages.",
    )
    text_column: str = Field("text", description="Column with the text (style: text).", min_length=1)
    date: str = Field(
        "2025-01-01",
        description="What a chat template is told when it asks for today's date, as year-month-day.",
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    )
    dropped: Literal["refuse", "allow"] = Field(
        "refuse",
        description="A row of which the chat template does not write every message, call, tool and thought, or that "
        "has a flag of another trainer that cannot be obeyed. refuse: it is lost, with the reason. allow: it is learnt "
        "without that, and listed in the ledger.",
    )

    @field_validator("date")
    @classmethod
    def _a_day(cls, date: str) -> str:
        datetime.date.fromisoformat(date)
        return date


class TokenizationConfig(Section):
    """How prompts become token ids and what happens to a row that is too long."""

    max_length: int = Field(
        2048, description="Longest row in tokens; the model's own limit applies when it is lower.", ge=16, le=1_048_576
    )
    too_long: Literal["truncate_prompt", "truncate_completion", "drop"] = Field(
        "truncate_prompt",
        description="truncate_prompt: shorten the input column, keep the rest whole. truncate_completion: cut the "
        "answer's end, the prompt stays whole. drop: leave the row out. Every such row is listed in the ledger.",
    )
    cut: Literal["middle", "left", "right"] = Field(
        "middle", description="Which part of the input column truncate_prompt removes."
    )


class TrainingConfig(Section):
    """Quantization, LoRA and optimization."""

    quantization: Literal["4bit", "none"] = Field(
        "4bit",
        description="4bit: QLoRA on a base in 4 bits through bitsandbytes. none: plain LoRA on the base as it is.",
    )
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format (bnb_4bit_quant_type).")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Number format of the computation (bnb_4bit_compute_dtype)."
    )
    double_quant: bool = Field(
        False, description="Quantize the quantization constants too (bnb_4bit_use_double_quant)."
    )
    lora_r: int = Field(16, description="Rank of the LoRA matrices.", ge=1, le=1024)
    lora_alpha: int = Field(
        32, description="Scale of the LoRA update: alpha / r, with rslora alpha / sqrt(r).", ge=1, le=4096
    )
    lora_dropout: float = Field(0.0, description="Dropout on the LoRA input (probability).", ge=0, lt=1)
    target_modules: list[str] = Field(
        ["all-linear"],
        description="Names of the layers to adapt, or all-linear for every linear layer but the head.",
        min_length=1,
    )
    modules_to_save: list[str] = Field(
        [],
        description="embed_tokens, lm_head or both, by the base's own names: trained in full beside LoRA, for words "
        "that the base does not know; 16 bytes per value. Refused if the base uses one matrix for both.",
    )
    rslora: bool = Field(False, description="Rank-stabilized scaling, alpha / sqrt(r).")
    dora: bool = Field(False, description="Weight-decomposed LoRA (DoRA): a trained magnitude for each output.")
    learning_rate: float = Field(2e-4, description="Peak learning rate.", gt=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup_share: float = Field(
        0.05, description="Share of the steps in which the learning rate rises (a fraction of 1).", ge=0, lt=1
    )
    weight_decay: float = Field(0.0, description="AdamW weight decay.", ge=0, le=1)
    max_grad_norm: float = Field(1.0, description="Gradient norm above which gradients are scaled down.", gt=0)
    neftune_alpha: float = Field(
        0.0, description="NEFTune: noise on the embeddings while training; 5 is usual, 0: none.", ge=0, le=100
    )
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field(
        "adamw", description="adamw: torch's fused AdamW. paged_adamw_8bit: bitsandbytes, less memory, GPU only."
    )
    batch_size: int = Field(
        8,
        description="Rows per optimizer step, over all processes. They are packed into flat sequences of at most "
        "micro_batch_tokens, so this decides the result and micro_batch_tokens only speed and memory.",
        ge=1,
        le=65_536,
    )
    epochs: float = Field(1.0, description="Passes over the training rows if max_steps is 0.", gt=0, le=1000)
    max_steps: int = Field(0, description="Optimizer steps; 0: as many as `epochs` needs.", ge=0)
    validation_share: float = Field(
        0.0,
        description="Share of the training rows held back (a fraction of 1; 0: none); the adapter with the lowest loss "
        "on them is kept. A hash of a row's id or group decides. Held-out rows, which the scores come from, are never "
        "used for this.",
        ge=0,
        le=0.5,
    )
    validation_steps: int = Field(
        0, description="Optimizer steps between two validations; 0: four validations an epoch.", ge=0
    )
    patience: int = Field(
        0, description="Training ends after this many validations in a row without a lower loss; 0: never.", ge=0
    )
    micro_batch_tokens: int = Field(
        0,
        description="Tokens in one forward pass; 0: as many as fit, which is measured. Halved automatically, at the "
        "same rows per step, when the GPU runs out of memory.",
        ge=0,
        le=1_048_576,
    )
    speed: Literal["auto", "fast", "balanced", "lean"] = Field(
        "auto",
        description="What is kept for the backward pass. fast: everything. balanced: all but norms and activations, a "
        "third less memory. lean: the input of each layer, a tenth of the memory, a third slower. auto: the fastest "
        "that fits.",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Compile the decoder layers (torch.compile) on a GPU: faster after about a minute of start-up. "
        "auto: when the run is long enough to gain from it.",
    )
    processes: int = Field(
        1,
        description="Training processes on this machine, each with a GPU of its own; the rows of a step are divided "
        "among them. 0: one for each GPU. For several machines see docs/gpus.md.",
        ge=0,
        le=64,
    )
    sharding: Literal["auto", "never", "always"] = Field(
        "auto",
        description="Whether the frozen base is divided among the processes instead of copied to each: slower, and the "
        "layers are not compiled. auto: when the base does not fit on one GPU.",
    )
    seed: int = Field(0, description="Seed of row order, adapter initialization and dropout.", ge=0, lt=2**32)

    @model_validator(mode="after")
    def _none_is_void(self) -> Self:
        """Refuse a setting that another one leaves without effect: the run would not be what was asked for."""
        in_4_bits, divided = self.quantization == "4bit", self.sharding == "always"
        rules = [
            (
                (self.patience or self.validation_steps) and not self.validation_share,
                "training.patience and training.validation_steps need rows to validate on: set "
                "training.validation_share, for instance to 0.05",
            ),
            (
                not in_4_bits and (self.quant_type != "nf4" or self.double_quant),
                "training.quant_type and training.double_quant need a base in 4 bits: set training.quantization to "
                "4bit, or leave them out",
            ),
            (
                self.max_steps and self.epochs != 1,
                "training.max_steps and training.epochs both say when training ends: give one of them, and leave the "
                "other at its default",
            ),
            (
                "all-linear" in self.target_modules and len(self.target_modules) > 1,
                "training.target_modules: all-linear stands for every linear layer; give it alone, or only names",
            ),
            (
                self.processes > self.batch_size,
                f"training.processes {self.processes} leaves processes without a row of a step's {self.batch_size}: "
                "lower it, or raise training.batch_size",
            ),
            (
                divided and self.processes == 1,
                "training.sharding always needs several processes: set training.processes to 2 or more",
            ),
            (divided and self.dora, "training.sharding always cannot divide DoRA layers: set training.dora to false"),
            (
                divided and self.compile == "always",
                "training.sharding always leaves the layers uncompiled: set training.compile to auto or never",
            ),
        ]
        if broken := [sentence for wrong, sentence in rules if wrong]:
            raise ValueError(". ".join(broken))
        return self


class EvaluationConfig(Section):
    """How base and tuned model are compared on the held-out rows."""

    max_rows: int = Field(
        0, description="Score at most this many held-out rows, chosen by hash of their id (0: all).", ge=0
    )
    max_new_tokens: int = Field(128, description="Longest generated answer in tokens.", ge=1, le=8192)
    batch_tokens: int = Field(
        0,
        description="Prompt tokens in one pass (0: as many as memory allows). Halved when memory runs out.",
        ge=0,
        le=1_048_576,
    )
    metrics: list[MetricName] = Field(
        [*METRICS],
        description=f"What scores the models: {', '.join(METRICS)}; in a file or flag also package.module:function of "
        "an installed package (docs/evaluation.md).",
        min_length=1,
        json_schema_extra={"uniqueItems": True},
    )
    slices: list[str] = Field(
        [],
        description="Columns of the data: rows with one value are scored apart as well. Slices by the length of the "
        "prompt and by shortened or not are always made.",
        json_schema_extra={"uniqueItems": True},
    )
    confidence: float = Field(0.95, description="Level of the bootstrap interval on tuned minus base.", gt=0.5, lt=1)
    seed: int = Field(0, description="Seed of the bootstrap.", ge=0, lt=2**32)

    @field_validator("metrics")
    @classmethod
    def _each_once(cls, metrics: list[str]) -> list[str]:
        if twice := [name for name in metrics if metrics.count(name) > 1]:
            raise ValueError(f"{twice[0]} is given twice")
        return metrics


class PublishingConfig(Section):
    """Where a finished adapter goes."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        "adapter", description="Name of the adapter in the registry: lower-case letters, digits, . _ -"
    )
    registry: Name = Field("", description="Folder of numbered versions. Empty: `registry` inside the store.")
    hub_repo: str = Field(
        "",
        description="Hub repository (owner/name) to upload the version to. Empty: none.",
        pattern=r"^([A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)?$",
    )
    hub_private: bool = Field(True, description="Create that repository as private.")


GUARD = re.compile(r"(?P<metric>[^\s\[\]]+)(\[(?P<column>[^=\]]+)=(?P<value>[^\]]*)\])? (?P<fall>\d*\.?\d+)")
"""As a guard is written: `rougeL 0.02`, or `rougeL[topic=travel] 0.03` for the rows of a slice."""


class PromotionConfig(Section):
    """When a new version takes the place of the one in use (docs/promotion.md)."""

    metric: Name = Field(
        "loss", description="Metric of evaluation.metrics in which the new version must be better.", min_length=1
    )
    min_gain: float = Field(0.0, description="It must be better by more than this, in units of the metric.", ge=0)
    guards: list[str] = Field(
        [],
        description="What must not fall by more than a number: METRIC NUMBER, such as rougeL 0.02, or "
        "METRIC[COLUMN=VALUE] NUMBER for a slice of the test rows, such as rougeL[topic=travel] 0.03.",
    )
    error_rate: float = Field(
        0.05,
        description="Chance that any promotion within the life of a test set was of an adapter that is no better.",
        gt=0,
        le=0.5,
    )
    comparisons: int = Field(
        100,
        description="How many comparisons that life has. Each has the level error_rate / comparisons.",
        ge=1,
        le=100_000,
    )
    approval: bool = Field(
        False, description="A better version waits until a person promotes it; the run completes without."
    )

    @field_validator("guards")
    @classmethod
    def _are_guards(cls, guards: list[str]) -> list[str]:
        if wrong := [guard for guard in guards if not GUARD.fullmatch(guard)]:
            raise ValueError(f"{wrong[0]!r} is no guard: write rougeL 0.02, or rougeL[topic=travel] 0.02 for a slice")
        return guards


class ExecutionConfig(Section):
    """Retries, timeouts and checkpoints. No result depends on these, so they are part of no cache key."""

    retries: int = Field(
        3,
        description="How often a stage is retried after a transient failure: network, busy disk, a killed or hanging "
        "child process. Training continues from its last checkpoint.",
        ge=0,
        le=100,
    )
    retry_seconds: float = Field(
        10,
        description="Seconds before the first retry; doubled for each further one, with jitter.",
        ge=0,
        le=3600,
    )
    hang_minutes: float = Field(
        30, description="A training or evaluation process that reports nothing for this many minutes is ended.", gt=0
    )
    checkpoint_steps: int = Field(
        0,
        description="Optimizer steps between two checkpoints; 0: by time alone. One is saved every 5 minutes in any "
        "case. The last two are kept.",
        ge=0,
    )
    prepare_timeout_minutes: float = Field(
        240, description="Longest time for each of download, format and tokenize in minutes.", gt=0
    )
    train_timeout_minutes: float = Field(2880, description="Longest time for training in minutes.", gt=0)
    evaluate_timeout_minutes: float = Field(720, description="Longest time for evaluation in minutes.", gt=0)
    publish_timeout_minutes: float = Field(
        60, description="Longest time for each of publishing and promotion in minutes.", gt=0
    )


class ScheduleConfig(Section):
    """When a run is worth it. A run of unchanged rows, base, configuration and code reuses every stage in any case."""

    min_new_rows: int = Field(
        0,
        description="Skip the run while fewer rows than this were added or changed since the adapter's last version, "
        "and nothing else changed (0: never skip).",
        ge=0,
    )
    max_age_days: float = Field(
        0,
        description="With fewer new rows, train all the same when the last version is this old, in days (0: never).",
        ge=0,
    )

    @model_validator(mode="after")
    def _needs_a_threshold(self) -> Self:
        if self.max_age_days and not self.min_new_rows:
            raise ValueError("schedule.max_age_days needs schedule.min_new_rows, without which no run is skipped")
        return self


SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "formatting": FormattingConfig,
    "tokenization": TokenizationConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "publishing": PublishingConfig,
    "promotion": PromotionConfig,
    "execution": ExecutionConfig,
    "schedule": ScheduleConfig,
}
