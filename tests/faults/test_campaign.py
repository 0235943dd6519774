"""A short campaign, every process started from nothing; the long one is `python -m tests.faults.campaign`."""

from pathlib import Path

import pytest

from tests.faults.campaign import FAULTS, campaign, drawn


@pytest.mark.timeout(600)
def test_a_short_campaign_loses_nothing(tmp_path: Path) -> None:
    results = campaign(["SIGKILL", "ENOSPC"], seed=7, folder=tmp_path, parallel=2)
    assert not any(results.values()), results


def test_a_seed_draws_the_same_faults() -> None:
    assert drawn(100, 3) == drawn(100, 3) != drawn(100, 4)
    assert len(drawn(100, 0)) == 100
    assert set(drawn(100, 0)) == set(FAULTS)
