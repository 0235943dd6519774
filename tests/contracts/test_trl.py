"""TRL's SFTTrainer and transformers' Trainer below it: what is overridden, called and set.

One run of two steps shows it. No gradient is computed: the step puts ones into them.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from tasks.config import TrainingConfig
from tasks.training.trl_adapter import placeholder_tokenizer, sft_config

ROWS = [
    {"input_ids": [number + 1] * (number % 3 + 4), "labels": [-100, *[number + 1] * (number % 3 + 3)]}
    for number in range(8)
]
CONFIG = TrainingConfig(
    batch_size=4, max_steps=2, max_grad_norm=0.5, learning_rate=0.01, schedule="constant", warmup_share=0.5
)


class Recorder(SFTTrainer):
    """Notes what is called, in order, and with what."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.calls: list[str] = []
        self.seen: dict[str, list[Any]] = {}
        self.folder: str | None = None

    def note(self, name: str, value: Any = None) -> None:
        self.calls.append(name)
        self.seen.setdefault(name, []).append(value)

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        self.note("get_train_dataloader", loader)
        return loader

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.note("training_step", (inputs, self.state.global_step, self._get_learning_rate()))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        return torch.tensor(7.0)

    def _clip_grad_norm(self, model: Any) -> Any:
        before = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        norm = super()._clip_grad_norm(model)
        after = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        self.note("_clip_grad_norm", (norm, before, after))
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.note("_save_checkpoint", model)
        super()._save_checkpoint(model, trial)

    def _get_output_dir(self, trial: Any) -> str:
        self.note("_get_output_dir")
        return self.folder or super()._get_output_dir(trial)

    def create_model_card(self, *given: Any, **named: Any) -> None:
        self.note("create_model_card")

    def floating_point_ops(self, inputs: Any) -> int:
        self.note("floating_point_ops")
        return 0


class SaveOnce(TrainerCallback):
    def __init__(self, trainer: Recorder) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.note("on_step_end", state.global_step)
        control.should_save = state.global_step == 1


