"""Stage 7: is the new version better than the one in use? If so, it takes its place."""

import contextlib
from pathlib import Path
from typing import Any

from prefect import task
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from tasks.config import ExecutionConfig, PromotionConfig, PublishingConfig, metric
from tasks.evaluation.facts import WATCH, EvaluationFacts
from tasks.promotion import champion, gate
from tasks.promotion.champion import Entry, History
from tasks.promotion.clean_room import try_out
from tasks.promotion.schema import Decision
from tasks.publishing.identity import registry_folder
from tasks.store.artifact import ArtifactRef, intact
from tasks.store.identity import digest_of
from tasks.store.manifest import DamagedArtifact
from tasks.store.model import BaseModelRef


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
    with champion.held(folder, this_run()) as history:
        before = history.champion
        decision = _decide(history, version, scores, compared, model, promotion)
        if decision.outcome != "kept":
            log(f"{decision.version} is better; it is tried in a process of its own before it is put in use")
            try_out(version.path, model, log, execution.hang_minutes)
        if decision.outcome == "promoted":
            history.move(decision.version, decision.sentence, champion.weights(folder, decision.version))
    if decision.outcome == "promoted":
        announce(publishing.name, decision.version, before, decision.sentence)
    log(decision.sentence)
    return decision


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
        return Decision(outcome="kept", sentence=f"Kept {now or 'the base'}: {why}.", version=name, champion=now)

    if now and adapter == champion.weights(history.folder, now):
        if name != now:
            return kept(f"{name} has the same weights")
        came = next(entry for entry in reversed(history.entries) if entry.what in ("opened", "move"))
        return kept(f"it is the version in use since {came.at[:10]}, and nothing is new")
    left = [e for e in history.entries if e.what == "move" and e.champion and _weights(history, e.champion) == adapter]
    if left:
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
    better = "waiting" if promotion.approval else "promoted"
    sentence = decided.reason
    if decided.better:
        begins = f"{name} waits for approval" if promotion.approval else f"Promoted {name}"
        ends = f". Approve: qlora-flow adapters promote {history.folder.name}@{name}" if promotion.approval else ""
        sentence = f"{begins}: {decided.reason}{ends}."
    return Decision(
        outcome=better if decided.better else "kept",
        sentence=sentence,
        version=name,
        champion=name if decided.better and not promotion.approval else now,
        facts=decided.facts,
    )


def _weights(history: History, version: str) -> str:
    """As `champion.weights`, of a version that may be gone."""
    with contextlib.suppress(DamagedArtifact):
        return champion.weights(history.folder, version)
    return ""


def _judge(history: History, look: Entry, scores: ArtifactRef, promotion: PromotionConfig) -> Entry:
    """Read the scores, test, and record what they say."""
    against = look.champion or "base"
    number, now = len(_looks(history.life())), against if look.champion else "the base"
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
        reason = f"Kept {now}: {why}." if why else measured
    except gate.Incomparable as error:
        why = str(error)
        reason = f"Kept {now}: {look.version} cannot be compared, because {why}."
    return history.add(
        "decision",
        version=look.version,
        champion=look.champion,
        adapter=look.adapter,
        key=look.key,
        reason=reason,
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


def announce(name: str, version: str, before: str, reason: str) -> None:
    """Emit the event where a Prefect server is known; its resource is `qlora-flow.adapter.<name>`."""
    if get_current_settings().api.url:
        emit_event(
            "qlora-flow.champion.moved",
            resource={"prefect.resource.id": f"qlora-flow.adapter.{name}", "prefect.resource.name": name},
            payload={"name": name, "version": version, "from": before, "reason": reason},
        )


def this_run() -> str:
    """The flow run, or the person where there is none."""
    return f"run {flow_run.name} ({flow_run.id})" if flow_run.id else champion.person()
