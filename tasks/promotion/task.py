"""Stage 7: put the new version in use if it is better than the present one."""

import contextlib
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.utilities.asyncutils import run_coro_as_sync

from tasks.config import ExecutionConfig, PromotionConfig, PublishingConfig, metric
from tasks.errors import UserError
from tasks.evaluation.facts import WATCH, EvaluationFacts
from tasks.promotion import champion, gate
from tasks.promotion.champion import History
from tasks.promotion.clean_room import try_out
from tasks.promotion.page import PAGE, page
from tasks.promotion.schema import Decision, Entry, Outcome, sentence
from tasks.publishing.identity import registry_folder
from tasks.publishing.registry import group_may
from tasks.store.artifact import ArtifactRef, intact
from tasks.store.identity import digest_of
from tasks.store.model import BaseModelRef

ANNOUNCED = ".announced"
"""File beside the history: the id of the last event that Prefect has."""


@task(name="promote", persist_result=False)
def promote(
    version: ArtifactRef,
    scores: ArtifactRef,
    compared: ArtifactRef | None,
    model: BaseModelRef,
    publishing: PublishingConfig,
    promotion: PromotionConfig,
    execution: ExecutionConfig,
) -> Decision:
    """Compare a version with the champion by its scores, try it in a process of its own, and put it in use.

    Args:
        version: the candidate.
        scores: of candidate, base and champion on the same rows.
        compared: the champion that was scored; None: there was none, and the candidate must beat its base.
    """
    log, folder = get_run_logger().info, registry_folder(publishing)
    with acting(folder) as history:
        decision = _decide(history, version, scores, compared, model, promotion)
        if decision.outcome in ("promoted", "waiting") and history.champion != decision.version:
            log(f"{decision.version} is better; it is tried in a process of its own before it is put in use")
            try:
                try_out(version.path, model, log, execution.hang_minutes)
            except UserError as error:
                decision = _refuse(history, decision, str(error))
        if decision.outcome == "promoted" and history.champion != decision.version:
            history.move(decision.version, decision.sentence)
    log(decision.sentence)
    return decision


@contextlib.contextmanager
def acting(folder: Path, moved_by_hand: bool = False) -> Iterator[History]:
    """`champion.held` for what moves the champion; page and event follow the history, also for a process that died."""
    with champion.held(folder, this_run(), moved_by_hand) as history:
        _follow(history)
        yield history
        _follow(history)


def _follow(history: History) -> None:
    """Bring the page up to date, and tell Prefect of the last move unless it knows."""
    file, text = history.folder / PAGE, page(history.folder.name, history.entries)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
        group_may(file, 0o040)
    moves = [entry for entry in history.entries if entry.what == "move"]
    if moves and get_current_settings().api.url:
        announce(history.folder, moves[-1])


def announce(folder: Path, move: Entry) -> None:
    """Emit the event of a move, at least once; its resource is `qlora-flow.adapter.<name>`.

    The event's id is made from the move. The file ANNOUNCED has it once the server has the event. A server that gets
    an event twice, because a process died in between, stores it once.
    """
    id, told = uuid5(NAMESPACE_URL, f"{folder}#{move.number}#{move.at}"), folder / ANNOUNCED
    if told.exists() and told.read_text() == str(id):
        return
    run = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}
    event = Event(
        id=id,
        event="qlora-flow.champion.moved",
        occurred=datetime.now(UTC),
        resource=Resource(
            {"prefect.resource.id": f"qlora-flow.adapter.{folder.name}", "prefect.resource.name": folder.name}
        ),
        related=[RelatedResource(run)] if flow_run.id else [],
        payload={"name": folder.name, "version": move.version, "from": move.champion, "reason": move.reason},
    )

    async def emit() -> None:
        async with get_events_client(reconnection_attempts=1, checkpoint_every=1) as client:
            await client.emit(event)

    try:
        run_coro_as_sync(emit())
    except Exception as error:  # the champion has moved all the same
        logging.getLogger(__name__).warning(f"The event of {move.version} is emitted by the next action: {error}")
    else:
        told.write_text(str(id))


