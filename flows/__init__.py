"""The flow, its command line, and what both show."""
