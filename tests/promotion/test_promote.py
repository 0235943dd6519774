"""What is promoted and what is kept, in words; a decision is made once, whatever happens to the process."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flows.__main__ import main
from flows.checks import _promotion as check_promotion
from tasks.config import EvaluationConfig, PromotionConfig
from tasks.errors import UserError
from tasks.promotion import champion, task
from tests.promotion.registry import BASE, decide, folder, publish, rows, run, scored

pytestmark = pytest.mark.usefixtures("store")
BETTER, EQUAL, WORSE = -0.1, 0.0, 0.1


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions that the clean room was given; it accepts all."""
    names: list[str] = []
    monkeypatch.setattr(task, "try_out", lambda version, *_: names.append(version.name))
    return names


def looks() -> int:
    return sum(entry.what == "look" for entry in champion.read(folder()))


def test_a_history_of_retrains_in_plain_words(tried: list[str]) -> None:
    first = run("a", BETTER)
    assert re.fullmatch(
        r"Promoted v0001: held-out loss \d\.\d{3} → \d\.\d{3} on 200 rows \(p = \d\.\de-\d+, level 0.0005; look 1 of "
        r"100\)\.",
        first.sentence,
    )
    assert champion.pointer(folder()) == "v0001"
    tie = run("b", EQUAL)
    assert tie.outcome == "kept" and tie.champion == "v0001"
    assert tie.sentence.startswith("Kept v0001: v0002 is no better beyond noise: held-out loss 2.0")
    assert "(p = 1, level 0.001; look 2 of 100)" in tie.sentence  # the first look passed its level on
    worse = run("c", WORSE)
    assert worse.outcome == "kept" and re.search(r"a gain of 0\.0\d+ could have been shown\.$", worse.sentence)
    better = run("d", BETTER)
    assert (better.outcome, better.champion, champion.pointer(folder())) == ("promoted", "v0004", "v0004")
    assert tried == ["v0001", "v0004"]  # only what is put in use is tried, before the pointer moves
    assert looks() == 4


def test_a_first_version_that_is_no_better_than_the_base_is_not_used() -> None:
    assert run("a", WORSE).sentence.startswith("Kept the base: v0001 is no better")
    assert champion.pointer(folder()) == ""
    assert run("b", BETTER).outcome == "promoted"


def test_a_repeated_run_decides_the_same_and_spends_nothing() -> None:
    run("a", BETTER)
    kept = run("b", EQUAL)
    for _ in range(3):
        assert run("b", EQUAL) == kept
    assert run("b", BETTER, "b").sentence == kept.sentence  # whatever the scores say now, the rows are the same
    assert run("a", BETTER).sentence.startswith("Kept v0001: it is the version in use since")
    assert looks() == 2