def _refuse(history: History, decision: Decision, why: str) -> Decision:
    """Record that a version which is better does not load."""
    said = sentence("refused", decision.version, history.champion, why)
    last, adapter = history.entries[-1], champion.weights(history.folder, decision.version)
    if (last.what, last.adapter, last.reason) != ("refused", adapter, said):  # by a run that is repeated
        history.add("refused", version=decision.version, champion=history.champion, adapter=adapter, reason=said)
    return decision.model_copy(update={"outcome": "refused", "sentence": said, "champion": history.champion})


def _decide(
    history: History,
    version: ArtifactRef,
    scores: ArtifactRef,
    compared: ArtifactRef | None,
    model: BaseModelRef,
    promotion: PromotionConfig,
) -> Decision:
    """The decision about a candidate: the recorded one, or a new one for which a look is spent."""
    name, now, opposite = version.path.name, history.champion, compared.path.name if compared else ""
    adapter = champion.weights(history.folder, name)

    def kept(why: str) -> Decision:
        return Decision(outcome="kept", sentence=sentence("kept", name, now, why), version=name, champion=now)

    came = champion.in_use(history.entries)
    if now and adapter == champion.weights(history.folder, now):
        if name != now:
            return kept(f"{name} has the same weights")
        if came[-1].by == history.by and flow_run.id:  # this very run has moved it, and is tried again
            facts = next(
                (e.facts for e in reversed(history.entries) if e.what == "decision" and e.adapter == adapter), {}
            )
            return Decision(outcome="promoted", sentence=came[-1].reason, version=name, champion=now, facts=facts)
        return kept(f"it is the version in use since {came[-1].at[:10]}, and nothing is new")
    if left := [after for entry, after in pairwise(came) if entry.adapter == adapter]:
        return kept(f"{name} was replaced on {left[-1].at[:10]} by {left[-1].by}; only a person puts it in use again")
    rule = promotion.model_dump(exclude={"approval"})
    with intact((scores,)):
        rows = _rows(scores.path, ["id", "prompt", "references"])
    base = champion.weights(history.folder, opposite) if opposite else model.digest
    key = digest_of([adapter, base, digest_of(rows), rule])
    decided = next((entry for entry in history.entries if entry.what == "decision" and entry.key == key), None)
    if opposite != now:
        if decided and not decided.better:
            return kept(f"{name} was compared with {opposite or 'the base'} on {decided.at[:10]} and was no better")
        return kept(f"{name} was compared with {opposite or 'the base'}, which is not in use any more")
    if left_out := scores.facts(EvaluationFacts).champion_left_out:
        return kept(f"{name} was not compared with it, because {left_out.rstrip('.')}")
    if not decided:
        if not (look := next((e for e in history.entries if e.what == "look" and e.key == key), None)):
            looks = _looks(history.life())
            fresh, level = gate.next_level(looks, promotion.error_rate, promotion.comparisons)
            if not level:
                return kept(
                    f"the {len(looks)} comparisons that these test rows allow are spent. Bring new test rows and begin "
                    f"their life: qlora-flow adapters renew {history.folder.name} --reason TEXT"
                )
            look = history.add("look", version=name, champion=now, adapter=adapter, key=key, fresh=fresh, level=level)
        decided = _judge(history, look, scores, promotion)
    outcome: Outcome = ("waiting" if promotion.approval else "promoted") if decided.better else "kept"
    return Decision(
        outcome=outcome,
        sentence=sentence(outcome, name, now, decided.reason, history.folder.name),
        version=name,
        champion=name if outcome == "promoted" else now,
        facts=decided.facts,
    )


