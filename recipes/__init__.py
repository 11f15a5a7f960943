"""The choices that are clinical: one module and a few YAML files a modality."""
