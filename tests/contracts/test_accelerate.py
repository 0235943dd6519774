"""accelerate: what the trainer sets on its loader and on its accelerator."""

import inspect
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader

WHOLE = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
FIELDS = {"num_processes": 1, "process_index": 0, "even_batches": False}


def second_of_two() -> Any:
    """The loader of one of two processes: it has every second batch, filled up with rows from the beginning."""
    loader = DataLoader(list(range(10)), batch_size=4, collate_fn=list)
    return prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False)


def test_batch_sampler_of_a_prepared_loader_is_a_shard() -> None:
    loader = second_of_two()
    assert type(loader.batch_sampler) is BatchSamplerShard
    assert vars(loader.batch_sampler).keys() >= FIELDS.keys()
    assert [*loader] != WHOLE


def test_num_processes_process_index_even_batches_give_whole_steps() -> None:
    loader = second_of_two()
    for name, value in FIELDS.items():
        setattr(loader.batch_sampler, name, value)
    assert [*loader] == [*loader.batch_sampler] == WHOLE
    assert len(loader) == 3


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_of_the_shard_matters(name: str) -> None:
    loader = second_of_two()
    for other in FIELDS.keys() - {name}:
        setattr(loader.batch_sampler, other, FIELDS[other])
    assert [*loader.batch_sampler] != WHOLE


@pytest.mark.usefixtures("process_group")
def test_prepare_model_of_the_accelerator_is_what_prepare_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer replaces it on the instance, for evaluation mode, in which a model is not wrapped in DDP."""
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.MULTI_CPU)
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    assert isinstance(accelerator.prepare_model(model), torch.nn.parallel.DistributedDataParallel)
    assert accelerator.prepare_model(model, evaluation_mode=True) is model
    prepare_model: Any = accelerator.prepare_model
    accelerator.prepare_model = lambda *a, **b: prepare_model(*a, **b, evaluation_mode=True)  # type: ignore[method-assign]
    assert accelerator.prepare(model) is model
    assert "evaluation_mode" in inspect.signature(Accelerator.prepare_model).parameters
