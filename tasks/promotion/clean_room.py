"""Loads a published version in a separate process with plain PEFT, as a server does, and checks stored answers.

The process uses no code of training or evaluation (fused layers, packed rows), so it detects their errors.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.process.child import main, run_child
from tasks.process.progress import Progress
from tasks.process.quiet import silence
from tasks.promotion.champion import intact
from tasks.promotion.schema import CleanRoomJob
from tasks.publishing.schema import PROBES, Probe, Probes
from tasks.store.artifact import ArtifactRef
from tasks.store.model import BaseModelRef

TOLERANCE = 0.05
"""Largest difference in nats between the loss of an answer here and in evaluation. Sums are rounded in bfloat16 in
another order; the largest difference on the example's eight answers is 0.012."""
WEAKER = (
    " The adapter acts, but less than in evaluation: its scale is another one, or its update is so small that a part "
    "is lost where PEFT adds it to outputs in bfloat16. Longer training or a higher training.learning_rate enlarges it."
)
NO_PROBES = Probes(
    training=dict(quantization="none", quant_type="nf4", compute_dtype="bfloat16", double_quant=False), rows=[]
)
"""For versions of earlier formats, without stored answers: they are loaded only."""


def try_out(version: Path, model: BaseModelRef, log: Callable[[str], None], hang_minutes: float | None = None) -> None:
    """Verify a published version and its base, and load both in a separate process.

    Raises:
        UserError: the version has another base, does not load, or its answers have another loss.
    """
    published = intact(version.parent, version.name)
    check_base(published, model)
    model.verify()
    log(f"{version.name} is loaded in a separate process, as a server does")
    job = CleanRoomJob(version=str(version), base=model.folder, probes=probes_of(published))
    run_child("tasks.promotion.clean_room", job.model_dump(), log, hang_minutes)


def check_base(version: ArtifactRef, model: BaseModelRef) -> None:
    """Raises UserError if a version was not trained on this base."""
    manifest, name = version.manifest, f"{version.path.name} of {version.path.parent.name}"
    source, revision = (manifest.identity.config.get(name, "") for name in ("source", "revision"))
    for what, published, there in (
        ("base", source, model.source),
        ("revision of the base", revision, model.revision),
        ("content (weights, configuration, tokenizer) of the base", manifest.identity.inputs["model"], model.digest),
    ):
        if published != there:
            raise UserError(f"{name} has another {what}: {published}, not {there}.")


def probes_of(version: ArtifactRef) -> Probes:
    """The stored answers of a version, with the options for loading its base."""
    stored = version.path / PROBES
    return Probes.model_validate_json(stored.read_bytes()) if stored.name in version.manifest.files else NO_PROBES


def check(work: dict[str, Any]) -> None:
    """Do a `CleanRoomJob`.

    Raises:
        UserError: the adapter does not fit its base, or an answer has another loss than in evaluation.
    """
    silence()
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    from tasks.model.quantization import load_options

    job = CleanRoomJob.model_validate(work)
    name = Path(job.version).name
    options = load_options(**job.probes.training)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base: Any = AutoModelForCausalLM.from_pretrained(
        job.base, device_map={"": device}, local_files_only=True, **options
    )
    if device == "cpu" and "quantization_config" in options:
        base = base.dequantize().to(options["dtype"])  # the same values, expanded once instead of in every pass
    try:
        model = PeftModel.from_pretrained(base, job.version, autocast_adapter_dtype=False).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{name} does not load on its base: {' '.join(str(error).split())[:300]}") from error
    # with the default of `save_embedding_layers`, PEFT asks the Hub about the base's vocabulary
    parts = get_peft_model_state_dict(model, save_embedding_layers=False)
    loaded = {key: tuple(value.shape) for key, value in parts.items()}
    with safe_open(Path(job.version, "adapter_model.safetensors"), "pt") as file:
        # the file has keys(), and is not iterable
        stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for key in sorted(loaded.keys() | stored.keys()):
        if loaded.get(key) != stored.get(key):
            raise UserError(f"{name} has {key} as {stored.get(key)}, and on its base it is {loaded.get(key)}.")
    vocabulary = base.get_input_embeddings().weight.shape[0]
    if any(max(row.input_ids) >= vocabulary for row in job.probes.rows):
        raise UserError(f"{name} was trained on token ids that its base, with {vocabulary:,} of them, does not have.")
    progress = Progress(len(job.probes.rows), "answers", lambda line: print(f"clean-room: {line}"))
    for number, row in enumerate(job.probes.rows, 1):
        found = loss(model, row)
        with model.disable_adapter():
            of_base = loss(model, row)
        if not (math.isfinite(found) and abs(found - row.tuned) <= TOLERANCE):
            raise UserError(
                f"{name} has loss {found:.4f} on stored answer {number} where evaluation measured {row.tuned:.4f}; the "
                f"base has {of_base:.4f}.{WEAKER if row.tuned < found < of_base else ''}"
            )
        if found >= of_base:
            raise UserError(f"{name} is no better than its base on stored answer {number}: {found:.4f}, {of_base:.4f}.")
        progress(number / len(job.probes.rows), number)
    print(f"{name} loads on its base with plain PEFT; {len(job.probes.rows)} stored answers have the loss they had")


def prepare() -> None:
    """Import what `check` imports."""
    silence()
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401


def loss(model: Any, row: Probe) -> float:
    """Mean negative log-likelihood of a row's target tokens, in nats, from the model's own forward pass."""
    import torch

    ids = torch.tensor([row.input_ids], device=model.device)
    labels = torch.tensor(row.labels[1:], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100))


if __name__ == "__main__":
    main(check, prepare=prepare)
