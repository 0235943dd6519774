"""Common parts of the metrics: their features, and the best of several references."""

from collections.abc import Callable

import datasets
import evaluate


def info(description: str | None, **more: str) -> evaluate.MetricInfo:
    """Of a metric over texts and references, with further columns of these types."""
    return evaluate.MetricInfo(
        description=description or "",
        citation="",
        inputs_description="predictions=[text], references=[[text, …]]",
        features=datasets.Features(
            {
                "predictions": datasets.Value("string"),
                "references": datasets.List(datasets.Value("string")),
                **{name: datasets.Value(kind) for name, kind in more.items()},
            }
        ),
    )


def best(score: Callable[[str, str], float], predictions: list[str], references: list[list[str]]) -> list[float]:
    """The highest `score(prediction, reference)` of each row."""
    return [
        max(score(answer, target) for target in targets)
        for answer, targets in zip(predictions, references, strict=True)
    ]
