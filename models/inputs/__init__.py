"""What is done on the host before a model runs: checkpoints' own files, images, texts, prompts."""
