"""Benchmarks: how fast Saccade is, and how good its demo checkpoint is."""