@pytest.fixture(scope="module")
def run(llama: Callable[[], LlamaForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run noted, with its trainer and the names of the files of its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    parameters = dict(model.named_parameters())
    rows = Dataset.from_list(ROWS)
    trainer = Recorder(
        model=model,
        args=sft_config(CONFIG, len(rows), folder / "usual"),
        train_dataset=rows,
        data_collator=lambda examples: {"rows": SimpleNamespace(ids=[e["input_ids"] for e in examples])},
        processing_class=placeholder_tokenizer(),
    )
    prepare_model = trainer.accelerator.prepare_model
    trainer.accelerator.prepare_model = lambda *a, **b: trainer.note("prepare_model") or prepare_model(*a, **b)
    trainer.processing_class = None
    trainer.folder = str(folder / "aside")
    trainer.add_callback(SaveOnce(trainer))
    printers = [c for c in trainer.callback_handler.callbacks if isinstance(c, PrinterCallback)]
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return SimpleNamespace(
        trainer=trainer,
        calls=trainer.calls,
        seen=trainer.seen,
        folder=folder,
        parameters=parameters,
        rows=rows,
        printers=printers,
    )


def test_methods_are_called_in_this_order(run: Any) -> None:
    order = ["training_step", "floating_point_ops", "_clip_grad_norm", "on_step_end", "_save_checkpoint"]
    assert [call for call in run.calls if call in order] == [*order, *order[:-1]]


def test_training_step_has_the_collators_objects_and_the_steps_before(run: Any) -> None:
    inputs, _, _ = run.seen["training_step"][0]
    assert inputs.keys() == {"rows"} and isinstance(inputs["rows"], SimpleNamespace)
    assert [step for _, step, _ in run.seen["training_step"]] == [0, 1]


def test_get_learning_rate_is_that_of_the_step(run: Any) -> None:
    assert [rate for _, _, rate in run.seen["training_step"]] == [0, pytest.approx(0.01)]  # one step of warming up


def test_get_train_dataloader_is_what_is_trained_on(run: Any) -> None:
    (loader,) = run.seen["get_train_dataloader"]
    assert len(loader) == 2
    read = [ids for inputs, _, _ in run.seen["training_step"] for ids in inputs["rows"].ids]
    assert sorted(read) == sorted(row["input_ids"] for row in ROWS)


def test_clip_grad_norm_returns_the_norm_before_it_clips(run: Any) -> None:
    norm, before, after = run.seen["_clip_grad_norm"][0]
    total = torch.cat([grad.flatten() for grad in before]).norm()
    assert isinstance(norm, torch.Tensor) and norm.shape == () and total > 0.5
    torch.testing.assert_close(norm, total)
    torch.testing.assert_close(torch.cat([grad.flatten() for grad in after]).norm(), torch.tensor(0.5))


def test_get_output_dir_decides_where_a_checkpoint_goes(run: Any) -> None:
    assert not list((run.folder / "usual").glob("*"))
    assert [path.name for path in (run.folder / "aside").iterdir()] == ["checkpoint-1"]


def test_save_checkpoint_writes_all_that_a_run_needs_to_go_on(run: Any) -> None:
    files = {path.name for path in (run.folder / "aside" / "checkpoint-1").iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= files
    assert not files & {"tokenizer.json", "tokenizer_config.json"}  # none without a processing class


def test_load_from_checkpoint_gives_the_weights_back(run: Any) -> None:
    trained = {name: p for name, p in run.trainer.model.named_parameters() if p.requires_grad}
    end = {name: p.detach().clone() for name, p in trained.items()}
    run.trainer._load_from_checkpoint(str(run.folder / "aside" / "checkpoint-1"))
    first = {name: p.detach().clone() for name, p in trained.items()}
    assert all(not torch.equal(first[name], end[name]) for name in end)
    for parameter in trained.values():
        parameter.data.zero_()
    run.trainer._load_from_checkpoint(str(run.folder / "aside" / "checkpoint-1"))
    assert all(torch.equal(trained[name], first[name]) for name in first)


def test_create_model_card_is_where_a_card_is_written(run: Any) -> None:
    assert run.seen["create_model_card"] == [None]


def test_prepare_model_set_on_the_accelerator_is_used(run: Any) -> None:
    assert isinstance(run.trainer.accelerator, Accelerator)
    assert len(run.seen["prepare_model"]) == 1


def test_skip_prepare_dataset_leaves_the_rows_alone(run: Any) -> None:
    assert run.trainer.train_dataset.to_list() == run.rows.to_list() == ROWS


def test_parameters_stay_the_same_objects(run: Any) -> None:
    """Their float32 values are put back after SFTTrainer has rounded them."""
    assert {id(p) for p in run.trainer.model.parameters()} == {id(p) for p in run.parameters.values()}


def test_printer_callback_is_there_to_be_removed(run: Any) -> None:
    assert len(run.printers) == 1
    assert not any(isinstance(c, PrinterCallback) for c in run.trainer.callback_handler.callbacks)


def test_global_step_counts_the_finished_ones(run: Any) -> None:
    assert run.seen["on_step_end"] == [1, 2] and run.trainer.state.global_step == 2


@pytest.mark.parametrize("places, parallel", [({"": "cpu"}, False), ({"a": 0, "b": 1}, True)])
def test_hf_device_map_says_whether_a_model_is_spread(
    llama: Callable[[], LlamaForCausalLM], tmp_path: Path, places: dict[str, Any], parallel: bool
) -> None:
    """Sharding overwrites it with the device that computes."""
    base: Any = llama()
    base.hf_device_map = places
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    rows = Dataset.from_list(ROWS)
    trainer = SFTTrainer(
        model=model, args=sft_config(CONFIG, 8, tmp_path), train_dataset=rows, processing_class=placeholder_tokenizer()
    )
    assert trainer.is_model_parallel is parallel
