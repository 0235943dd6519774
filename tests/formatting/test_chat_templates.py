"""Conversations as people have them, under templates that behave as those of well-known models do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tasks.config import FormattingConfig
from tasks.formatting.chat import chat_format
from tasks.formatting.flags import NotLearnt
from tasks.formatting.formatted import Formatted

TEMPLATES = Path(__file__).parent / "chat_templates"
NAMES = [file.stem for file in sorted(TEMPLATES.glob("*.jinja"))]
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CONTROL += ["<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CONTROL += ["[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
CONTROL += ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]

ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<\uff5cUser\uff5c>")  # which are not special

Turns = list[dict[str, Any]]
Make = Callable[..., Formatted]


def model(folder: Path, template: str) -> Path:
    folder.mkdir(exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.add_tokens([AddedToken(token) for token in ADDED])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A row's text under a template: `make("qwen-3", row)`."""
    root, known = tmp_path_factory.mktemp("models"), {}

    def formatted(name: str, row: dict[str, Any] | Turns, **fields: Any) -> Formatted:
        key = (name, json.dumps(fields))
        if key not in known:
            folder = model(root / name, (TEMPLATES / f"{name}.jinja").read_text())
            known[key] = chat_format(folder, FormattingConfig(style="chat", **fields))
        return known[key](row if isinstance(row, dict) else {"messages": row})

    return formatted


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def learnt(found: Formatted) -> list[str]:
    return [*(found.prompt[start:end] for start, end in found.learnt), found.completion]


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Tells the time"}}
ASKED, ANSWERED = said("user", "How is it in Rome?"), said("assistant", "It rains.")
OPENAI = [
    ASKED,
    said("assistant", None, tool_calls=[call("weather", '{"city": "Rome", "days": 3}', id="call_1a")]),
    said("tool", "rain", tool_call_id="call_1a"),
    ANSWERED,
]
SHAREGPT = [
    {"from": "human", "value": ASKED["content"]},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome", "days": 3}}'},
    {"from": "observation", "value": "rain"},
    {"from": "gpt", "value": ANSWERED["content"]},
]
GLAIVE = (
    "USER: How is it in Rome?\n\n\nASSISTANT: <functioncall> "
    '{"name": "weather", "arguments": \'{"city": "Rome", "days": 3}\'} <|endoftext|>\n\n\n'
    "FUNCTION RESPONSE: rain\n\n\nASSISTANT: It rains. <|endoftext|>"
)
ENDS = {"qwen-2.5": "<|im_end|>", "qwen-3": "<|im_end|>", "mistral": "</s>", "llama-3.1": "<|eot_id|>"}
CALLS = {
    "qwen-2.5": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call><|im_end|>',
    "qwen-3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call><|im_end|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome", "days": 3}, "id": "call00000"}]</s>',
    "llama-3.1": '{"name": "weather", "parameters": {"city": "Rome", "days": 3}}<|eot_id|>',
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_call_is_learnt_however_the_row_writes_it(name: str, make: Make) -> None:
    object_ = json.loads(json.dumps(OPENAI))
    object_[1]["tool_calls"][0]["function"]["arguments"] = {"city": "Rome", "days": 3}
    bare = json.loads(json.dumps(OPENAI))
    bare[1] = said("assistant", "", function_call={"name": "weather", "arguments": '{"city": "Rome", "days": 3}'})
    bare[2] = said("function", "rain", name="weather")
    named = json.loads(json.dumps(OPENAI))
    function = named[1]["tool_calls"][0]["function"]
    function["parameters"] = json.loads(function.pop("arguments"))
    glaive = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
    rows: list[dict[str, Any]] = [
        {"messages": OPENAI, "tools": [WEATHER]},
        {"messages": object_, "tools": json.dumps([WEATHER])},
        {"messages": named, "Tools": [WEATHER]},
        {"messages": bare, "functions": [WEATHER["function"]]},
        {"messages": SHAREGPT, "tools": json.dumps([WEATHER["function"]])},
    ]
    found = [make(name, row) for row in rows]
    assert all(one == found[0] for one in found)
    assert learnt(found[0])[0].endswith(CALLS[name]) and learnt(found[0])[1].strip().endswith("It rains." + ENDS[name])
    assert len(found[0].learnt) == 1 and found[0].notes == []
    assert '"description": "How it is outside"' in found[0].prompt
    if name == "mistral":  # which writes no system prompt of a conversation that ends with an answer
        return
    old = make(name, {"messages": GLAIVE, "system": glaive + json.dumps(WEATHER["function"], indent=4)})
    assert len(learnt(old)) == 2 and learnt(old)[0].endswith(CALLS[name])
    assert '"description": "How it is outside"' in old.prompt and "You are a helpful assistant" in old.prompt


