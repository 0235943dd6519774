"""Reads files: JSON, CSV, Parquet and Arrow, as blocks of rows."""
