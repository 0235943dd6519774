"""Metrics by hand, in every script, and in English as the packages that define them."""

from pathlib import Path
from typing import Any

import evaluate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

import tasks.evaluation.metrics
from tasks.config import METRICS
from tasks.errors import UserError
from tasks.evaluation.metrics import check_references, scores
from tasks.evaluation.metrics.rouge.rouge import NAMES, Rouge
from tasks.evaluation.metrics.words import has_words, pieces, stems, words

SCRIPTS = {  # a sentence, and another one
    "English": ("The cat sat on a mat.", "Every bird flies under my roof."),
    "German": ("Überprüfung für Jürgen morgen", "Änderung vom Größten gestern"),
    "Vietnamese": ("Cuộc họp dời sang thứ sáu", "Đã mua một ly sữa nóng"),
    "Chinese": ("会议改到星期五。", "他们正在吃苹果。"),
    "Japanese": ("会議は金曜日に変更", "ぼくらもジュースのむ"),
    "Korean": ("회의는 금요일로 변경되었습니다", "우리가 사과를 먹었다"),
    "Thai": ("ประชุมวัน", "ฟ้าใสมี ๆ ๆ"),
    "Arabic": ("تم تأجيل الاجتماع", "أكل الولد تفاحة"),
    "Hindi": ("बैठक शुक्रवार को", "हमने सेब खाया"),
    "Russian": ("Встреча перенесена на пятницу", "Мы купили большое яблоко"),
    "Greek": ("Η συνάντηση μεταφέρθηκε", "Εμείς φάγαμε μήλα"),
    "Hebrew": ("הפגישה נדחתה ליום", "אכלנו תפוח גדול"),
    "Burmese": ("အစည်းအဝေး", "ပန်းသီးစားကြတယ်"),
    "Khmer": ("ការប្រជុំ", "ផ្លែប៉ោម"),
    "Lao": ("ກອງປະຊຸມ", "ໝາກໂປ່ມແດງ"),
}


def test_words_keep_their_letters_and_marks() -> None:
    assert words("Prüfung naïve Kraków sữa") == ["prüfung", "naïve", "kraków", "sữa"]
    assert words("STRASSE") == words("Straße") and words("ΟΔΟΣ") == words("οδος")
    assert words("cafe\u0301") == words("café")  # one character or two
    assert words("İSTANBUL IŞIK") == words("istanbul ışık")
    assert words("محـــمد") == words("محمد") and words("𝐀𝑏𝟛") == words("ab3")
    assert words("बैठक को") == ["बैठक", "को"]
    assert words("كَتَبَ") == ["كَتَبَ"]
    assert words("회의는 금요일로") == ["회의는", "금요일로"]


def test_scripts_without_spaces_are_read_by_characters() -> None:
    assert words("COVID疫情，2020年") == ["covid", "疫", "情", "2020", "年"]
    assert words("ニュース") == [*"ニュース"]
    assert words("ปี่") == ["ปี่"]
    assert words("３時") == ["3", "時"] and words("ﾀﾞﾒＡＢ") == ["ダ", "メ", "ab"]


@pytest.mark.parametrize("text", ["", "!!! …", "👍🏽 ❤️ 👨‍👩‍👧", "** --- ~~", "\u200b\ufe0f", "。、「」", "€ + ="])
def test_what_is_no_word_has_no_token(text: str) -> None:
    assert words(text) == [] and not has_words(text)


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_has_the_tokens_of_rouge_score(text: str) -> None:
    assert stems(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@settings(max_examples=200, deadline=None)
@given(st.text("aB3 “”‘’–—…™©®€£•²½°\u00a0'-"))
def test_signs_of_english_typography_are_no_words(text: str) -> None:
    assert stems(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_text_is_read_the_same_in_each_of_its_spellings(text: str) -> None:
    assert has_words(text) == bool(words(text))
    assert words(" ".join(words(text))) == words(text)


SENTENCES = st.lists(
    st.sampled_from(
        ["The cats", "running", "policies.", "I'm", "3.5", "e-mail", "happily", "generalizations;", "a_b\n"]
    )
).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=3))
def test_english_scores_are_those_of_rouge_score(rouge: Rouge, answer: str, references: list[str]) -> None:
    theirs = RougeScorer(NAMES, use_stemmer=True).score_multi(references, answer)
    ours = rouge.compute(predictions=[answer], references=[references])
    assert {name: ours[name][0] for name in NAMES} == {name: theirs[name].fmeasure for name in NAMES}


OF_ANSWERS = [name for name in METRICS if name != "loss"]


@pytest.fixture(scope="session")
def rouge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Rouge(cache_dir=str(tmp_path_factory.mktemp("rouge")), keep_in_memory=True)


