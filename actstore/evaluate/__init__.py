"""Evaluation: splits, metrics, controls and the table of results."""
