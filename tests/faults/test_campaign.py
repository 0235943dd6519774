"""A short campaign; the long one is `make faults`."""

import subprocess
import sys

import pytest

from tests.faults.bench import ROOT
from tests.faults.campaign import FAULTS, drawn


@pytest.mark.timeout(600)
def test_a_short_campaign_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.faults.campaign", "--runs", "6", "--seed", "11"]
    campaign = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert campaign.returncode == 0, campaign.stdout
    assert campaign.stdout.count("survived\n") == 6


def test_a_seed_draws_the_same_faults() -> None:
    assert drawn(100, 3) == drawn(100, 3) != drawn(100, 4)
    assert len(drawn(100, 0)) == 100
    assert set(drawn(100, 0)) == set(FAULTS)
