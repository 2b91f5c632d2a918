"""Reads texts and labels from CSV, JSON Lines and Parquet files."""