def scored(tmp_path: Path, answer: str, *references: str, prompt: str = "", ended: bool = True) -> dict[str, float]:
    row = {"id": "r0", "prompt": prompt, "references": list(references), "base": answer, "base_ended": ended}
    return {name: value for name, (value,) in scores([row], "base", OF_ANSWERS, str(tmp_path)).items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_metric_in_every_script(tmp_path: Path, script: str) -> None:
    text, other = SCRIPTS[script]
    same, wrong, half = (
        scored(tmp_path, a, b) for a, b in ((text, text), (text, other), (text[: len(text) // 2], text))
    )
    for name in OF_ANSWERS:
        assert same[name] == 1 and wrong[name] < 0.5, name
        assert half[name] < 1 and (half[name] > 0 or name in ("rouge2", "exact_match")), name


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("Yes.", "Yes.", 1),
        (" Yes.\n", "Yes.", 1),
        ("cafe\u0301", "café", 1),
        ("yes.", "Yes.", 0),
        ("Yes", "Yes.", 0),
        ("👍", "👍", 1),
    ],
)
def test_exact_match_by_hand(tmp_path: Path, answer: str, reference: str, value: float) -> None:
    assert scored(tmp_path, answer, "another", reference)["exact_match"] == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("the cat sat", "the cat", 2 * 2 / (3 + 2)),
        ("sat cat the", "the cat sat", 1),
        ("no no no", "no", 2 * 1 / (3 + 1)),
        ("running", "runs", 0),  # nothing is stemmed
        ("会议取消，楼层 3", "会议改到 3 点", 2 * 3 / (7 + 6)),
        ("", "the cat", 0),
    ],
)
def test_token_f1_by_hand(tmp_path: Path, answer: str, reference: str, value: float) -> None:
    assert scored(tmp_path, answer, reference)["token_f1"] == pytest.approx(value)


def test_chrf_by_hand(tmp_path: Path) -> None:
    # runs of 1, 2 and 3 characters: 2 of 3, 1 of 2 and 0 of 1 are shared, as precision and as recall
    assert scored(tmp_path, "abc", "abd")["chrf"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scored(tmp_path, "abc", "xyz", "abc")["chrf"] == 1


TEN = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("answer", "prompt", "ended", "wrong"),
    [
        ("fine words of its own", "", True, set()),
        (" \n", "", True, {"empty"}),
        ("fine words of its own", "", False, {"never_ending"}),
        ("and so on " * 9, "", True, {"repeating"}),
        ("!" * 30, "", True, {"repeating"}),
        ("很" * 20, "", True, {"repeating"}),
        ("no, no, no, I said no", "", True, set()),
        (TEN, f"Read this: {TEN.upper()}!", True, {"copied"}),
        ("one two three", TEN, True, set()),  # a short answer may well stand in the prompt
        ("第一号房间在走廊尽头左边", "问题：第一号房间在走廊尽头左边。", True, {"copied"}),
    ],
)
def test_health_by_hand(tmp_path: Path, answer: str, prompt: str, ended: bool, wrong: set[str]) -> None:
    found = scored(tmp_path, answer, "some reference", prompt=prompt, ended=ended)
    assert {name for name in ("empty", "never_ending", "repeating", "copied") if found[name]} == wrong


def test_length_is_relative_to_the_nearest_reference(tmp_path: Path) -> None:
    assert scored(tmp_path, "one two three", "one", "one two")["length"] == 1.5
    assert scored(tmp_path, "", "one")["length"] == 0
    assert pieces("so, 👍!") == ["so", ",", "👍", "!"]


@pytest.mark.parametrize("reference", ["!!!", "👍🏽", "***", "---\n```", "。。。"])
def test_a_reference_without_a_word_is_refused_by_name(reference: str) -> None:
    rows = [{"id": "r7", "references": ["fine"]}, {"id": "r8", "references": ["fine", reference]}]
    with pytest.raises(UserError, match="'r8' has no word or number for rougeL, token_f1 to count"):
        check_references(rows, ["rougeL", "exact_match", "chrf", "token_f1"])
    check_references(rows, ["exact_match", "chrf"])


def test_a_reference_of_white_space_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'r8' has no character for chrf"):
        check_references([{"id": "r8", "references": [" \n"]}], ["chrf"])


def test_evaluate_can_load_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path))
    for name in ("rouge", "exact_match", "token_f1", "chrf"):
        folder = Path(tasks.evaluation.metrics.__file__).parent / name
        loaded = evaluate.load(str(folder), cache_dir=str(tmp_path), keep_in_memory=True)
        assert loaded.compute(predictions=["会议"], references=[["会议"]])["rougeL" if name == "rouge" else name] == [1]