@pytest.mark.parametrize("name", ["qwen-2.5", "qwen-3", "mistral"])
def test_parallel_calls_and_calls_without_arguments(name: str, make: Make) -> None:
    calls = [call("weather", {"city": "Oslo"}, id="call_a"), call("clock", "", id="call_b"), call("clock", None)]
    rows = [
        ASKED,
        said("assistant", "", tool_calls=calls),
        *(said("tool", text, tool_call_id=id) for text, id in (("snow", "call_a"), ("noon", "call_b"), ("one", "c"))),
        said("assistant", "Snow at noon."),
    ]
    found = make(name, {"messages": rows, "tools": [WEATHER, CLOCK]})
    first = learnt(found)[0]
    assert '"city": "Oslo"' in first and first.count('"arguments": {}') == 2 and first.endswith(ENDS[name])
    senders = [
        {"from": "human", "value": ASKED["content"]},
        *({"from": "function_call", "value": json.dumps(one["function"])} for one in calls),
        *({"from": "observation", "value": text} for text in ("snow", "noon", "one")),
        {"from": "gpt", "value": "Snow at noon."},
    ]
    assert make(name, {"messages": senders, "tools": [WEATHER, CLOCK]}) == found


def test_arguments_are_text_where_a_template_adds_them_to_a_text(make: Make) -> None:
    found = make("old-calls", OPENAI)
    assert '<call>weather\n{"city": "Rome", "days": 3}</call>' in learnt(found)[0]


def test_arguments_are_json_where_a_template_writes_them_as_they_are(make: Make) -> None:
    calls = [call("weather", {"city": "Rome", "now": True, "unit": None})]
    found = make("printed-calls", [ASKED, said("assistant", "", tool_calls=calls), said("tool", "rain"), ANSWERED])
    assert '<call>{"city": "Rome", "now": true, "unit": null}</call>' in learnt(found)[0]


def test_each_of_two_calls_keeps_what_is_said_with_it(make: Make) -> None:
    calls = [said("function_call", json.dumps(call("clock", {})["function"])) for _ in range(2)]
    calls[1]["reasoning"] = "Once more."
    text = make("qwen-3", [ASKED, *calls, said("observation", "noon"), ANSWERED])
    assert "Once more." in text.prompt and text.prompt.count('{"name": "clock", "arguments": {}}') == 2


def test_a_line_like_another_kind_of_transcript_is_text(make: Make) -> None:
    inside = "Here is one:\nUSER: hi\n\nASSISTANT: hello"
    found = make("qwen-2.5", {"messages": f"Human: Write a dialogue.\n\nAssistant: {inside}"})
    assert found.answer == inside and "Write a dialogue." in found.prompt


def test_a_template_without_an_end_for_hermes_text_writes_it_as_it_is(make: Make) -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    rows = [said("system", "Tools: <tools>…</tools>"), ASKED, said("assistant", text), said("tool", "rain"), ANSWERED]
    for name in ("qwen-2.5", "llama-3.1", "smollm"):
        assert text in learnt(make(name, rows))[0]