@pytest.mark.parametrize("moment", ["the scores are read", "the decision is recorded", "it is tried", "it is moved"])
def test_a_run_that_is_killed_when(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("a", BETTER)
    killed: list[str] = []

    def kill(*_: object, **__: object) -> None:
        killed.append(moment)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        if moment == "the scores are read":
            patch.setattr(task.gate, "compare", kill)
        elif moment == "the decision is recorded":
            own = champion.History.add
            patch.setattr(
                champion.History, "add", lambda self, what, **f: own(self, what, **f) if what == "look" else kill()
            )
        elif moment == "it is tried":
            patch.setattr(task, "try_out", kill)
        else:
            patch.setattr(champion, "point", kill)
        with pytest.raises(KeyboardInterrupt):
            run("b", BETTER)
    assert killed and champion.pointer(folder()) == "v0001"
    run("b", BETTER)
    assert champion.pointer(folder()) == "v0002" == champion.champion_of(champion.read(folder()))
    assert looks() == 2
    assert sum(entry.what == "move" for entry in champion.read(folder())) == 2


def test_a_version_that_does_not_load_is_refused_and_leaves_the_champion() -> None:
    run("a", BETTER)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise UserError("v0002 does not load on its base")

        patch.setattr(task, "try_out", refuse)
        refused = [run("b", BETTER) for _ in range(2)]
    assert [decision.outcome for decision in refused] == ["refused"] * 2
    assert refused[0].sentence == "Refused v0002, and v0001 stays in use: v0002 does not load on its base."
    assert champion.pointer(folder()) == "v0001"
    assert [entry.what for entry in champion.read(folder())[4:]] == ["look", "decision", "refused"]
    assert run("b", BETTER).outcome == "promoted"  # the base was damaged, and is whole again


def test_two_runs_at_once_compare_with_the_champion_of_their_time() -> None:
    run("a", BETTER)
    compared = champion.opponent(folder(), "b")
    versions = [publish("b"), publish("c")]
    scores = [scored(rows(BETTER), name) for name in "bc"]
    with ThreadPoolExecutor(2) as both:
        decisions = list(both.map(lambda n: decide(versions[n], scores[n], compared), (0, 1)))
    assert sorted(decision.outcome for decision in decisions) == ["kept", "promoted"]
    (kept,) = (decision for decision in decisions if decision.outcome == "kept")
    assert "was compared with v0001, which is not in use any more" in kept.sentence
    assert looks() == 2  # the other spent none


@pytest.mark.parametrize(
    ("guard", "why"),
    [
        ("rougeL 0.02", "guard rougeL fell by 0.03"),
        ("rougeL[topic=travel] 0.02", "guard rougeL on topic=travel fell by 0.03"),
        ("rougeL 0.0305", "cannot be ruled out"),
        ("rougeL 0.05", ""),
        ("chrf 0.02", "no scores chrf"),
        ("rougeL[watch=general] 0.02", "no test row with watch=general was scored"),
        ("rougeL[topic=war] 0.02", "no test row with topic=war was scored"),
    ],
)
def test_guards(guard: str, why: str) -> None:
    champion.begin(folder(), "a test")
    decision = decide(publish("a"), scored(rows(BETTER, "base", rougeL=0.03)), None, guards=[guard])
    assert decision.outcome == ("kept" if why else "promoted")
    assert why in decision.sentence
    assert champion.pointer(folder()) == ("" if why else "v0001")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("calm", "Promoted v0001"),
        ("forgot", "Kept the base: guard loss on watch=forgot fell by 0.1"),
        ("gone", "Kept the base: v0001 cannot be compared, because no test row with watch=gone was scored."),
    ],
)
def test_a_guard_on_a_watch_set(name: str, said: str) -> None:
    champion.begin(folder(), "a test")
    watched = [row | {"watch": "calm"} for row in rows(EQUAL, "base")]
    watched += [row | {"watch": "forgot"} for row in rows(WORSE, "base")]
    watched = [row | {"id": f"w{n}", "group": None} for n, row in enumerate(watched)]
    scores = scored(rows(BETTER, "base"), watched=watched)
    assert said in decide(publish("a"), scores, None, guards=[f"loss[watch={name}] 0.05"]).sentence


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows[:1], "there is 1 group"),
        (lambda rows: [row | {"group": "all"} for row in rows], "there is 1 group"),
        (
            lambda rows: [row | {"tuned_loss": None if n == 3 else 1.0} for n, row in enumerate(rows)],
            "row 'r003' has no",
        ),
        (lambda rows: [row | {"tuned_loss": float("nan")} for row in rows], "not a finite number"),
        (lambda rows: [{"topic": row["topic"]} for row in rows], "there are no scores loss"),
    ],
)
def test_scores_that_cannot_be_compared_are_a_refusal(change: Any, why: str) -> None:
    champion.begin(folder(), "a test")
    decision = decide(publish("a"), scored(change(rows(BETTER, "base"))), None)
    assert decision.outcome == "kept"
    assert decision.sentence.startswith("Kept the base: v0001 cannot be compared, because") and why in decision.sentence


