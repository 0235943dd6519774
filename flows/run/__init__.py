"""What a run does beside its stages: plan, comparison with earlier runs, checks of rows, logs, events, summary."""
