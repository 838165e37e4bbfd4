"""What FNA costs in quality, and what it gains in speed.

Imports run one way, jobs → tasks → running → data:

    jobs/     what `main.py` starts: a function of a config and a workdir, with its report
    tasks/    what a model is scored in: a function of a model, data and an embedder, each with its
              metrics; `table.py` lists them
    running/  what every run needs: models opened, embeddings, devices, processes, cache, workdir
    data/     readers of images, labels and captions; `datasets.py` lists the formats
"""
