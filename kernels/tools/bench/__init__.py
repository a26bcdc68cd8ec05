"""Timing the branches: workloads by name, medians, and a table."""
