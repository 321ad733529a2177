"""Ops on a GPU in Triton, one file each; in the interpreter (TRITON_INTERPRET=1) on any tensors."""

from .attention_stats import attention_stats
from .output_errors import output_errors

__all__ = ["attention_stats", "output_errors"]