def _judge(history: History, look: Entry, scores: ArtifactRef, promotion: PromotionConfig) -> Entry:
    """Read the scores, test, and record what they say."""
    number = len(_looks(history.life()))
    facts: dict[str, Any] = {"metric": promotion.metric, "look": number, "comparisons": promotion.comparisons}
    try:
        guards, other = [gate.Guard.parse(text) for text in promotion.guards], "champion" if look.champion else "base"
        with intact((scores,)):
            table = _Scores(_rows(scores.path), other)
            watched = _watched(scores.path) if any(guard.column == WATCH for guard in guards) else {}
        found = table.compare(promotion.metric, promotion.min_gain)
        smallest = found.smallest(look.level, promotion.min_gain)
        facts |= {**found._asdict(), **table.means(promotion.metric), "level": look.level, "smallest": smallest}
        title = metric(promotion.metric).title
        measured = (
            f"{title} {facts['before']:.3f} → {facts['after']:.3f} on {found.rows:,} rows (p = {found.p_value:.2g}, "
            f"level {look.level:.2g}; look {number} of {promotion.comparisons})"
        )
        why = ""
        if not found.p_value <= look.level:
            more = f" than {promotion.min_gain:g} more" if promotion.min_gain else ""
            why = (
                f"{look.version} is no better{more} beyond noise: {measured}; a gain of {smallest:.2g} could "
                "have been shown"
            )
        for guard in () if why else guards:
            if guard.column == WATCH:
                if not (rows := watched.get(guard.value)):
                    raise gate.Incomparable(f"no row of the watch set {guard.value} was scored")
                bound = _Scores(rows, other).compare(guard.metric, -guard.fall)
            else:
                bound = table.compare(guard.metric, -guard.fall, guard.column, guard.value)
            why = why or gate.broken(guard.name, bound, guard.fall, promotion.error_rate)
    except gate.Incomparable as error:
        why = f"{look.version} cannot be compared, because {error}"
    return history.add(
        "decision",
        version=look.version,
        champion=look.champion,
        adapter=look.adapter,
        key=look.key,
        reason=why or measured,
        better=not why,
        facts=facts,
    )


class _Scores:
    """Per-row scores of the candidate and of what it is compared with."""

    def __init__(self, rows: list[dict[str, Any]], other: str) -> None:
        self.rows, self.other = rows, other

    def means(self, name: str) -> dict[str, float]:
        sides = {"before": self.other, "after": "tuned"}
        return {side: sum(row[f"{who}_{name}"] for row in self.rows) / len(self.rows) for side, who in sides.items()}

    def compare(self, name: str, bound: float, column: str = "", value: str = "") -> gate.Comparison:
        """Raises Incomparable when metric, slice or scores are missing."""
        rows = self.rows
        if column:
            if not rows or column not in rows[0]:
                raise gate.Incomparable(f"the test rows have no column {column}")
            rows = [row for row in rows if str(row[column]) == value]
            if not rows:
                raise gate.Incomparable(f"no test row has {column}={value}")
        both = (f"tuned_{name}", f"{self.other}_{name}")
        if rows and not set(both) <= rows[0].keys():
            raise gate.Incomparable(f"there are no scores {name}, which evaluation.metrics does not name")
        if missing := [row["id"] for row in rows if row[both[0]] is None or row[both[1]] is None]:
            raise gate.Incomparable(f"row {missing[0]!r} has no {name}")
        gains = [metric(name).gain(row[both[0]] - row[both[1]]) for row in rows]
        return gate.compare(gains, [row["group"] for row in rows], bound)


def _looks(life: list[Entry]) -> list[Any]:
    """The looks of a life with what came of them; one whose decision was cut off found nothing."""
    better = {entry.key for entry in life if entry.what == "decision" and entry.better}
    return [entry.model_copy(update={"better": entry.key in better}) for entry in life if entry.what == "look"]


def _rows(folder: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    from tasks.evaluation.schema import PREDICTIONS

    return pq.read_table(folder / PREDICTIONS, columns=columns).to_pylist()


def _watched(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Name of a watch set → its rows."""
    import pyarrow.parquet as pq

    from tasks.evaluation.schema import WATCHED

    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(folder / WATCHED).to_pylist():
        found.setdefault(row[WATCH], []).append(row)
    return found


def this_run() -> str:
    """The flow run, or the person where there is none."""
    return f"run {flow_run.name} ({flow_run.id})" if flow_run.id else champion.person()
