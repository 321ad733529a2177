"""Mistral and Ministral: Llama's wiring with a sliding window; Mixtral, with experts."""

from .llama import llama_like

MISTRAL = llama_like("mistral", "mistral", "ministral", "ministral3", "mixtral")
