"""A short campaign; the long one is `make faults`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.bench import ROOT, may_mount, processes
from tests.faults.campaign import FAULTS, drawn


@pytest.mark.timeout(3600)
def test_a_short_campaign_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.faults.campaign", "--runs", "6", "--seed", "11"]
    campaign = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert campaign.returncode == 0, campaign.stdout
    assert campaign.stdout.count("survived\n") == 6


def test_a_process_that_outlives_a_fault_is_found_though_it_is_a_fork(tmp_path: Path) -> None:
    """A fork keeps the environment of the process that it comes from, so that cannot tell whose it is."""
    store = tmp_path / "store"
    code = "import sys, time; from tests.faults.forked import _settle; _settle({'QLORA_FLOW_STORE': sys.argv[1]}, None)"
    survivor = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(300)", str(store)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert survivor.stdout is not None
        survivor.stdout.readline()
        assert processes(store) == [survivor.pid]
        assert processes(tmp_path / "another") == []
    finally:
        survivor.kill()
        survivor.wait()
    assert processes(store) == []


def test_a_seed_draws_the_same_faults() -> None:
    assert drawn(100, 3) == drawn(100, 3) != drawn(100, 4)
    assert len(drawn(100, 0)) == 100
    assert set(drawn(100, 0)) == set(FAULTS) - (set() if may_mount() else {"disk full"})


@pytest.mark.timeout(3600)
def test_a_short_campaign_of_promotions_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.faults.promotion", "--runs", "12", "--seed", "5"]
    campaign = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert campaign.returncode == 0, campaign.stdout
    assert campaign.stdout.count("survived\n") == 12
