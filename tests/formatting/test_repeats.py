"""A training row that is, or nearly is, a held-out row is found and named; sharing a template makes no row alike."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tasks.formatting import similar
from tasks.formatting.repeats import Repeats, common_part, signs, trained_on
from tasks.store.ledger import LEDGER, Ledger

RNG = random.Random(0)
WORDS = ["".join(RNG.choices("abcdefghijklmnopqrstuvwxyz", k=RNG.randint(2, 9))) for _ in range(3000)]


def text(count: int = 80) -> str:
    return " ".join(RNG.choices(WORDS, k=count))


def altered(of: str, words: int = 1) -> str:
    changed = of.split(" ")
    for place in RNG.sample(range(len(changed)), words):
        changed[place] = "changed"
    return " ".join(changed)


def compare(
    folder: Path, held_out: list[tuple[str, str]], training: list[tuple[str, str]]
) -> tuple[list[bool], list[str], dict[str, int]]:
    """Which training rows are kept, the ledger's details, and the counts."""
    common, ledger, repeats = common_part(held_out), Ledger("format", folder), Repeats()
    for start in range(0, len(held_out), 7):  # batches
        part = held_out[start : start + 7]
        ids = [f"h{start + n}" for n in range(len(part))]
        assert all(repeats.kept("test", ids, signs(part, common), ledger))
    kept = repeats.kept("train", [f"t{n}" for n in range(len(training))], signs(training, common), ledger)
    ledger.write()
    return kept, pq.read_table(folder / LEDGER)["detail"].to_pylist(), repeats.totals()


def test_the_held_out_row_is_named(tmp_path: Path) -> None:
    held_out = [(text(), text(20)) for _ in range(30)]
    training = [
        (held_out[3][0].upper() + " \n", held_out[3][1]),
        (altered(held_out[5][0]), held_out[5][1]),
        (held_out[6][0], "another answer"),
        (text(), text(20)),
    ]
    kept, details, counts = compare(tmp_path, held_out, training)
    assert kept == [False, False, False, True]
    assert details[0] == "held-out row h3 has the same prompt and answer"
    assert details[1].startswith("held-out row h5 is nearly the same (similarity 0.")
    assert details[2].startswith("held-out row h6 is nearly the same")
    assert counts == {"leaks": 1, "near_leaks": 2, "shared_prompts": 0, "duplicates": 0}


def test_what_repeats_within_the_training_split_is_counted_and_kept(tmp_path: Path) -> None:
    first = (text(), text(20))
    training = [first, (text(), text(20)), (altered(first[0]), first[1]), first, (text(), text(20)), first]
    kept, details, counts = compare(tmp_path, [(text(), text(20)) for _ in range(5)], training)
    assert all(kept) and details == []
    assert counts["duplicates"] == 2


def test_every_held_out_row_that_was_trained_on_is_found() -> None:
    held_out = [(text(), text(20)) for _ in range(10)] + [("Who?", f"{n}") for n in range(3)] + [("Why?", "So.")] * 2
    held_out += [(text(3), "a") for _ in range(200)]
    training = [
        [(held_out[0][0].upper(), held_out[0][1]), (held_out[1][0], text(20)), (text(), text(20))],
        [
            (altered(held_out[2][0]), held_out[2][1]),
            ("Who?", "1"),
            ("Why?", "So."),
            ("Whom?", "2"),
            (held_out[20][0], "b"),
        ],
    ]
    common = common_part(held_out)
    copied, prompted = trained_on(signs(held_out, common), (signs(part, common) for part in training))
    assert np.flatnonzero(copied).tolist() == [0, 2, 11, 13, 14]
    assert np.flatnonzero(prompted).tolist() == [0, 1, 10, 11, 12, 13, 14, 20]
    many = signs(held_out[10:13] * 9, common)
    assert not trained_on(many, [signs([("Who?", "no")], common)])[1].any()  # all have this prompt


