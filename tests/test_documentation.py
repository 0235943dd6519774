"""What the documentation tells a reader to run works as it is written.

The commands of deployments/prefect.yaml are run by the end-to-end tests: their server and worker start by them.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flows.__main__ import _parser, main
from flows.commands.arguments import overrides
from flows.config_file import load
from tests.documented import DEPLOYMENT, PAGES, ROOT, blocks, commands, spans
from tests.tiny import make_rows, write_jsonl

NOT_RUN = {
    "make run": "takes minutes; the bundled model is trained below",
    "make test": "it would run itself",
    ".venv/bin/python -P -m tasks.training.distributed.join": "waits; tests/training/test_processes.py has both nodes",
}
"""Command lines that no test executes, and why."""
NOT_RUN_SPANS = {
    **dict.fromkeys(("pip install s3fs", "pip install gcsfs"), "needs a network"),
    "pip install -c constraints.txt .": "needs a network; the Makefile installs by the same constraints",
    "pip install pre-commit": "needs a network",
    "pip install -e .": "installs a package of the reader's",
    "prefect server start": "the end-to-end tests start one by qlora-flow serve",
    "prefect worker start --pool gpu": "the same",
    "prefect work-pool create gpu --type docker --base-job-template deployments/docker.json": "needs Docker",
    "prefect work-pool create gpu --type kubernetes --base-job-template deployments/kubernetes.json": "needs a cluster",
    '.venv/bin/pytest -m "not slow"': "it would run itself",
    "python benchmarks/gate.py SCORES.parquet …": "it simulates for minutes",
    ".venv/bin/pytest tests/store -x": "those tests run beside this one",
}
"""The same for code within the text."""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has in the working directory, with this environment in place of the one that make creates."""
    for name in ("examples", "benchmarks", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLORA_FLOW_STORE", ".qlora-flow")
    return tmp_path


@pytest.mark.usefixtures("prefect_server", "children_here")
def test_every_command_line_is_run(checkout: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, on a tiny model in place of the reader's own data and base."""
    rows = write_jsonl(checkout / "rows.jsonl", make_rows(40))
    (checkout / "my.yaml").write_text(
        f"data: {{path: {rows}}}\nmodel: {{base: {tiny_model}}}\ntraining: {{max_steps: 2, lora_r: 4}}\n"
        "evaluation: {max_new_tokens: 2}\n"
    )
    lines = [line for page in PAGES for line in commands(page)]
    assert len(lines) > 8
    for line in lines:
        program, *arguments = shlex.split(line)
        if line in NOT_RUN:
            continue
        assert program == ".venv/bin/qlora-flow" and Path(program).exists(), f"{line}: run it here, or say why not"
        try:
            assert main(arguments) == 0, line
        except SystemExit as end:  # --help
            assert end.code == 0, line
    assert (checkout / "out.json").exists()
    assert set(NOT_RUN) <= set(lines), "a line that is no longer there is excused"
    for block in (block for page in PAGES for block in blocks(page, "python")):
        subprocess.run([sys.executable, "-c", block], check=True, env=dict(os.environ))


def test_every_block_is_of_a_kind_that_is_looked_at() -> None:
    """`text` is to be read; `sql` is for DuckDB, which is no dependency."""
    kinds = {kind for page in PAGES for kind in re.findall(r"^```(\w+)$", (ROOT / page).read_text(), re.MULTILINE)}
    assert kinds == {"yaml", "python", "text", "sql"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_the_text_exist(page: str) -> None:
    for span in spans(page):
        program, *arguments = shlex.split(span.removeprefix(".venv/bin/"))
        if program == "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "qlora-flow":
            arguments += ["CONFIG.yaml"] if arguments in (["run"], ["plan"]) else []
            options, unknown = _parser().parse_known_args(arguments)
            assert not unknown, span
            if "config" in options:
                load(ROOT / "examples/dialogue-summary.yaml", overrides(options))
        else:
            assert span in NOT_RUN_SPANS or span in NOT_RUN, f"{page}: {span}: run it here, or say why not"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_every_configuration_is_valid(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        (tmp_path / "my.yaml").write_text(block)
        load(tmp_path / "my.yaml", {})


@pytest.mark.usefixtures("prefect_server", "children_here")
@pytest.mark.slow
def test_the_first_configuration_runs_as_it_stands(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the bundled model, cut short."""
    (checkout / "my.yaml").write_text(blocks("README.md", "yaml")[0])
    short = ["--training.max_steps", "1", "--training.batch_size", "1", "--training.micro_batch_tokens", "512"]
    few = ["--evaluation.max_rows", "2", "--evaluation.max_new_tokens", "2"]
    assert main(["run", "my.yaml", *short, *few]) == 0
    assert "(my-adapter v0001)" in capsys.readouterr().out


def test_the_deployments_commands_are_read() -> None:
    """The end-to-end tests execute what this finds."""
    lines = [shlex.split(line)[:3] for line in commands(DEPLOYMENT) if line.startswith(".venv/bin/")]
    assert lines == [[".venv/bin/qlora-flow", "serve"], [".venv/bin/prefect", "deployment", "run"]]