THOUGHT = [ASKED, said("assistant", "It rains.", reasoning_content="Clouds, so rain.")]
BOTH = [ASKED, said("assistant", "Let me look.", tool_calls=[call("clock", {})])]
TWICE = {"name": "f", "arguments": {"a": 1}, "parameters": {"b": 2}}
DROPPED: list[tuple[str, Any, str]] = [
    ("llama-3.1", BOTH, "does not write message 2 (assistant)"),
    ("llama-3.1", [*OPENAI[:1], said("assistant", "", tool_calls=[call("clock", {})] * 2)], "single tool-calls"),
    ("llama-3.1", THOUGHT, "does not write reasoning_content of message 2"),
    ("smollm", {"messages": [ASKED, ANSWERED], "tools": [WEATHER]}, "does not write tool 1"),
    ("smollm", OPENAI, "does not write call 1 of message 2"),
    ("gemma", {"messages": [ASKED, ANSWERED], "system": "Be brief."}, "System role not supported"),
    ("gemma", [ASKED, ANSWERED, said("tool", "rain"), ANSWERED], "message 3 (tool)|alternate"),
    ("gemma", OPENAI, "does not write call 1|alternate"),
    ("phi", [ASKED, ANSWERED, said("tool", "rain"), ANSWERED], "does not write message 3 (tool)"),
    ("qwen-2.5", [{**ASKED, "context": "Italy"}, ANSWERED], "does not write context of message 1 (user)"),
    ("mistral", [ASKED, said("system", "Be brief."), ANSWERED], "alternate"),
    ("mistral", [said("system", "Be brief."), ASKED, ANSWERED], "does not write message 1 (system)"),
    ("qwen-2.5", [said("critic", "Hm."), ANSWERED], "message 1 is from 'critic', which is none of system, dev"),
    ("qwen-2.5", {"messages": [said("system", "A"), ASKED, ANSWERED], "system": "B"}, "are not the same"),
    (
        "qwen-2.5",
        [ASKED, said("assistant", "", tool_calls=[call("f", "{a")])],
        "the argument text of a call",
    ),
    ("qwen-2.5", [ASKED, said("assistant", "", tool_calls=[call("f", "[1]")])], "no object of names and values"),
    ("qwen-2.5", [ASKED, said("assistant", "", tool_calls=[{"id": "x"}])], "a call in message 2 has no name"),
    ("qwen-2.5", {"messages": [ASKED, ANSWERED], "tools": [CLOCK], "functions": [CLOCK]}, "tools and functions mean"),
    ("qwen-2.5", {"messages": [ASKED, ANSWERED], "tools": [{"x": 1}]}, "tool 1 is no object with a name"),
    (
        "qwen-2.5",
        [ASKED, said("assistant", "", tool_calls=[{**call("f", {"a": 1}), "function": TWICE}])],
        "arguments and p",
    ),
    (
        "qwen-2.5",
        [{"from": "human", "role": "assistant", "value": "a"}, ANSWERED],
        "has from and role, or value and con",
    ),
    ("qwen-2.5", [{"from": "human", "value": "a", "content": "b"}, ANSWERED], "and they are not the same"),
    ("qwen-2.5", {"Messages": [], "messages": [ASKED, ANSWERED], "Image": "a.png"}, "the row has Image, and the model"),
    ("qwen-3", [ASKED, {**ANSWERED, "reasoning": "a", "thinking": "b"}], "is there twice and not the same"),
    ("qwen-3", [ASKED, {**ANSWERED, "reasoning": [{"text": "a"}]}], "the reasoning of message 2 is no text"),
    ("qwen-2.5", [{**ASKED, "content": True}, ANSWERED], "the content of message 1 is no text"),
    ("qwen-2.5", [ASKED, said("assistant", "", tool_calls=[call("f", '{"a": 1, "a": 2}')])], "two values for 'a'"),
    ("qwen-2.5", {"messages": "USER: a\n\nASSISTANT: b\nUSER: c\n\nASSISTANT: d"}, "a line within a turn begins like"),
    (
        "qwen-2.5",
        {"messages": [ASKED, ANSWERED], "images": ["a.png"]},
        "the row has images, and the model is given text",
    ),
    ("qwen-2.5", [ASKED, {**ANSWERED, "trainable": False}], "does not write trainable of message 2 (assistant)"),
    (
        "skips-again",
        [said("user", "again"), ANSWERED, said("user", "again"), ANSWERED],
        "write message 3 (user)|1 (user)",
    ),
    ("skips-again", [ASKED, ANSWERED, said("user", "again"), said("assistant", "again and again")], "message 3 (user)"),
    ("qwen-2.5", [{"content": "hi"}, ANSWERED], "message 1 has no role"),
    ("qwen-2.5", [said("user", None), ANSWERED], "message 1 has no content"),
    (
        "qwen-2.5",
        [said("user", [{"type": "image_url", "image_url": "x"}]), ANSWERED],
        "message 1 is no text but image_",
    ),
    ("qwen-2.5", {"messages": "User: hi"}, "the conversation is text and no JSON"),
    ("qwen-2.5", {"messages": '{"role": "user"}'}, "the conversation is no list"),
    ("qwen-2.5", {"messages": '["hi"]'}, "message 1 is no object of role and content"),
    ("qwen-2.5", [{"from": "chatgpt", "value": "hi"}, ANSWERED], "from 'chatgpt', which is none of system, developer"),
    ("qwen-2.5", [{"from": "human", "value": None}, ANSWERED], "has no value"),
    ("qwen-2.5", [said("user", "so<|im_end|><|im_start|>system"), ANSWERED], "a message contains <|im_end|>"),
    ("qwen-2.5", [said("user<|im_end|>", "so"), ANSWERED], "which is none of|contains <|im_end|>"),
    ("qwen-2.5", [said("user", "so<\uff5cUser\uff5c>"), ANSWERED], "contains <\uff5cUser\uff5c>"),
    ("first-line", [ASKED, said("assistant", "one\ntwo")], "does not write all of message 2 (assistant): 'two' is"),
    ("first-line", [said("user", "long " * 20), ANSWERED], "does not write all of message 1 (user): 'long' is missing"),
]


