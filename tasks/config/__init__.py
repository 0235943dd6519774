"""Every field a run can have: the YAML file, the command-line flags and the form in the Prefect UI are these models.

One frozen model per stage. Simple rules are bounds and choices, because the Prefect API enforces those when a run is
triggered. Rules across fields are validators, which are enforced when the configuration is read.
"""

from tasks.config.data import DataConfig, MixedSource, ModelConfig
from tasks.config.evaluation import EvaluationConfig, WatchSet
from tasks.config.execution import ExecutionConfig, ScheduleConfig
from tasks.config.formatting import ARTICLE_PROMPT, FormattingConfig, TokenizationConfig
from tasks.config.metrics import METRICS, TRUSTED, Metric, metric
from tasks.config.publishing import GUARD, PromotionConfig, PublishingConfig
from tasks.config.section import Section
from tasks.config.training import TrainingConfig

__all__ = [
    "ARTICLE_PROMPT",
    "GUARD",
    "METRICS",
    "SECTIONS",
    "TRUSTED",
    "DataConfig",
    "EvaluationConfig",
    "ExecutionConfig",
    "FormattingConfig",
    "Metric",
    "MixedSource",
    "ModelConfig",
    "PromotionConfig",
    "PublishingConfig",
    "ScheduleConfig",
    "Section",
    "TokenizationConfig",
    "TrainingConfig",
    "WatchSet",
    "metric",
]

SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "formatting": FormattingConfig,
    "tokenization": TokenizationConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "publishing": PublishingConfig,
    "promotion": PromotionConfig,
    "execution": ExecutionConfig,
    "schedule": ScheduleConfig,
}
