"""Processes of a run: children, pools of them, their limits, and kinds of failure."""
