"""Schedules for GPUs: an ordered list of rules that may decline, one thread an element last."""
