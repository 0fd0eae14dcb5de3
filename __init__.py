"""Saccade: a compiled long-context sparse-attention inference engine."""
