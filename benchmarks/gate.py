"""How often does the gate promote an adapter that is no better, and how often one that is?

    python benchmarks/gate.py [--histories 2000] [PREDICTIONS.parquet …]

Histories of 100 retrains. Each candidate's row scores are drawn from a pool of adapters: the `tuned_loss` and
`tuned_rougeL` of at least ten files that evaluation left for the same rows (`gate_pool.py` trains such adapters), or,
without files, a made-up pool (below). Residuals of two adapters
are mixed, so that candidates are as correlated, skewed and heavy-tailed as the pool is; a candidate's true mean is set.
Rows come in whole groups, the test set grows, every comparison uses the same rows, and champions were chosen on them.
A promotion is false when the candidate's true mean is not better than the champion's.
"""

import argparse
import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.promotion.gate import compare, next_level, quantile

RETRAINS = 100
ERROR_RATE, COMPARISONS = 0.05, 100


@dataclass
class Pool:
    """Residuals `[adapters, rows]`, each adapter's with mean 0, and the group of each row."""

    residuals: np.ndarray
    groups: np.ndarray


def made_up(seed: int, adapters: int = 12, groups: int = 1500) -> Pool:
    """Losses of adapters as they were seen on dialogue summaries: what an adapter does to a row is skewed and has heavy
    tails (t with 4 degrees of freedom, squared on one side), half of it shared within a group of 1 to 5 rows. The
    paired difference of two candidates has a standard deviation of about 0.08."""
    chance = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), chance.integers(1, 6, groups))

    def noise(count: int) -> np.ndarray:
        drawn = chance.standard_t(4, (adapters, count)) * 0.03
        return np.where(drawn > 0, drawn * (1 + 4 * drawn), drawn)

    residuals = noise(len(group)) + noise(groups)[:, group]
    return Pool(residuals - residuals.mean(1, keepdims=True), group)


def measured(files: list[Path], score: str = "tuned_loss") -> Pool:
    import pyarrow.parquet as pq

    tables = [{row["id"]: row for row in pq.read_table(file).to_pylist()} for file in files]
    ids = sorted(set.intersection(*(set(table) for table in tables)))
    if len(tables) < 10 or len(ids) < 100:
        raise SystemExit(f"{len(tables)} files share {len(ids)} rows; ten files with a hundred rows are needed")
    scores = np.array([[table[id][score] for id in ids] for table in tables])
    names = [tables[0][id]["group"] or id for id in ids]
    scores -= scores.mean(0)  # what is common to all cancels in pairs
    return Pool(scores - scores.mean(1, keepdims=True), np.unique(names, return_inverse=True)[1])


class History:
    """One test set, drawn in whole groups, and the candidates on it."""

    def __init__(self, pool: Pool, chance: np.random.Generator, rows: tuple[int, int]) -> None:
        self.pool, self.chance = pool, chance
        members = np.split(np.argsort(pool.groups, kind="stable"), np.cumsum(np.bincount(pool.groups))[:-1])
        mean = len(pool.groups) / len(members)
        drawn = [members[i] for i in chance.integers(0, len(members), int(rows[1] / mean) + 1)]
        self.rows = np.concatenate(drawn)
        self.group = np.repeat(np.arange(len(drawn)), [len(d) for d in drawn])
        ends = np.cumsum([len(d) for d in drawn])
        self.sizes = [int(ends[np.searchsorted(ends, min(n, ends[-1]))]) for n in np.linspace(*rows, RETRAINS)]

    def candidate(self, truth: float) -> np.ndarray:
        one, two = self.chance.choice(len(self.pool.residuals), 2, replace=False)
        angle = self.chance.uniform(0, np.pi / 2)
        mixed = np.cos(angle) * self.pool.residuals[one] + np.sin(angle) * self.pool.residuals[two]
        return mixed[self.rows] + truth


def statistic(differences: np.ndarray, group: np.ndarray) -> float:
    """The t of `gate.compare`, fast."""
    gain, count = differences.mean(), group[-1] + 1
    squares = (np.bincount(group, differences - gain) ** 2).sum()
    return float(gain / (np.sqrt(squares * count / (count - 1)) / len(differences)))


