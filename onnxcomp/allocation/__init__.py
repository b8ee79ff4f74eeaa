"""One budget for many sites: what each may become, what that costs and loses, and which pick it gets."""
