"""GLM on megatron-core's Transformer block."""