def run(history: History, truths: list[float], plain: bool) -> tuple[int, int]:
    """False and true promotions in a history whose candidates have these true losses; the first champion has 0."""
    champion, best, looks, false, true = history.candidate(0.0), 0.0, [], 0, 0
    for truth, size in zip(truths, history.sizes, strict=True):
        candidate = history.candidate(truth)
        differences, group = (champion - candidate)[:size], history.group[:size]
        t = statistic(differences, group)
        fresh, level = next_level(looks, ERROR_RATE, COMPARISONS)
        if plain:
            better = t > 1.96
        else:  # the product's own function wherever it could say yes
            better = t > 1.5 and compare(differences.tolist(), list(map(str, group))).p_value <= level
        looks.append(SimpleNamespace(fresh=fresh, level=level, better=better))
        if better:
            false, true = false + (truth >= best), true + (truth < best)
            champion, best = candidate, truth
    return false, true


def scenarios() -> dict[str, tuple[tuple[int, int], list[float]]]:
    """Name → rows at the first and the last retrain, true losses of the candidates."""

    def after(*steps: int) -> list[float]:
        return [-0.1 * sum(n >= step for step in steps) for n in range(RETRAINS)]

    return {
        "all ties, 500 rows": ((500, 500), after()),
        "all ties, 200 growing to 1,000 rows": ((200, 1000), after()),
        "all ties, 60 rows": ((60, 60), after()),
        "better at 10 and 20, then ties": ((200, 1000), after(10, 20)),
        "better at 1 to 10, then ties": ((200, 1000), after(*range(1, 11))),
        "better at 90, then ties": ((200, 1000), after(90)),
    }


def power(pool: Pool, seed: int, histories: int, gain: float, scale: float) -> list[float]:
    """Share of candidates, better by `gain`, that are found at look 1, 50 and 100 with 500 rows; no look before
    succeeded. `scale`: of the pool's residuals."""
    found = []
    for look in (1, 50, 100):
        looks: list[Any] = []
        for _ in range(look - 1):
            fresh, level = next_level(looks, ERROR_RATE, COMPARISONS)
            looks.append(SimpleNamespace(fresh=fresh, level=level, better=False))
        level, chance, better = next_level(looks, ERROR_RATE, COMPARISONS)[1], np.random.default_rng(seed + look), 0
        for _ in range(histories):
            history = History(pool, chance, (500, 500))
            differences = (history.candidate(0.0) - history.candidate(0.0)) * scale + gain
            better += statistic(differences, history.group) > critical(level, int(history.group[-1]))
        found.append(better / histories)
    return found


@functools.cache
def critical(level: float, freedom: int) -> float:
    return quantile(level, freedom)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--histories", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    pool = measured(options.files) if options.files else made_up(options.seed)
    print(
        f"pool: {'measured' if options.files else 'made up'}, {len(pool.residuals)} adapters, {len(pool.groups):,} rows"
    )
    print(
        f"| {options.histories:,} histories of {RETRAINS} retrains | gate | plain 95 % gate | true promotions found |"
    )
    print("|---|---:|---:|---:|")
    for name, (rows, truths) in scenarios().items():
        shares = []
        for plain in (False, True):
            chance = np.random.default_rng(options.seed)
            results = [run(History(pool, chance, rows), truths, plain) for _ in range(options.histories)]
            shares.append((np.mean([false > 0 for false, _ in results]), sum(true for _, true in results)))
        steps = len(set(truths)) - 1
        found = f"{shares[0][1] / steps / options.histories:.1%}" if steps else ""
        print(f"| {name} | {shares[0][0]:.2%} | {shares[1][0]:.1%} | {found} |", flush=True)
    answers = measured(options.files, "tuned_rougeL") if options.files else pool
    loss, rouge = (float(np.std(one.residuals[0] - one.residuals[1])) for one in (pool, answers))
    wanted = rouge if options.files else 0.12  # the made-up pool is of losses; answers scatter more
    print(f"\nPower with 500 rows; paired differences have the deviation {loss:.3f} in loss, {wanted:.3f} in ROUGE-L")
    print("| true gain | look 1 | look 50 | look 100 |\n|---|---:|---:|---:|")
    for name, of, gain, scale in (
        ("loss 0.005", pool, 0.005, 1.0),
        ("loss 0.01", pool, 0.01, 1.0),
        ("loss 0.02", pool, 0.02, 1.0),
        ("ROUGE-L 0.01", answers, 0.01, wanted / rouge),
        ("ROUGE-L 0.02", answers, 0.02, wanted / rouge),
    ):
        shares = power(of, options.seed, options.histories, gain, scale)
        print(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares)} |", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
