"""Many runs side by side, made in one call."""
