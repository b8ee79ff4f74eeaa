"""One file a target: what the runtime there accepts and fuses."""
