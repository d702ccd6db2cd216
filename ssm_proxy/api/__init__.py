"""Layer 5: what Python programs use. `ssm_proxy` gives all of it by name, and loads it on use."""
