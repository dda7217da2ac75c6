"""The passes: how relevance is carried from the output to the inputs."""
