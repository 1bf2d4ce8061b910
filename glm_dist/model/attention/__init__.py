"""GLM's prefix attention: plan, kernels, rotary positions."""
