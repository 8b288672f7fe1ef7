"""Kernel templates, one per operator and target; installed as `tokenpass.codegen`."""
