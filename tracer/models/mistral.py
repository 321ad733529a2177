"""Mistral: Llama's wiring with a sliding window."""

from .llama import llama_like

MISTRAL = llama_like("mistral", "mistral")
