"""Moshi: wired like Llama; each projection of its attention is a module around a linear one."""

from dataclasses import replace

from .llama import llama_like

MOSHI = replace(llama_like("moshi", "moshi"), output_projection="o_proj.linear")