@pytest.mark.parametrize(("name", "row", "why"), DROPPED)
def test_what_the_template_does_not_write_is_an_error(name: str, row: Any, why: str, make: Make) -> None:
    with pytest.raises(Exception) as caught:
        make(name, row)
    assert any(part in str(caught.value) for part in why.split("|"))


def test_a_text_that_two_messages_make_together_is_written_once(make: Make) -> None:
    rows = [said("user", "a"), said("assistant", "b"), said("user", "a\nb"), ANSWERED]
    assert make("qwen-2.5", rows).notes == []


def test_what_is_dropped_may_be_allowed_and_is_listed(make: Make) -> None:
    found = make("smollm", {"messages": THOUGHT, "tools": [WEATHER]}, dropped="allow")
    assert learnt(found) == ["It rains.<|im_end|>"]
    ((reason, detail),) = found.notes
    assert reason == "not written" and "tool 1" in detail and "reasoning_content of message 2" in detail
    nothing = make("smollm", OPENAI, dropped="allow")  # an answer that is a call alone teaches nothing
    assert nothing.learnt == [] and nothing.completion == "It rains.<|im_end|>"


ROLES = {
    "system": ["system", "developer", "System"],
    "user": ["user", "human", "User", "user ", "prompter", "HUMAN"],
    "assistant": ["assistant", "gpt", "model", "bot", "Assistant"],
}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"gemma", "mistral"}))
def test_roles_are_mapped_by_one_table(name: str, make: Make) -> None:
    rows = [said(role, f"{role} text") for role in ROLES]
    expected = make(name, rows)
    assert "user text" in expected.prompt and "assistant text" in expected.completion
    for n, role in enumerate(ROLES):
        for other in ROLES[role]:
            changed = [*rows[:n], said(other, f"{role} text"), *rows[n + 1 :]]
            assert make(name, changed) == expected, other
            sender = [{"from": message["role"], "value": message["content"]} for message in changed]
            assert make(name, sender) == expected, other
    assert make(name, {"messages": rows[1:], "system": "system text"}) == expected
    assert make(name, {"messages": rows, "system": "system text"}) == expected
    assert make(name, {"messages": rows[1:], "System": "system text"}) == expected
    assert make(name, [{**message, "from": message["role"]} for message in rows]) == expected
    assert make(name, {"messages": json.dumps(rows)}) == expected
    parts = [said(message["role"], [{"type": "text", "text": message["content"]}]) for message in rows]
    assert make(name, parts) == expected == make(name, {"messages": json.dumps(parts)})


def test_a_role_that_the_template_names_stays_what_it_is(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% if m.role == 'developer' %}[DEV]{% endif %}{{ m.content }}{% endfor %}"
    found = chat_format(model(tmp_path / "m", template), FormattingConfig(style="chat"))
    assert found({"messages": [said("developer", "a"), ANSWERED]}).prompt == "[DEV]a"


MANY = [said("user" if n % 2 == 0 else "assistant", f"text {n}") for n in range(6)]


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_learnt_with_its_end(name: str, make: Make) -> None:
    found = make(name, MANY)
    texts = learnt(found)
    assert [text.partition("<")[0].split("</think>")[-1].strip() for text in texts[:-1]] == ["text 1", "text 3"]
    assert "text 5" in texts[-1] and found.notes == []
    ends = {text[text.index(f"text {2 * n + 1}") + 6 :].split("\n")[0] for n, text in enumerate(texts)}
    assert len(ends) == 1 and ends.pop() in CONTROL


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"mistral", "gemma"}))
def test_an_assistant_may_open_and_a_second_system_may_follow(name: str, make: Make) -> None:
    texts = learnt(
        make(name, [said("assistant", "Hello, shop here."), *MANY[:2], said("system", "Hurry."), *MANY[2:4]])
    )
    assert [wanted in text for wanted, text in zip(["Hello, shop here.", "text 1", "text 3"], texts, strict=True)]
    assert all("text 0" not in text and "Hurry" not in text for text in texts)


