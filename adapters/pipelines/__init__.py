"""Pipelines: templates, the engine that runs their steps, and one module per step type."""
