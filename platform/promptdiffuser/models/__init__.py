"""Networks: the Prompt-DT backbone and the denoiser."""
