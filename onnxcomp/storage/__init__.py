"""The forms in which weights lie in the file, where that is smaller than as they are."""
