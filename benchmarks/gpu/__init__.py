"""Training speed on one GPU in bf16: GLM with each option, and megatron-core's GPTModel."""
