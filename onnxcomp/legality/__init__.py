"""Whether a model keeps the rules of the runtime it is for: one file of rules a target, over shared helpers."""
