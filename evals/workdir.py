"""Result folders: claimed by one set of settings, never holding half a file."""

import json
import pathlib


def claim_workdir(config, workdir) -> pathlib.Path:
    """The folder, made if need be, marked with the settings of the run that writes into it.

    Raises:
      ValueError: the folder holds a run with other settings.
    """
    workdir = pathlib.Path(workdir).absolute()
    settings = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    file = workdir / "config.json"
    if file.exists() and file.read_text() != settings:
        raise ValueError(f"{workdir} holds a run with other settings; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(file, settings)
    return workdir


def write_atomically(file, text) -> None:
    """Writes beside `file`, then renames: the final name never holds half a file."""
    file = pathlib.Path(file)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)
