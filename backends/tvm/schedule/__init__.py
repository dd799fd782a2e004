"""Default schedules: an ordered list of rules that may decline, a fallback last."""
