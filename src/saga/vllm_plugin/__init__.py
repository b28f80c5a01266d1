"""SAGA inside stock vLLM: what runs in the engine's own process."""
