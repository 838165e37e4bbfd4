"""`python -m convert SOURCE DESTINATION`: converts a checkpoint, once and for all."""

import argparse
import os
import pathlib
import sys

import models
from convert.errors import ConversionError, one_line, show, summarise
from convert.families import FAMILIES
from convert.loading import Report, convert_checkpoint
from convert.sources import COMPANIONS, fetch, folder_of
from models.vit import DTYPES


def main(argv=None) -> int:
    """Runs the command line; the exit status is 0, or 1 with one line on stderr."""
    try:
        arguments = _parser().parse_args(argv)
        print(_convert(**vars(arguments)))
    except (ConversionError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _convert(source, destination, revision, dtype, family):
    """Converts `source` into the new directory `destination`; the report as text."""
    destination = pathlib.Path(destination).expanduser()
    if os.path.lexists(destination):  # before hours of download
        raise FileExistsError(f"{destination} exists; choose another destination or remove it")
    path = fetch(source, revision)
    model, report = convert_checkpoint(path, dtype=dtype, family=family)
    companions = [folder_of(path) / name for name in COMPANIONS]
    companions = [file for file in companions if file.is_file()]
    models.save(model, destination, companions=companions)
    return "\n".join(
        [
            f"converted   {show(source)} to {show(str(destination))}",
            *_lines(report),
            *_companion_lines({file.name for file in companions}),
        ]
    )


def _lines(report: Report):
    yield f"family      {report.layout}"
    yield f"mapped      {report.num_mapped} tensors"
    for name, why in report.ignored.items():
        yield f"ignored     {name}: {why}"
    yield f"parameters  {report.num_parameters:,}"
    dtypes = ", ".join(f"{count} × {name}" for name, count in report.file_dtypes.items())
    widened = " (models compute in float32 or bfloat16)" if "float16" in report.file_dtypes else ""
    yield f"dtype       {report.dtype}, from {dtypes}{widened}"
    for name in report.unknown_fields:
        yield f"warning     the config's field {show(name)} is unknown, and was not used"
    if report.not_finite:
        yield f"warning     NaN or infinity in {summarise(report.not_finite)}"


def _companion_lines(copied):
    for name in COMPANIONS:
        yield f"companion   {name} {'copied' if name in copied else 'missing'}"


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConversionError(f"{message}; see {self.prog} --help")


def _parser():
    parser = _Parser(prog="python -m convert", description=__doc__)
    parser.add_argument(
        "source", metavar="SOURCE", help="directory, file of weights, or id on the Hugging Face hub"
    )
    parser.add_argument(
        "destination", metavar="DESTINATION", help="new checkpoint directory, for models.load"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--family", choices=FAMILIES, help="by default told from the files")
    parser.add_argument("--dtype", choices=DTYPES, help="by default that of the file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
