"""All that turns noise into prompts: schedules, the forward process, samplers, the prompt space, the diffuser."""
