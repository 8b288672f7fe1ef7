"""Measurements of tokenpass against dense Inductor: speed, memory, compile time, quality."""
