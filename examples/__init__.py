"""Short scripts that use HarDNet inside something else; run them as ``python -m examples.NAME``."""
