"""The pre-deployment gate: what a budget asks of a model, and the verdict."""
