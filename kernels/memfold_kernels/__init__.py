"""Kernels of the delta rule. Tensors in, tensors out; they know of no model and no service."""
