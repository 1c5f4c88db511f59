"""Measure the models on this machine against other networks: ``python -m benchmarks``.

    cases ─▶ one process per network ─▶ interleaved rounds ─▶ results (JSON) ─▶ tables and pictures

``hardnet benchmark`` in the wheel is the short form, without other networks and in one process.
"""
