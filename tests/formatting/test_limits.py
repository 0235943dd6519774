"""Templates that run wild cost their row, in bounded time and memory, whichever way they take."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting import templates
from tasks.formatting.prompts import write_prompts
from tests.tiny import make_model, write_rows_file

BOMBS = [  # what stands before @@ is outside of the condition that chooses the row
    "{{ 'a' * 10**11 }}",
    "{{ [0] * 10**11 }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:>99999999999}'.format(1) }}",
    "{{ 'x'.rjust(10**11) }}",
    "{{ 'x'.zfill(10**11) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x' | center(10000000000) }}",
    "{% if 'x' | center(10000000000) %}{% endif %}",
    "{{ lipsum(n=10**9) }}",
    "{{ 10**(10**10) }}",
    "{{ 9**99999 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}@@{{ m() }}",
    "{% set s = namespace(x='ab') %}@@{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
    "{% set s = namespace(x='ab') %}@@{% for i in range(60) %}{% set s.x = s.x | replace('a', s.x) %}{% endfor %}",
    "{% set s = namespace(x=9) %}@@{% for i in range(60) %}{% set s.x = s.x * s.x %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ range(99999) | map('string') | join('x' * 99999) }}",
]
PROGRAM = """
import json, sys
from pathlib import Path
from tasks.formatting import templates
from tests.formatting.test_limits import formatted
templates.LONGEST_SECONDS = 0.5
style, folder, bombs = json.loads(sys.stdin.read())
for n, bomb in enumerate(bombs):
    print(json.dumps([bomb, *formatted(Path(folder) / str(n), style, bomb)]), flush=True)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def formatted(folder: Path, style: str, bomb: str) -> tuple[int, list[str]]:
    """Prompts made of 30 rows, of which one sets the bomb off; reason and detail of those that are lost."""
    folder.mkdir(parents=True)
    before, _, bomb = bomb.rpartition("@@")
    rows: list[dict[str, Any]] = []
    for n in range(30):
        text = "bomb" if n == 7 else f"text {n}"
        said = [{"role": "user", "content": text}, {"role": "assistant", "content": f"answer {n}"}]
        row = {"_split": "test" if n < 10 else "train", "text": text, "summary": f"answer {n}"}
        rows.append(row | ({"messages": said} if style == "chat" else {}))
    write_rows_file(folder / "rows.parquet", rows)
    if style == "chat":
        model = make_model(folder / "model")
        file = model / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        settings["chat_template"] = (
            f"{before}{{% if messages[0].content == 'bomb' %}}{bomb}{{% endif %}}{settings['chat_template']}"
        )
        file.write_text(json.dumps(settings))
        config = FormattingConfig(style="chat")
    else:
        config = FormattingConfig(prompt=f"{before}{{% if text == 'bomb' %}}{bomb}{{% endif %}}{{{{ text }}}}")
    info = write_prompts(folder / "rows.parquet", folder / "model", config, folder)
    ledger = pq.read_table(folder / "ledger.parquet").to_pylist()
    return info.rows, [
        f"{line['id']} {line['reason']}: {line['detail']}" for line in ledger if line["verdict"] == "lost"
    ]


@pytest.mark.parametrize(
    ("style", "bombs"), [("template", BOMBS), ("chat", BOMBS[:1] + BOMBS[6:9] + BOMBS[10:11] + BOMBS[12:14])]
)
def test_a_bomb_costs_its_row(style: str, bombs: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([style, str(tmp_path), bombs]),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    *results, peak = (line for line in done.stdout.splitlines() if not line.startswith("format: "))  # its progress
    for result in results:
        bomb, rows, lost = json.loads(result)
        assert rows == 29 and len(lost) == 1, (bomb, rows, lost)
        assert lost[0].startswith("r7 cannot be formatted: ") and len(lost[0]) > 40, (bomb, lost)
    assert len(results) == len(bombs)
    assert int(peak) < 2 * templates.MOST_MEMORY >> 10  # KiB: beside the limit, what the process has


def test_a_template_of_endless_brackets_is_one_sentence() -> None:
    for source in ("{{ " + "(" * 10**5, "{{ " + "[" * 10**5 + "]" * 10**5 + " }}", "{% if a %}" * 10**4):
        with pytest.raises(UserError, match=r"formatting.prompt: "):
            templates.compile_template(source, "formatting.prompt", {"a"})


def test_the_clock_runs_outside_of_the_main_thread_as_well(tmp_path: Path) -> None:
    """A signal reaches the main thread alone, so the work goes to a process of its own."""
    found: list[Any] = []

    def work() -> None:
        found.append(
            formatted(
                tmp_path / "a",
                "template",
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ((rows, lost),) = found
    assert rows == 29 and "loops more than" in lost[0]
