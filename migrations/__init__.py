"""The schema's history. Imports nothing of ours: it must not change when the models do."""
