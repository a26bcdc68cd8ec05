"""Timing the variants: workloads by name, medians, and a table."""