def test_a_champion_that_could_not_answer_the_rows_is_said_and_costs_no_look() -> None:
    run("a", BETTER)
    scores = scored(rows(BETTER, "base"), "b", "v0001 was trained with another formatting.prompt")
    kept = decide(publish("b"), scores, champion.opponent(folder(), "b"))
    assert kept.sentence == (
        "Kept v0001: v0002 was not compared with it, because v0001 was trained with another formatting.prompt."
    )
    assert looks() == 1


def test_spent_looks_are_said_and_a_new_life_is_opened_with_a_reason() -> None:
    run("a", BETTER, comparisons=2)
    run("b", WORSE, comparisons=2)
    spent = run("c", BETTER, comparisons=2)
    assert spent.outcome == "kept" and "the 2 comparisons that these test rows allow are spent" in spent.sentence
    assert looks() == 2
    assert main(["adapters", "renew", "adapter", "--reason", "all test rows are new"]) == 0
    assert run("c", BETTER, comparisons=2).outcome == "promoted"
    opened = [entry.reason for entry in champion.read(folder()) if entry.what == "opened"]
    assert opened == ["the first run", "all test rows are new"]


def test_a_rule_that_is_changed_is_another_look_within_the_same_budget() -> None:
    run("a", BETTER)
    run("b", EQUAL)
    assert run("b", EQUAL, min_gain=0.5).facts["look"] == 3
    assert sum(entry.fresh for entry in champion.read(folder())) == pytest.approx(0.0015)


