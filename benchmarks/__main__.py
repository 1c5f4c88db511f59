"""The command ``python -m benchmarks``: measure, and write the tables of the pages from the committed results."""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.end_to_end import measure_folder
from benchmarks.networks import OURS, TRAINING, Case, compared_groups, cost
from benchmarks.photographs import write_jpegs
from benchmarks.protocol import TURN_SECONDS, add_rows, case_of, measure, open_results
from hardnet.engines import ENGINES, PRECISIONS
from hardnet.models.config import CONFIGS, NETWORKS
from hardnet.models.network import MIN_INPUT_SIZE
from hardnet.utils.devices import usable_device
from hardnet.utils.errors import OutputError
from hardnet.utils.validation import image_size, positive


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 2 for wrong arguments."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ImportError, OutputError, ValueError) as error:
        _say(str(error))
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("models", nargs="*", metavar="MODEL", default=list(CONFIGS), help="names of our models")
    add("--engines", nargs="+", choices=(*ENGINES, *TRAINING), default=list(ENGINES), metavar="E", help="engines")
    add("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"], metavar="P", help="of the engines")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--json", type=Path, metavar="FILE", help="write the figures here; rows of other cases are kept")
    options: dict[str, Any] = {"parents": [common], "formatter_class": argparse.ArgumentDefaultsHelpFormatter}

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    speed = verbs.add_parser("speed", help="time models, engines and other networks in rounds", **options)
    speed.add_argument("--shapes", nargs="+", type=_shape, default=[(1, 224, 224)], metavar="NxH[xW]", help="batches")
    speed.add_argument("--rounds", type=positive, default=10, help="turns of each case")
    speed.set_defaults(run=_speed)
    folder = verbs.add_parser("end-to-end", help="time the classifier on JPEG files", **options)
    folder.add_argument("--images", type=positive, default=2000, help="JPEG files")
    folder.add_argument("--pixels", type=image_size, default=(500, 375), metavar="WxH", help="sides of the files")
    folder.add_argument("--decode", nargs="+", choices=["exact", "fast"], default=["exact"], help="ways of decoding")
    folder.set_defaults(run=_end_to_end)
    verbs.add_parser("tables", help="write the tables of the pages from the results").set_defaults(run=_tables)
    return parser


def _shape(text: str) -> tuple[int, int, int]:
    count, _, size = text.partition("x")
    return (positive(count), *image_size(size))


def _open(arguments: argparse.Namespace, **protocol: Any) -> dict[str, Any]:
    """Refuse wrong arguments before anything is measured; return the earlier results."""
    usable_device(arguments.device)
    if unknown := set(arguments.models) - NETWORKS.keys():
        raise ValueError(f"unknown models {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}")
    results = open_results(arguments.json, arguments.device, **protocol)
    if (load := results["protocol"]["load_before"] or 0) > 0.5:
        _say(f"the load average is {load}: other programs disturb the measurement")
    return results


def _speed(arguments: argparse.Namespace) -> None:
    if min(min(shape[1:]) for shape in arguments.shapes) < MIN_INPUT_SIZE:
        raise ValueError(f"--shapes must have at least {MIN_INPUT_SIZE} pixels")
    results = _open(arguments, rounds=arguments.rounds, turn_seconds=TURN_SECONDS)
    for cases in compared_groups(arguments.models, arguments.engines, arguments.precisions, arguments.shapes):
        rows = measure(cases, arguments.rounds, arguments.device, _say)
        for row in rows:
            if row["model"] not in results["networks"]:
                results["networks"][row["model"]] = cost(row["source"], row["model"])
        add_rows(results, rows, arguments.json)
    for batch, size in dict.fromkeys((row["batch_size"], case_of(row).size) for row in results["rows"]):
        print(tables.speed_table(results, str(batch), size, "baseline") + "\n")


def _end_to_end(arguments: argparse.Namespace) -> None:
    results = _open(arguments)
    with tempfile.TemporaryDirectory(prefix="hardnet-benchmark-") as folder:
        paths = write_jpegs(Path(folder), arguments.images, arguments.pixels)
        for *network, decoding in product(arguments.models, arguments.engines, arguments.precisions, arguments.decode):
            case = Case(OURS, *network, 32, 224, 224)
            try:
                row = measure_folder(case, paths, arguments.device, decoding)
            except (ImportError, NotImplementedError) as error:
                _say(f"no figures for {case}: {error}")
                continue
            add_rows(results, [row | {"pixels": list(arguments.pixels)}], arguments.json)
    print(tables.end_to_end_table(results))


def _tables(arguments: argparse.Namespace) -> None:
    for path, text in tables.stale(tables.PAGES, tables.RESULTS).items():
        _say(f"{path.name} written")
        path.write_text(text, encoding="utf-8")


def _say(text: str) -> None:
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
