"""Searching for faster kernels: Whet's own spaces, measured on the device, checked, and remembered.

The space of a kernel is what its lowering leaves open (`kernels.decisions`): the register tile, which decides how
weights are packed too, and how its loops are ordered. A generic search over schedules would have to repack weights for
each candidate, and finds no tile that the model of the machine would not have ranked among the first fifty.
"""
