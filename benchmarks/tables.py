"""The pages' tables of speed and memory, from the committed result files.

python -m benchmarks.tables
"""

from benchmarks import layer_tables, model_tables
from benchmarks.rows import read_rows
from evals.running.workdir import ROOT

TABLES = {  # of a file of results/: functions of its rows
    "attention": [layer_tables.attention],
    "centroids": [layer_tables.centroids],
    "equal_error": [layer_tables.equal_error],
    "gpu": [layer_tables.gpu, model_tables.gpu_towers],
    "landmarks": [layer_tables.landmarks],
    "language_cost": [model_tables.language_cost, model_tables.language_prefill],
    "memory": [layer_tables.memory],
    "models": [model_tables.models, model_tables.models_memory],
    "qwen_tower": [model_tables.qwen_tower],
    "recommended": [model_tables.candidates, model_tables.recommended],
    "scaling": [layer_tables.scaling],
    "sharding": [layer_tables.sharding],
    "tpu": [layer_tables.tpu, model_tables.tpu_towers],
    "vjepa2": [model_tables.vjepa2],
    "waterfall": [model_tables.waterfall],
}


def main():
    for name, tables in TABLES.items():
        file = ROOT / "results" / f"{name}.csv"
        rows = read_rows(file)
        for table in tables:
            print(f"{file.relative_to(ROOT)}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
