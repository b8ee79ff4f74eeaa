"""The step before deployment: limits that a model has to keep, one file a family, and the verdict on each."""