def test_approval_leaves_the_version_waiting_and_promoting_it_is_the_approval(
    tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.promote

    run("a", BETTER)
    assert run("b", BETTER, approval=True) == (waiting := run("b", BETTER, approval=True))
    assert waiting.outcome == "waiting" and waiting.champion == "v0001" == champion.pointer(folder())
    assert waiting.sentence.startswith("v0002 waits for approval: held-out loss")
    assert waiting.sentence.endswith("qlora-flow adapters promote adapter@v0002 --reason TEXT.")
    assert [entry.what for entry in champion.read(folder())[-2:]] == ["decision", "waiting"]  # once, for both runs
    assert champion.read(folder())[-1].said == waiting.sentence
    assert waiting.sentence in (folder() / "README.md").read_text()
    monkeypatch.setattr(flows.promote, "base_of", lambda _: BASE)
    monkeypatch.setattr(flows.promote, "try_out", lambda version, *_: tried.append(version.name))
    said = flows.promote.promote_version("adapter", "v0002", "read the answers")
    assert said.startswith("Promoted v0002 by hand: read the answers. The gate: v0002 is better: held-out loss")
    assert champion.pointer(folder()) == "v0002"
    assert run("b", BETTER, approval=True).sentence.startswith("Kept v0002: it is the version in use since")
    assert looks() == 2


def test_a_version_that_was_rolled_back_is_not_promoted_again_by_a_run() -> None:
    from flows.promote import roll_back

    run("a", BETTER)
    run("b", BETTER)
    roll_back("adapter", "complaints")
    again = run("b", BETTER)
    assert again.outcome == "kept" and "only a person puts it in use again" in again.sentence
    assert champion.pointer(folder()) == "v0001"


def test_a_number_that_is_given_again_is_another_version() -> None:
    from flows.promote import roll_back

    run("a", BETTER), run("b", BETTER)
    roll_back("adapter", "complaints")
    assert stands("a", "b") == ["in use", "was in use"]
    shutil.rmtree(folder() / "v0002")
    assert run("c", EQUAL).sentence.startswith("Kept v0001: v0002 is no better")  # it was never in use, nor replaced
    assert stands("a", "c", "z") == ["in use", "no better", "not compared"]


def stands(*adapters: str) -> list[str]:
    """What became of v0001, v0002, … with these weights."""
    entries = champion.read(folder())
    return [champion.standing(entries, f"v{n:04d}", adapter) for n, adapter in enumerate(adapters, 1)]


def test_a_version_that_was_decided_twice_stands_as_it_was_decided_last(monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.promote

    monkeypatch.setattr(flows.promote, "base_of", lambda _: BASE)
    monkeypatch.setattr(flows.promote, "try_out", lambda *_: None)
    publish("a")
    run("b", EQUAL)  # the registry had a version and no history
    assert stands("a", "b") == ["in use", "no better"]
    flows.promote.promote_version("adapter", "v0002", "read the answers")
    assert stands("a", "b") == ["was in use", "in use"]
    run("c", BETTER, approval=True)
    assert stands("a", "b", "c") == ["was in use", "in use", "waiting"]
    with monkeypatch.context() as patch:
        patch.setattr(task, "try_out", lambda *_: (_ for _ in ()).throw(UserError("it does not load")))
        assert run("c", BETTER).outcome == "refused"
    assert stands("a", "b", "c") == ["was in use", "in use", "refused"]


def test_the_page_of_an_adapter_tells_what_is_in_use_and_what_was_decided() -> None:
    run("a", BETTER), run("b", EQUAL)
    assert main(["adapters", "rollback", "adapter@v0001", "--reason", "why | not"]) == 0
    text = (folder() / "README.md").read_text()
    assert text.startswith("# adapter\n\nIn use: **v0001**.")
    assert "| v0002 | Kept v0001: v0002 is no better beyond noise: held-out loss" in text
    assert "| v0001 | Promoted v0001: held-out loss" in text and len(text.splitlines()) == 10


class Events:
    """A Prefect server's end of the line."""

    def __init__(self) -> None:
        self.answers, self.got = True, list[Any]()

    def __call__(self, **_: int) -> "Events":
        return self

    async def __aenter__(self) -> "Events":
        if not self.answers:
            raise ConnectionError("nobody answers")
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def emit(self, event: Any) -> None:
        self.got.append(event)


def test_a_move_is_told_to_prefect_at_least_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    events = Events()
    monkeypatch.setattr(task, "get_events_client", events)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        run("a", BETTER)  # where no server is known
    assert events.got == []
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        events.answers = False
        run("b", BETTER)
        events.answers = True
        with monkeypatch.context() as patch:  # killed after its move
            patch.setattr(task, "_follow", lambda history: patch.setattr(task, "_follow", kill) if history else None)
            with pytest.raises(KeyboardInterrupt):
                run("c", BETTER)
        assert [event.payload["version"] for event in events.got] == []
        run("d", EQUAL)
        run("e", EQUAL)
    (event,) = events.got  # of the last move alone: the one before it is in use no more
    assert event.event == "qlora-flow.champion.moved" and event.payload["version"] == "v0003"
    assert event.payload["from"] == "v0002" and event.payload["reason"].startswith("Promoted v0003: held-out loss")
    assert event.resource.id == "qlora-flow.adapter.adapter"


def kill(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_flows_end_with_a_sentence_as_their_state(prefect_server: None) -> None:
    from flows.promote import promote, rollback

    run("a", BETTER), run("b", BETTER)
    done = rollback("adapter", "complaints", return_state=True)
    assert (done.type.value, done.message) == ("COMPLETED", "Rolled back from v0002 to v0001: complaints.")
    wrong = promote("adapter", "../x", "why", return_state=True)
    assert (wrong.type.value, wrong.message) == (
        "FAILED",
        "'../x' names no version of adapter; a version is called v0001.",
    )


def test_a_metric_that_is_not_scored_is_said_before_anything_runs() -> None:
    groups: Any = {"evaluation": EvaluationConfig(metrics=["rougeL"]), "promotion": PromotionConfig()}
    with pytest.raises(UserError, match=r"promotion\.metric: loss is not among evaluation\.metrics \(rougeL\)"):
        check_promotion(groups)
    groups["promotion"] = PromotionConfig(metric="rougeL", guards=["chrf 0.1"])
    with pytest.raises(UserError, match=r"promotion\.guards: chrf is not among"):
        check_promotion(groups)
    groups["promotion"] = PromotionConfig(metric="rougeL", guards=["rougeL[shortened=yes] 0.1", "rougeL[topic=a] 0.1"])
    with pytest.raises(UserError, match=r"promotion\.guards: topic is not among evaluation\.slices"):
        check_promotion(groups)
