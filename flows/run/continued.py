"""What a retrain continues: the weights of an adapter, and earlier rows.

A champion that was made from exactly this data, base, configuration and code is not continued: the run goes on from
what that champion was made from itself. So it has the same keys, and an unchanged night stays unchanged.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from tasks.config import DataConfig, TrainingConfig
from tasks.download.identity import rows_identity
from tasks.errors import UserError
from tasks.promotion.champion import current
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import versions
from tasks.store.artifact import ArtifactRef, reference
from tasks.store.manifest import DamagedArtifact, readable
from tasks.store.model import BaseModelRef
from tasks.store.origins import by_digest, results, rows_of
from tasks.training.identity import identity as train_identity
from tasks.training.start import CHAMPION, WEIGHTS, Start, check_start


def to_replay(data: DataConfig, registry: Path, log: Callable[[str], None] = lambda line: None) -> ArtifactRef | None:
    """The rows of which `data.replay_share` mixes some in: those that the champion was made from.

    Raises:
        UserError: they are not in this store.
    """
    if not data.replay_share:
        return None
    champion = current(registry)
    if champion is None:
        log("data.replay_share: no version is in use yet, so no earlier rows are mixed in")
        return None
    manifests = results()
    holding = by_digest(manifests)
    rows = rows_of(champion.manifest, manifests, holding)
    if rows is None:
        raise UserError(
            f"data.replay_share: the rows that {champion.path.name} was made from are not in this store any more. Run "
            "once with --data.replay_share 0, or with the store in which it was made."
        )
    replayed = holding.get(rows.manifest.identity.inputs.get("replay", ""), [])
    for before in (None, *(reference(folder, manifests[folder]) for folder in replayed)):
        if rows_identity(data, before).key == rows.manifest.key:
            return before
    return rows


def to_begin_from(
    training: TrainingConfig,
    registry: Path,
    folder: Path | None,
    model: BaseModelRef | None,
    log: Callable[[str], None] = lambda line: None,
) -> Start | None:
    """The adapter that `training.start_from` names.

    Args:
        folder: of a path or a Hub id, as `adapter_folder` gives it.
        model: the base; None: it is not on this machine yet.
    Raises:
        UserError: it is damaged, or cannot be continued with this base and configuration.
    """
    if training.start_from == CHAMPION:
        if (champion := current(registry)) is None:
            log("training.start_from: no version is in use yet, so training begins from nothing")
            return None
        return check_start(champion.path, f"the champion {champion.path.name}", training, model)
    return check_start(folder, training.start_from, training, model) if folder else None


def unless_trained(
    start: Start | None, registry: Path, tokens: ArtifactRef, model: BaseModelRef, training: TrainingConfig
) -> Start | None:
    """`start`, or what the champion began from itself, where it was trained on exactly this."""
    if start is None or training.start_from != CHAMPION or (champion := current(registry)) is None:
        return start
    with contextlib.suppress(DamagedArtifact):  # of an earlier format
        made = champion.facts(VersionFacts)
        for began in (None, *_versions_with(made.begun_from, registry)):
            if train_identity(tokens, model, training, began).key == made.training:
                return began
    return start


def _versions_with(weights: str, registry: Path) -> list[Start]:
    there = readable(versions(registry)).items() if weights else ()
    return [
        Start(folder=str(folder), digest=weights)
        for folder, manifest in there
        if WEIGHTS in manifest.files and manifest.files[WEIGHTS].sha256 == weights
    ]
