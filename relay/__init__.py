"""The event relay for research pipelines: webhook to Redis stream to live viewers, and history."""

from importlib.metadata import version

__version__ = version("rp-relay")