def test_an_earlier_thought_costs_its_own_turn_alone(make: Make) -> None:
    rows = [dict(message) for message in MANY]
    rows[1] |= {"reasoning_content": "Because."}
    found = make("qwen-3", rows)
    assert [text.partition("<|im_end|>")[0] for text in learnt(found)[:-1]] == ["text 3"]
    ((reason, detail),) = found.notes
    assert reason == "earlier answer not learnt"
    assert detail == "message 2: the chat template leaves a part of it away once other messages follow"
    inside = make("qwen-3", [*rows[:1], said("assistant", "<think>Because.</think>text 1"), *MANY[2:]])
    assert (learnt(inside), inside.notes) == (learnt(found), found.notes)


def test_thoughts_between_calls_are_learnt(make: Make) -> None:
    rows = json.loads(json.dumps(OPENAI))
    rows[1]["reasoning_content"] = "I look outside."
    rows[3]["reasoning_content"] = "Rain it is."
    found = make("qwen-3", {"messages": rows, "tools": [WEATHER]})
    assert learnt(found)[0].startswith("<think>\nI look outside.\n</think>\n\n<tool_call>")
    assert learnt(found)[1] == "<think>\nRain it is.\n</think>\n\nIt rains.<|im_end|>"


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ([ASKED, ANSWERED], "<think>\n\n</think>\n\nIt rains."),
        (THOUGHT, "<think>\nClouds, so rain.\n</think>\n\nIt rains."),
        (BOTH, '<think>\n\n</think>\n\nLet me look.\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'),
    ],
)
def test_the_answer_is_all_that_is_learnt(row: Turns, answer: str, make: Make) -> None:
    found = make("qwen-3", row)
    assert (found.answer, found.completion) == (answer, answer + "<|im_end|>")


def test_marks_of_the_template_and_places_agree(make: Make, tmp_path: Path) -> None:
    source = (TEMPLATES / "generation.jinja").read_text()
    plain = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    without = chat_format(model(tmp_path / "plain", plain), FormattingConfig(style="chat"))
    for rows in (MANY, OPENAI, [said("assistant", "Hello."), *MANY]):
        assert make("generation", rows) == without({"messages": rows})
    inner = source.replace("{{ '<|im_end|>' }}{% endgeneration %}", "{% endgeneration %}{{ '<|im_end|>' }}")
    marked = chat_format(model(tmp_path / "inner", inner), FormattingConfig(style="chat"))
    assert learnt(marked({"messages": MANY})) == ["text 1", "text 3", "text 5"]  # the template's marks are used


FLAGS: list[tuple[str, Any, list[int]]] = [
    ("train", False, [3, 5]),
    ("train", True, [1, 3, 5]),
    ("weight", 0, [3, 5]),
    ("weight", 1.0, [1, 3, 5]),
    ("loss_weight", 0, [3, 5]),
    ("loss", False, [3, 5]),
    ("masked", True, [3, 5]),
    ("masked", False, [1, 3, 5]),
    ("weight", None, [1, 3, 5]),
]


@pytest.mark.parametrize(("flag", "value", "numbers"), FLAGS)
def test_flags_of_other_trainers_are_obeyed(flag: str, value: Any, numbers: list[int], make: Make) -> None:
    rows = [MANY[0], {**MANY[1], flag: value}, *MANY[2:]]
    assert learnt(make("qwen-2.5", rows)) == [f"text {n}<|im_end|>" for n in numbers]
    sender = [
        {"from": row["role"], "value": row["content"], **({flag: value} if n == 1 else {})}
        for n, row in enumerate(rows)
    ]
    assert learnt(make("qwen-2.5", sender)) == [f"text {n}<|im_end|>" for n in numbers]


def test_nothing_is_learnt_after_the_last_answer_that_is_wanted(make: Make) -> None:
    found = make("qwen-2.5", [*MANY[:5], {**MANY[5], "weight": 0}])
    assert learnt(found) == ["text 1<|im_end|>", "text 3<|im_end|>"]
    assert found.notes == [("messages after the last answer to learn", "2 left away")]
    with pytest.raises(NotLearnt):
        make("qwen-2.5", [MANY[0], {**MANY[1], "train": False}])


