"""Tensor intrinsics for the integer dot products that TVM's own tables have not got (or have got wrong)."""
