"""What every run needs, whatever its task: models, devices, processes, embeddings, workdirs."""
