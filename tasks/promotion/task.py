"""Stage 7: put the new version in use if it is better than the champion."""

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
from tasks.promotion.schema import Decision, Entry, Outcome, sentence
from tasks.publishing.identity import registry_folder
from tasks.publishing.registry import group_may
from tasks.store.artifact import ArtifactRef, intact
from tasks.store.identity import digest_of
from tasks.store.model import BaseModelRef
from tasks.text import visible

PAGE = "README.md"
"""The history of an adapter for people, beside `history.jsonl`."""
ANNOUNCED = ".announced"
"""File beside the history: the id of the last event that the Prefect server has received."""


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
    """Compare a version's scores with the champion's; a better one is loaded in a separate process and put in use.

    Args:
        version: the candidate.
        scores: of candidate, base and champion on the same rows.
        compared: the champion that was scored. None: there is none yet, and the candidate must beat its base.
    """
    log, folder = get_run_logger().info, registry_folder(publishing)
    with acting(folder) as history:
        decision = _decide(history, version, scores, compared, model, promotion)
        if decision.outcome in ("promoted", "waiting") and history.champion != decision.version:
            log(f"{decision.version} is better; it is loaded in a separate process before it is put in use")
            try:
                try_out(version.path, model, log, execution.hang_minutes)
            except UserError as error:
                said = sentence("refused", decision.version, history.champion, str(error))
                changes = {"outcome": "refused", "sentence": said, "champion": history.champion}
                decision = decision.model_copy(update=changes)
            if decision.outcome != "promoted":
                _record(history, decision)
        if decision.outcome == "promoted" and history.champion != decision.version:
            history.move(decision.version, decision.sentence)
    log(decision.sentence)
    return decision


@contextlib.contextmanager
def acting(folder: Path, moved_by_hand: bool = False) -> Iterator[History]:
    """`champion.held` for code that moves the champion: updates page and event, also those of a process that died."""
    with champion.held(folder, this_run(), moved_by_hand) as history:
        _follow(history)
        yield history
        _follow(history)


def _follow(history: History) -> None:
    """Write the page again if the history changed, and emit the event of the last move if it was not emitted."""
    file, text = history.folder / PAGE, page(history.folder.name, history.entries)
    if not file.exists() or file.read_bytes() != text.encode():
        file.write_bytes(text.encode())
        group_may(file, 0o040)
    moves = [entry for entry in history.entries if entry.what == "move"]
    if moves and get_current_settings().api.url:
        announce(history.folder, moves[-1])