def test_a_held_out_prompt_with_another_answer_is_kept_and_listed(tmp_path: Path) -> None:
    held_out = [(text(30), text(20)) for _ in range(10)]
    kept, details, counts = compare(tmp_path, held_out, [(held_out[7][0], text(20)), (text(30), text(20))])
    assert kept == [True, True]
    assert details == ["held-out row h7 has the same prompt and another answer"]
    assert counts["shared_prompts"] == 1


def test_a_prompt_that_is_always_the_same_is_nothing_to_list(tmp_path: Path) -> None:
    held_out, training = ([("Write a poem.", text(20)) for _ in range(10)] for _ in range(2))
    kept, details, counts = compare(tmp_path, held_out, training)
    assert all(kept) and details == [] and counts["shared_prompts"] == 0


def test_what_all_rows_share_makes_none_alike(tmp_path: Path) -> None:
    system = text(500)
    held_out = [(f"{system} What is {n} times {n + 1}?", f"It is {n * n + n}.") for n in range(50)]
    training = [(f"{system} What is {n} times {n + 2}?", f"It is {n * n + 2 * n}.") for n in range(50)]
    kept, _, counts = compare(tmp_path, held_out, training)
    assert all(kept)
    assert counts["near_leaks"] == 0


def test_a_number_makes_another_row_of_a_short_one(tmp_path: Path) -> None:
    held_out = [(f"Please tell me what the number {n} is called in the old tongue", text(3)) for n in range(3)]
    kept, _, _ = compare(tmp_path, held_out, [(held_out[0][0].replace("0", "7"), held_out[0][1])])
    assert kept == [True]


def test_text_without_spaces_is_compared_by_characters(tmp_path: Path) -> None:
    signs_of = [chr(0x4E00 + n) for n in range(2000)]
    held_out = [("".join(RNG.choices(signs_of, k=120)), "好") for _ in range(20)]
    near = held_out[4][0][:60] + "新" + held_out[4][0][61:]
    kept, details, _ = compare(tmp_path, held_out, [(near, "好"), ("".join(RNG.choices(signs_of, k=120)), "好")])
    assert kept == [False, True]
    assert "h4" in details[0]


def test_the_similarity_is_close_to_the_true_one() -> None:
    def sequences(of: str) -> set[tuple[str, ...]]:
        words = of.split()
        return {tuple(words[n : n + similar.WORDS]) for n in range(len(words) - similar.WORDS + 1)}

    pairs = [(first, altered(first, n % 12)) for n, first in enumerate(text(150) for _ in range(300))]
    true = np.array([len(sequences(a) & sequences(b)) / len(sequences(a) | sequences(b)) for a, b in pairs])
    first, second = (similar.sketch(similar.shingles([pair[n].encode() for pair in pairs])) for n in (0, 1))
    estimated = (first == second).mean(axis=1)
    assert np.abs(estimated - true).mean() < 0.05
    assert np.abs((estimated - true).mean()) < 0.01
    index = similar.Index()
    index.add(first, np.arange(len(first)))
    nearest, _ = index.nearest(second)
    own = nearest == np.arange(len(first))
    assert own[true > 0.95].all()
    assert not own[true < 0.6].any()


def test_hashes_are_those_of_the_words_wherever_a_text_stands() -> None:
    texts = [text(count).encode() for count in (0, 1, 4, 5, 6, 50)]
    alone = [similar.shingles([one])[0].tolist() for one in texts]
    together, offsets = similar.shingles(texts)
    assert [together[a:b].tolist() for a, b in itertools.pairwise(offsets)] == alone
    assert [len(one) for one in alone] == [0, 0, 0, 1, 2, 46]
    long = [text(60_000).encode(), b"x " * similar.PIECE, *texts]
    assert np.diff(similar.shingles(long)[1])[2:].tolist() == [0, 0, 0, 1, 2, 46]


def test_signs_are_the_same_in_every_process() -> None:
    code = (
        "from tasks.formatting.repeats import *; import hashlib;"
        "t = [(' '.join(f'word{n * m}' for n in range(60)), 'ok') for m in range(40)];"
        "print(hashlib.sha256(b''.join(signs(t, common_part(t)))).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
