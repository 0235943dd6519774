"""Packed rows must give what the rows give one by one, whatever the packing."""

import random
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.model import attention
from tasks.model.fused_loss import use_fused_loss
from tasks.training.packing import Row, collate, divide, flatten, pack
from tests.training.conftest import ARCHITECTURES, make_token_rows

CPU = torch.device("cpu")


def reference(folder, rows):
    """Loss sum and weight gradients of stock transformers, one unpadded row at a time, no packing anywhere."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=row.input_ids[None]).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, row.labels[1:], reduction="sum")
    total.backward()
    return total.detach(), {n: p.grad for n, p in model.named_parameters() if "layers" in n}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [16, 60, 1000])
def test_loss_and_gradients_equal_those_of_single_rows(bases, architecture, budget):
    rows = collate(make_token_rows(7))["rows"].rows
    want, want_gradients = reference(bases(architecture), rows)
    model = AutoModelForCausalLM.from_pretrained(
        bases(architecture), dtype=torch.float32, attn_implementation=attention.NAME
    )
    use_fused_loss(model)
    total = torch.zeros(())
    for group in pack(rows, budget):
        loss = model(**vars(flatten(group, CPU)))
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, want, rtol=1e-5, atol=1e-4)
    for name, parameter in model.named_parameters():
        if "layers" in name:
            torch.testing.assert_close(parameter.grad, want_gradients[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_do_not_see_the_neighbour(bases, architecture):
    rows = collate(make_token_rows(3))["rows"].rows
    model = AutoModelForCausalLM.from_pretrained(
        bases(architecture), dtype=torch.float32, attn_implementation=attention.NAME
    )

    def last(group):
        batch = flatten(group, CPU)
        hidden = model.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            cu_seq_lens_q=batch.boundaries,
            max_length_q=batch.longest,
        ).last_hidden_state[0]
        return hidden[-len(group[-1].input_ids) :]

    torch.testing.assert_close(last(rows), last(rows[2:]), rtol=1e-4, atol=1e-5)


def test_noise_follows_the_rows_own_length(bases):
    rows = collate(make_token_rows(3))["rows"].rows
    model = AutoModelForCausalLM.from_pretrained(
        bases("llama"), dtype=torch.float32, attn_implementation=attention.NAME
    )
    clean = model.get_input_embeddings()(flatten(rows, CPU).input_ids)
    use_fused_loss(model, noise=5.0)
    seen = []
    model.model.register_forward_pre_hook(lambda _, args, named: seen.append(named), with_kwargs=True)
    model.eval()(**vars(flatten(rows, CPU)))
    model.train()(**vars(flatten(rows, CPU)))
    assert "inputs_embeds" not in seen[0]
    noise = (seen[1]["inputs_embeds"] - clean)[0]
    for part, row in zip(noise.split([len(row.input_ids) for row in rows]), rows, strict=True):
        bound = 5.0 / (len(row.input_ids) * noise.shape[-1]) ** 0.5
        assert 0.95 * bound < part.abs().max() <= bound


def test_rows_are_packed_whole_and_within_the_budget():
    rows = collate(make_token_rows(50))["rows"].rows
    groups = pack(rows, 40)
    assert sorted(id(row) for group in groups for row in group) == sorted(id(row) for row in rows)
    assert all(sum(len(row.input_ids) for row in group) <= 40 for group in groups)
    assert [len(group) for group in pack(rows, 1)] == [1] * 50  # longer than the budget: alone, never cut


def test_rows_are_divided_evenly_among_processes():
    rows = collate(make_token_rows(50))["rows"].rows
    shares = divide(rows, 4)
    sizes = [sum(len(row.input_ids) for row in share) for share in shares]
    assert sorted(id(row) for share in shares for row in share) == sorted(id(row) for row in rows)
    assert max(sizes) - min(sizes) <= max(len(row.input_ids) for row in rows)
    assert sorted(map(len, divide(rows[:2], 3))) == [0, 1, 1]


def slow_pack(rows, budget):
    """`pack` and `divide` word for word, in quadratic time."""

    def spread(rows, parts):
        lists = [[] for _ in range(parts)]
        for row in rows:
            min(lists, key=tokens).append(row)
        return lists

    def tokens(group):
        return sum(len(row.input_ids) for row in group)

    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    groups = []
    for row in ordered:
        fitting = [group for group in groups if tokens(group) + len(row.input_ids) <= budget]
        if fitting:
            max(fitting, key=tokens).append(row)
        else:
            groups.append([row])
    even = spread(ordered, len(groups))
    return even if all(tokens(group) <= budget for group in even) else groups


@pytest.mark.parametrize("seed", range(20))
def test_packs_are_those_of_the_slow_way(seed):
    draw = random.Random(seed)
    longest, budget = draw.choice([12, 300, 3000]), draw.choice([10, 100, 1000, 4000])
    rows = [Row(ids, ids) for ids in (torch.zeros(draw.randint(1, longest)) for _ in range(draw.randint(1, 150)))]
    want = [[id(row) for row in group] for group in slow_pack(rows, budget)]
    assert [[id(row) for row in group] for group in pack(rows, budget)] == want


def test_many_rows_are_packed_at_once():
    draw = random.Random(0)
    rows = [Row(ids, ids) for ids in (torch.zeros(draw.randint(1, 600)) for _ in range(40_000))]
    began = time.process_time()
    pack(rows, 1024)
    assert time.process_time() - began < 5  # over 20 where every row looks at every group


def test_first_token_is_never_a_target():
    rows = collate([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, -100]}])["rows"]
    batch = flatten(rows.rows, CPU)
    assert rows.targets == 2
    assert batch.target_positions.tolist() == [0, 1] and batch.targets.tolist() == [6, 7]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]] and batch.boundaries.tolist() == [0, 3, 5]