def page(name: str, entries: list[Entry]) -> str:
    """The history as Markdown, newest first, without the looks, since each has its decision."""
    there = champion.champion_of(entries) or "no version"
    lines = [
        f"# {name}",
        "",
        f"In use: **{there}**. Load it from the folder `{champion.POINTER}`, whose path stays.",
        "",
        "| when (UTC) | version | what was decided | by |",
        "|---|---|---|---|",
    ]
    for entry in reversed(entries):
        if entry.what != "look":
            cells = (entry.at[:16].replace("T", " "), entry.version, entry.said, entry.by)
            lines.append(f"| {' | '.join(visible(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def announce(folder: Path, move: Entry) -> None:
    """Emit the event of a move, at least once; its resource is `qlora-flow.adapter.<name>`.

    The event's id is a hash of the move, so a server that receives it twice stores it once. The id is written to the
    file ANNOUNCED after the server has received the event.
    """
    id, told = uuid5(NAMESPACE_URL, f"{folder}#{move.number}#{move.at}"), folder / ANNOUNCED
    if told.exists() and told.read_bytes() == str(id).encode():
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


def _record(history: History, decision: Decision) -> None:
    """Record that a better version was refused or waits; a repeated run adds no second line."""
    adapter = champion.weights(history.folder, decision.version)
    last = champion.about(history.entries, decision.version, adapter)[-1]
    if (last.what, last.reason) != (decision.outcome, decision.sentence):
        outcome: Any = decision.outcome
        history.add(
            outcome,
            version=decision.version,
            champion=history.champion,
            adapter=adapter,
            reason=decision.sentence,
        )


def _decide(
    history: History,
    version: ArtifactRef,
    scores: ArtifactRef,
    compared: ArtifactRef | None,
    model: BaseModelRef,
    promotion: PromotionConfig,
) -> Decision:
    """The recorded decision about a candidate, or a new one, which spends a look."""
    name, now, opposite = version.path.name, history.champion, compared.path.name if compared else ""
    adapter = champion.weights(history.folder, name)

    def kept(why: str) -> Decision:
        return Decision(outcome="kept", sentence=sentence("kept", name, now, why), version=name, champion=now)

    came = champion.in_use(history.entries)
    if now and adapter == champion.weights(history.folder, now):
        if name != now:
            return kept(f"{name} has the same weights")
        if came[-1].by == history.by and flow_run.id:  # a retry of the run that moved it
            decisions = [e for e in champion.about(history.entries, name, adapter) if e.what == "decision"]
            facts = decisions[-1].facts if decisions else {}
            return Decision(outcome="promoted", sentence=came[-1].reason, version=name, champion=now, facts=facts)
        return kept(f"it is the version in use since {came[-1].at[:10]}, and nothing is new")
    if left := [after for entry, after in pairwise(came) if entry.adapter == adapter]:
        return kept(f"{name} was replaced on {left[-1].at[:10]} by {left[-1].by}; only a person puts it in use again")
    rule = promotion.model_dump(exclude={"approval"})
    rows = _rows(scores, ["id", "prompt", "references"])
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
            looks = champion.looks(history.entries)
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
    """Read the scores, test gain and guards, and record the decision."""
    number = len(champion.looks(history.entries))
    facts: dict[str, Any] = {"metric": promotion.metric, "look": number, "comparisons": promotion.comparisons}
    other = "champion" if look.champion else "base"
    try:
        rows = _rows(scores)
        found = _compare(rows, other, promotion.metric, promotion.min_gain)
        smallest = found.smallest(look.level, promotion.min_gain)
        facts |= {**found._asdict(), "level": look.level, "smallest": smallest}
        for side, who in (("before", other), ("after", "tuned")):
            facts[side] = sum(row[f"{who}_{promotion.metric}"] for row in rows) / len(rows)
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
        for guard in () if why else map(gate.Guard.parse, promotion.guards):
            table = _rows(scores, watched=True) if guard.column == WATCH else rows
            bound = _compare(table, other, guard.metric, -guard.fall, guard.column, guard.value)
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


def _compare(
    rows: list[dict[str, Any]], other: str, name: str, bound: float, column: str = "", value: str = ""
) -> gate.Comparison:
    """Test the gain of the candidate over `champion` or `base` in a metric, on all rows or on those of a slice.

    Raises:
        Incomparable: metric, slice or scores are missing.
    """
    if column:
        rows = [row for row in rows if column in row and str(row[column]) == value]
        if not rows:
            raise gate.Incomparable(f"no test row with {column}={value} was scored")
    both = (f"tuned_{name}", f"{other}_{name}")
    if rows and not set(both) <= rows[0].keys():
        raise gate.Incomparable(f"there are no scores {name}, which evaluation.metrics does not name")
    if missing := [row["id"] for row in rows if row[both[0]] is None or row[both[1]] is None]:
        raise gate.Incomparable(f"row {missing[0]!r} has no {name}")
    gains = [metric(name).gain(row[both[0]] - row[both[1]]) for row in rows]
    return gate.compare(gains, [row["group"] for row in rows], bound)


def _rows(scores: ArtifactRef, columns: list[str] | None = None, watched: bool = False) -> list[dict[str, Any]]:
    """The test rows with their answers and scores, or the rows of the watch sets."""
    import pyarrow.parquet as pq

    from tasks.evaluation.schema import PREDICTIONS, WATCHED

    with intact((scores,)):
        return pq.read_table(scores.path / (WATCHED if watched else PREDICTIONS), columns=columns).to_pylist()


def this_run() -> str:
    """The flow run, or the person where there is none."""
    return f"run {flow_run.name} ({flow_run.id})" if flow_run.id else champion.person()