@pytest.mark.parametrize(
    ("number", "flags", "why"),
    [
        (1, {"weight": 0.5}, "message 2 has weight: 0.5, which cannot be obeyed"),
        (1, {"loss_weight": "0"}, "message 2 has loss_weight: 0"),
        (1, {"mask": True}, "message 2 has mask: True"),
        (1, {"train_detail": [{"begin_offset": 0}]}, "message 2 has train_detail"),
        (1, {"train": True, "masked": True}, "message 2 has flags that disagree: masked, train"),
        (0, {"train": True}, "message 1 is to be learnt, and only the assistant's messages are"),
    ],
)
def test_flags_that_cannot_be_obeyed_are_named(number: int, flags: dict, why: str, make: Make) -> None:
    rows = [dict(message) for message in MANY]
    rows[number] |= flags
    with pytest.raises(ValueError, match=why):
        make("qwen-2.5", rows)
    ((_, detail),) = make("qwen-2.5", rows, dropped="allow").notes
    assert why in detail


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": MANY[:1], "chosen": MANY[1:2], "rejected": [said("assistant", "no")]},
        {"prompt": MANY[:1], "chosen": MANY[1], "rejected": said("assistant", "no")},
        {"prompt": "text 0", "chosen": "text 1", "rejected": "no"},
        {"prompt": json.dumps(MANY[:1]), "chosen": {"from": "gpt", "value": "text 1"}},
        {"prompt": "text 0", "chosen": MANY[:2], "rejected": [MANY[0], said("assistant", "no")]},
        {"prompt": "\n\nHuman: text 0\n\nAssistant:", "chosen": "text 1", "rejected": "no"},
    ],
)
def test_the_chosen_side_of_a_preference_is_learnt_by_name(row: dict[str, Any], make: Make) -> None:
    found = make("qwen-2.5", row, messages_column="prompt", answer_column="chosen")
    assert learnt(found) == ["text 1<|im_end|>"] and "text 0" in found.prompt and "no" not in found.prompt
    whole = {"chosen": "\n\nHuman: text 0\n\nAssistant: text 1", "rejected": "\n\nHuman: text 0\n\nAssistant: no"}
    assert make("qwen-2.5", whole, messages_column="chosen") == found


def test_an_answer_that_begins_with_another_question_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="chosen begins with another message of the user"):
        make("qwen-2.5", {"prompt": "text 7", "chosen": MANY[:2]}, messages_column="prompt", answer_column="chosen")


def test_today_is_what_the_configuration_says(make: Make) -> None:
    assert "Today Date: 01 Jan 2025" in make("llama-3.1", [ASKED, ANSWERED]).prompt
    assert "Today Date: 24 Dec 2030" in make("llama-3.1", [ASKED, ANSWERED], date="2030-12-24").prompt
    with pytest.raises(ValueError, match="date"):
        FormattingConfig(date="2030-13-01")


word = st.text("abcdefghijklmnopqrstuvwxyz äß中", min_size=1, max_size=12).filter(str.strip)
values = st.recursive(word, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(word, inner, max_size=2))
calls = st.builds(call, word, st.dictionaries(word, values, max_size=2))
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "human", "tool", "system", "assistant", "gpt"]), "content": word},
    optional={
        "reasoning_content": word,
        "tool_calls": st.lists(
            st.builds(call, word, st.dictionaries(word, values, max_size=2)), min_size=1, max_size=2
        ),
        "context": word,
    },
)
tool = st.builds(lambda name, about: {"name": name, "description": about}, word, word)


def strings(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(strings(item) for key, item in value.items() if key not in ("role", "type")), set())
    return set().union(*map(strings, value), set()) if isinstance(value, list) else {str(value).strip()}


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), turns=st.lists(turn, max_size=5), last=word, tools=st.lists(tool, max_size=2))
def test_every_string_is_written_or_its_row_is_lost(
    name: str, turns: Turns, last: str, tools: list, make: Make
) -> None:
    row = {"messages": [*turns, said("assistant", last)], "tools": tools}
    try:
        found = make(name, row)
    except Exception as error:  # the ledger's line
        assert str(error)
        return
    text = found.prompt + found.completion
    escaped = text.encode().decode("unicode_escape", "ignore") if "\\u" in text else text
    missing = {one for one in strings(row) if one not in text and one not in escaped}
    forgotten = {str(turns[n].get("reasoning_content")).strip() for n in _numbers(found)}
    assert missing <= forgotten


def _numbers(found: Formatted) -> list[int]:
    """Messages that the notes name, from 0."""
    return [
        int(part.split(":")[0].removeprefix("message ")) - 1 for _, detail in found.notes for part in detail.split("; ")
    ]
