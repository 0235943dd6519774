"""docs/configuration.md says of every field what tasks/config says."""

import runpy
from pathlib import Path

from tasks.config import SECTIONS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_up_to_date() -> None:
    written = runpy.run_path(str(DOCS / "configuration.py"))["page"]()
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == written, "run `make docs`"


def test_the_page_has_every_field_and_bound() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for group, model in SECTIONS.items():
        section = page.partition(f"\n## {group}\n")[2].partition("\n## ")[0]
        assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == [*model.model_fields]
    assert "| `lora_dropout` | number, ≥ 0, < 1 | `0.0` |" in page
    assert '| `compute_dtype` | `bfloat16`, `float16`, `float32` | `"bfloat16"` |' in page
