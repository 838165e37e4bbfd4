"""`python -m convert SOURCE DESTINATION` converts a checkpoint, once and for all.

`python -m convert verify SOURCE` compares a converted model with the original, stage by stage.
"""

import argparse
import ctypes
import sys

from convert.errors import ConversionError, one_line, show
from convert.families import FAMILIES
from convert.guesses import Given
from convert.loading import Report, read_checkpoint
from convert.sources import fetch
from convert.verify import BOUND, verify
from convert.writing import write_converted
from models.checkpoint import local_path
from models.configs import DTYPES
from models.plain_vit import POOLS


def main(argv=None) -> int:
    """Runs the command line; the exit status is 0, or 1 with one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    _give_freed_memory_back()
    try:
        if argv[:1] == ["verify"]:
            _verify(**vars(_verify_parser().parse_args(argv[1:])))
        else:
            print(_convert(**vars(_parser().parse_args(argv))))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _give_freed_memory_back():
    """Has glibc map arrays from 1 MB on, which leave when freed: its heap keeps gaps of 32 MB."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        m_mmap_threshold = -3
        mallopt(m_mmap_threshold, 2**20)


def _convert(source, destination, revision, dtype, family, **given):
    """Converts `source` into the new directory `destination`; the report as text."""
    report, files = write_converted(
        source, destination, revision=revision, dtype=dtype, family=family, given=Given(**given)
    )
    return "\n".join(
        [
            f"converted   {show(source)} to {show(str(local_path(destination)))}",
            *_lines(report),
            *(f"companion   {file.name} copied" for file in files),
        ]
    )


def _verify(source, against, revision, family, **given):
    """Prints a comparison of every stage; raises ConversionError above the bound."""
    given = Given(**given)
    path = fetch(source, revision)
    comparisons = verify(path, against=against, family=family, given=given)
    print(f"{'input':<12}{'stage':<20}{'max error':>10}{'cosine':>13}")
    for c in comparisons:
        print(f"{c.inputs:<12}{c.stage:<20}{c.error:>10.1e}{c.cosine:>13.9f}")
    for guess in read_checkpoint(path, family, given).parsed.guesses:
        if guess.reason is not None:
            print(f"warning     {guess}: the original was built with the same guess")
    beyond = [c for c in comparisons if not c.error <= BOUND]  # also where it is NaN
    if beyond:
        raise ConversionError(
            f"{len(beyond)} of {len(comparisons)} stages differ by more than {BOUND:.0e} of the "
            f"largest value; the first is {beyond[0].stage!r} at {beyond[0].error:.1e}"
        )
    largest = max(c.error for c in comparisons)
    print(f"the same within {largest:.1e} of the largest value (the bound is {BOUND:.0e})")


def _lines(report: Report):
    view = report.view
    if view.place:
        yield f"weights     {show(view.place)}{_beside(view.others)}"
    if view.prefix:
        yield f"prefix      {view.prefix} taken off {len(view.tensors)} names"
    if view.wrappers:
        yield f"prefix      {', '.join(view.wrappers)} taken out of names"
    if view.in_chunks:
        yield "blocks      without the numbers of the chunks that they were trained in"
    yield f"family      {report.layout}"
    yield f"mapped      {report.num_mapped} tensors"
    for why in dict.fromkeys(report.ignored.values()):
        names = [_plain(name) for name, reason in report.ignored.items() if reason == why]
        yield f"ignored     {_first(names, 2)}: {why}"
    if report.merged:
        yield f"adapter     {report.merged}"
    for guess in report.guesses:
        yield f"{'given' if guess.reason is None else 'guessed':<12}{guess}"
    if report.labels:
        yield f"labels      {_first(list(map(show, report.labels)), 3)}"
    yield f"parameters  {report.num_parameters:,}"
    dtypes = ", ".join(f"{count} × {name}" for name, count in report.file_dtypes.items())
    widened = " (models compute in float32 or bfloat16)" if "float16" in report.file_dtypes else ""
    yield f"dtype       {report.dtype}, from {dtypes}{widened}"
    for warning in report.warnings():
        yield f"warning     {warning}"


def _beside(others):
    """What else a file holds, in words."""
    return f", beside {_first(list(map(show, others)), 3)}" if others else ""


def _plain(name):
    """A tensor's name as it is, unless it is long or a terminal would obey it."""
    return name if name.isprintable() and len(name) < 300 else show(name)


def _first(names, most):
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{others}"


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConversionError(f"{message}; see {self.prog} --help")


def _parser():
    parser = _source_parser("python -m convert", __doc__.splitlines()[0])
    parser.add_argument(
        "destination", metavar="DESTINATION", help="new checkpoint directory, for models.load"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="by default that of the file")
    parser.add_argument(
        "--adapter", metavar="FOLDER", help="LoRA that peft saved, to merge into the weights"
    )
    return parser


def _verify_parser():
    parser = _source_parser(
        "python -m convert verify",
        "Runs the original library and the converted model on the same random inputs, and prints "
        f"the difference at every stage; the exit status is 1 if one is above {BOUND:.0e}.",
    )
    parser.add_argument(
        "--against", metavar="DESTINATION", help="a converted directory; by default converts now"
    )
    return parser


def _source_parser(prog, description):
    parser = _Parser(prog=prog, description=description)
    parser.add_argument(
        "source", metavar="SOURCE", help="directory, file of weights, or id on the Hugging Face hub"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--family", choices=FAMILIES, help="by default told from the files")
    parser.add_argument(
        "--config", metavar="FILE", help="the weights' config, where it does not lie beside them"
    )
    parser.add_argument(
        "--weights", metavar="NAME", help="the state dict to take, where a file holds several"
    )
    group = parser.add_argument_group("what files without a config leave open, guessed by default")
    group.add_argument("--heads", type=int, metavar="N", help="of attention in the vision tower")
    group.add_argument("--text-heads", type=int, metavar="N", help="of attention in the text tower")
    group.add_argument(
        "--patch-grid",
        type=_grid,
        metavar="H,W",
        help="patches down and across of learned positions",
    )
    group.add_argument("--pool", choices=POOLS, help="the class token, or the mean of the patches")
    return parser


def _grid(text):
    return tuple(int(n) for n in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
