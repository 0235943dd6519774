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
from tasks.evaluation.metrics.rouge.rouge import NAMES, Rouge
from tasks.evaluation.metrics.words import has_words, stems, words

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
    assert words("बैठक को") == ["बैठक", "को"]
    assert words("كَتَبَ") == ["كَتَبَ"]
    assert words("회의는 금요일로") == ["회의는", "금요일로"]


def test_scripts_without_spaces_are_read_by_characters() -> None:
    assert words("COVID疫情，2020年") == ["covid", "疫", "情", "2020", "年"]
    assert words("ニュース") == [*"ニュース"]
    assert words("ปี่") == ["ปี่"]
    assert words("３時") == ["3", "時"]


@pytest.mark.parametrize("text", ["", "!!! …", "👍🏽 ❤️ 👨‍👩‍👧", "** --- ~~", "\u200b\ufe0f", "。、「」", "€ + ="])
def test_what_is_no_word_has_no_token(text: str) -> None:
    assert words(text) == [] and not has_words(text)


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_has_the_tokens_of_rouge_score(text: str) -> None:
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


@pytest.fixture(scope="session")
def rouge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Rouge(cache_dir=str(tmp_path_factory.mktemp("rouge")), keep_in_memory=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_rouge_in_every_script(rouge: Rouge, script: str) -> None:
    text, other = SCRIPTS[script]
    scores = rouge.compute(predictions=[text, text, text[: len(text) // 2]], references=[[text], [other], [text]])
    for name in NAMES:
        same, wrong, half = scores[name]
        assert same == 1 and wrong < 0.5 and (0 < half < 1 or name == "rouge2")


def test_rouge_can_be_loaded_by_evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path))
    folder = Path(tasks.evaluation.metrics.__file__).parent / "rouge"
    loaded = evaluate.load(str(folder), cache_dir=str(tmp_path), keep_in_memory=True)
    assert loaded.compute(predictions=["会议"], references=[["会议"]])["rougeL"] == [1]
