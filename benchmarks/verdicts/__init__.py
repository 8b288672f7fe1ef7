"""How often `tokenpass check` errs: recorded pairs, replayed decisions, real runs."""
