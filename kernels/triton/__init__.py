"""Ops on a GPU in Triton, one file each; in the interpreter (TRITON_INTERPRET=1) on any tensors."""

from .attention_stats import attention_stats

__all__ = ["attention_stats"]
