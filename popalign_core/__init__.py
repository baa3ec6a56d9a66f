"""The science of PopAlign: prompts, identities, sampling, attributes, preferences, training, evaluation."""
