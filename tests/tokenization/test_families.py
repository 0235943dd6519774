"""Ids are those that the model's own tokenizer makes of the whole text, for small copies of the usual kinds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from tasks.config import TokenizationConfig
from tasks.errors import UserError
from tasks.formatting.schema import PROMPT_SCHEMA
from tasks.tokenization.encode import write_tokens
from tasks.tokenization.vocabulary import Vocabulary

SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>"]
CORPUS = ["The tenant of flat 12 has the key. Who has key number one?", "### Response: yes no maybe\n\n", "Où 中文"] * 9
SP, GPT4 = "▁", r"'s|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|[^\r\n\p{L}\p{N}]?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(prefix: bool = False, trim: bool = False, split: str = "", normalizer: Any = None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not split)
    steps = [pre_tokenizers.Split(Regex(split), "isolated"), level] if split else [level]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, vocab_size=400, show_progress=False),
    )
    if normalizer:
        made.normalizer = normalizer
    if trim:
        made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def sentencepiece(scheme: str = "", split: bool = False) -> Tokenizer:
    """As Llama 2's: bytes for what is not known. Without a scheme a normalizer writes the first space."""
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = sorted({*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:#?![]/<>\n", SP})
    tokens = SPECIAL + [f"<0x{n:02X}>" for n in range(256)]
    learnt.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(special_tokens=tokens, initial_alphabet=letters, vocab_size=500, show_progress=False),
    )
    model = json.loads(learnt.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    made = Tokenizer(models.BPE(model["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SP), normalizers.Replace(" ", SP)])
    made.decoder = decoders.Sequence([decoders.Replace(SP, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(SPECIAL)
    made.post_processor = beginning(made, "<s>")
    return made


def gemma() -> Tokenizer:
    made = sentencepiece("never")
    made.normalizer = normalizers.Replace(" ", SP)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


def beginning(made: Tokenizer, *tokens: str) -> Any:
    ids = [(token, made.token_to_id(token)) for token in tokens]
    return processors.TemplateProcessing(single=f"{' '.join(tokens)} $A", special_tokens=ids)


def begun(made: Tokenizer, *tokens: str) -> Tokenizer:
    made.add_special_tokens(list(tokens))
    made.post_processor = beginning(made, *tokens)
    return made


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
GPT2, LLAMA = {"tokenizer_class": "GPT2Tokenizer"}, {"tokenizer_class": "LlamaTokenizer"}
NOT = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
TURN = {"content": "<|new|>", "special": True, **NOT}
FAMILIES: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "smollm": (byte_level, FAST),
    "gpt2": (lambda: byte_level(trim=True), GPT2),
    "gpt2, a space before": (
        lambda: byte_level(trim=True),
        {**GPT2, "add_prefix_space": True},
    ),
    "roberta": (lambda: byte_level(prefix=True, trim=True), FAST),
    "llama 3": (lambda: begun(byte_level(split=GPT4), "<s>"), FAST),
    "qwen": (lambda: byte_level(split=GPT4, normalizer=normalizers.NFC()), {"tokenizer_class": "Qwen2Tokenizer"}),
    "glm": (lambda: begun(byte_level(split=GPT4), "[gMASK]", "<sop>"), FAST),
    "deepseek": (
        lambda: byte_level(split=r"\p{N}{1,3}|[一-龥]+"),
        {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True},
    ),
    "llama 2": (sentencepiece, {**LLAMA, "legacy": True}),
    "llama 2, not legacy": (sentencepiece, {**LLAMA, "legacy": False}),
    "llama 2, no space": (sentencepiece, {**LLAMA, "add_prefix_space": False}),
    "llama 2, no beginning": (sentencepiece, {**LLAMA, "add_bos_token": False}),
    "prepend": (sentencepiece, FAST),
    "first": (lambda: sentencepiece("first"), FAST),
    "always": (lambda: sentencepiece("always", split=True), FAST),
    "never": (lambda: sentencepiece("never"), FAST),
    "gemma": (gemma, FAST),
    "gemma's class": (gemma, {"tokenizer_class": "GemmaTokenizer"}),
    "unigram": (unigram, FAST),
    "added, decoder": (byte_level, {**FAST, "added_tokens_decoder": {"400": TURN}}),
    "added, additional": (byte_level, {**FAST, "additional_special_tokens": ["<|new|>"]}),
    "added, extra": (byte_level, {**FAST, "extra_special_tokens": ["<|new|>"]}),
    "an end of its own": (byte_level, {**FAST, "eos_token": {"__type": "AddedToken", **TURN, "content": "<|turn|>"}}),
    "an end and a beginning": (
        lambda: begun(byte_level(), "<s>"),
        {**FAST, "add_eos_token": True, "add_bos_token": False},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        place = root / name
        if not place.exists():
            place.mkdir()
            tokenizer, settings = FAMILIES[name]
            tokenizer().save(str(place / "tokenizer.json"))
            names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            (place / "tokenizer_config.json").write_text(json.dumps({**names, **settings}))
            (place / "config.json").write_text('{"vocab_size": 600}')
        return place

    return make


TEXTS = [
    ("### Key: ", "The tenant of flat 12"),
    ("### Key:", " The tenant"),
    ("Who has it?\n", "\nWho  has it?  "),
    ("", "Paris"),
    ("中文 Où é é? ", "文字😀👩‍👩‍👧 é"),
    ("end", "ing of one word"),
]
TURNS = [
    ("<s><|turn|>user\nWho has the key?</s>\n<|turn|>", "The tenant.</s>"),
    ("<s>[INST] Who has the key? [/INST]", " The tenant </s>"),
    ("<|turn|>", "yes</s>"),
    ("<|new|>Who?</s>\n<|turn|> ", " 文字😀</s>"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_models_own_tokenizer(name: str, folder: Any, tmp_path: Path) -> None:
    place = folder(name)
    own = AutoTokenizer.from_pretrained(place)
    for special, texts in (("add", TEXTS), ("rendered", TURNS)):
        rows = [
            {"id": str(n), "split": "train", "prompt": prompt, "completion": completion, "references": []}
            for n, (prompt, completion) in enumerate(texts)
        ]
        pq.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), tmp_path / "prompts.parquet")
        write_tokens(tmp_path / "prompts.parquet", special, place, 512, TokenizationConfig(), tmp_path)
        for (prompt, completion), row in zip(
            texts, pq.read_table(tmp_path / "tokens.parquet").to_pylist(), strict=True
        ):
            expected = own(prompt + completion, add_special_tokens=special == "add").input_ids
            expected += [] if expected[-1] == own.eos_token_id else [own.eos_token_id]
            assert row["input_ids"] == expected, (prompt, completion)
            learnt = [id for id, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
            said = own.decode(learnt, skip_special_tokens=True).strip()
            if name != "unigram":  # which does not know every character
                kept = own.decode(own(completion, add_special_tokens=False).input_ids, skip_special_tokens=True).strip()
                assert said.endswith(kept) and len(said) <= len(kept) + 3


@pytest.mark.parametrize("name", ["smollm", "qwen", "llama 2", "gemma", "unigram"])
def test_places_by_bytes_and_by_offsets_are_the_same(name: str, folder: Any) -> None:
    vocabulary = Vocabulary(folder(name), rendered=False)
    for prompt, completion in TEXTS:
        text = prompt + completion
        (ids,) = vocabulary.encode([text])
        fast = vocabulary.split(text, ids)
        vocabulary._bytes, known = None, vocabulary._bytes
        assert [fast(n) for n in range(len(text))] == [vocabulary.split(text, ids)(n) for n in range(len(text))]
        vocabulary._bytes = known


@pytest.mark.parametrize("name", ["smollm", "llama 2", "unigram"])
@pytest.mark.parametrize(
    "fields", [{"too_long": "truncate_completion"}, *({"cut": cut} for cut in ("left", "middle", "right"))]
)
def test_a_cut_never_falls_inside_a_character(name: str, fields: dict, folder: Any, tmp_path: Path) -> None:
    vocabulary, text = Vocabulary(folder(name), rendered=False), "文字😀Où" * 12
    rows = []
    for n in range(12):
        place = {"prompt": f"a{text}b", "completion": "yes", "input_start": 1, "input_end": 1 + len(text)}
        if "cut" not in fields:
            place = {"prompt": "a", "completion": text}
        rows.append({"id": str(n), "split": "train", "references": [], **place})
    pq.write_table(pa.Table.from_pylist(rows, PROMPT_SCHEMA), tmp_path / "prompts.parquet")
    for limit in range(20, 32):
        write_tokens(tmp_path / "prompts.parquet", "add", folder(name), limit, TokenizationConfig(**fields), tmp_path)
        found = pq.read_table(tmp_path / "tokens.parquet").to_pylist()
        assert len(found) == len(rows)
        for row in found:
            assert "\ufffd" not in vocabulary.decode(row["input_ids"]) and limit - 8 < len(row["input_ids"]) <= limit


def test_a_token_that_the_model_has_no_embedding_for_is_named(folder: Any, tmp_path: Path) -> None:
    place = folder("added, extra")
    small = tmp_path / "small"
    small.mkdir()
    for file in place.iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    size = AutoTokenizer.from_pretrained(place).convert_tokens_to_ids("<|new|>")
    (small / "config.json").write_text(f'{{"vocab_size": {size}}}')
    row = {"id": "a", "split": "train", "prompt": "<|new|>", "completion": "b", "references": []}
    pq.write_table(pa.Table.from_pylist([row], PROMPT_SCHEMA), tmp_path / "prompts.parquet")
    with pytest.raises(UserError, match=r"the token <\|new\|>, and the model has no embedding for it"):
        write_tokens(tmp_path / "prompts.parquet", "rendered", small, 512, TokenizationConfig(), tmp_path)
