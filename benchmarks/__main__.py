"""The command ``python -m benchmarks``: measure, and write the tables of the pages from the committed results."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.end_to_end import measure_folder
from benchmarks.networks import TRAINING, Case, compared_groups
from benchmarks.photographs import write_jpegs
from benchmarks.protocol import check_surroundings, measure, merged, read_json, surroundings_of, write_json
from hardnet.engines import ENGINES, PRECISIONS
from hardnet.models.config import CONFIGS, NETWORKS
from hardnet.models.network import MIN_INPUT_SIZE
from hardnet.utils.devices import usable_device
from hardnet.utils.errors import OutputError
from hardnet.utils.validation import image_size, positive


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 1 if a case failed, 2 for wrong arguments."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (ImportError, OutputError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    def add_measurement(name: str, run: Any, text: str, engines: Sequence[str]) -> Any:
        verb = verbs.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        verb.set_defaults(run=run)
        add = verb.add_argument
        add("models", nargs="*", metavar="MODEL", help="names of our models; all four if none is given")
        add("--engines", nargs="+", choices=(*ENGINES, *TRAINING), default=engines, metavar="E", help="engines")
        add("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"], metavar="P", help="of the engines")
        add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
        add("--json", type=Path, metavar="FILE", help="write the figures here; rows of other cases are kept")
        return add

    add = add_measurement("speed", _speed, "time models, engines and other networks in rounds", ENGINES)
    add("--shapes", nargs="+", type=_shape, default=[(1, 224, 224)], metavar="NxH[xW]", help="such as 16x224")
    add("--rounds", type=positive, default=10, help="turns of each case")
    add("--turn-seconds", type=float, default=0.3, help="length of a turn")
    add("--no-peers", action="store_true", help="measure our models only")
    add = add_measurement("end-to-end", _end_to_end, "time the classifier on JPEG files", ["eager", "torch"])
    add("--images", type=positive, default=2000, help="JPEG files")
    add("--pixels", type=image_size, metavar="WxH", help="sides of the files; about 500x375 if None")
    add("--decode", nargs="+", choices=["exact", "fast"], default=["exact"], metavar="D", help="ways of decoding")
    add("--batch-sizes", nargs="+", type=positive, default=[32], metavar="N", help="images per batch")

    verbs.add_parser("tables", help="write the tables of the pages from the results").set_defaults(run=_tables)
    return parser


def _shape(text: str) -> tuple[int, int, int]:
    count, _, size = text.partition("x")
    return (positive(count), *image_size(size))


def _surroundings(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Refuse wrong arguments before anything is measured; return the machine and the protocol."""
    usable_device(arguments.device)
    arguments.models = arguments.models or list(CONFIGS)
    if unknown := set(arguments.models) - NETWORKS.keys():
        raise ValueError(f"unknown models {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}")
    surroundings = surroundings_of(arguments.device, **{name: getattr(arguments, name) for name in names})
    if (surroundings["machine"]["load_before"] or 0) > 0.5:
        _say(f"the load average is {surroundings['machine']['load_before']}: other programs disturb the measurement")
    return surroundings


def _speed(arguments: argparse.Namespace) -> int:
    if min(min(shape[1:]) for shape in arguments.shapes) < MIN_INPUT_SIZE:
        raise ValueError(f"--shapes must have at least {MIN_INPUT_SIZE} pixels")
    surroundings = _surroundings(arguments, "rounds", "turn_seconds")
    options = (arguments.rounds, arguments.turn_seconds, arguments.device)
    results = read_json(arguments.json)
    names = ("models", "engines", "precisions", "shapes")
    for cases in compared_groups(*(getattr(arguments, name) for name in names), peers=not arguments.no_peers):
        results = merged(results, measure(cases, *options, _say), surroundings)
        if arguments.json is not None:  # after every group
            write_json(arguments.json, results)
    for shape in arguments.shapes:
        print(tables.speed_table(results, str(shape[0]), Case("", "", "", "", *shape).size) + "\n")
    for entry in results["left_out"] + results["failed"]:
        _say(f"no figures for {entry['row']}: {entry['reason']}")
    return 1 if results["failed"] else 0


def _end_to_end(arguments: argparse.Namespace) -> int:
    surroundings, earlier, pixels = _surroundings(arguments), read_json(arguments.json), arguments.pixels or (500, 375)
    check_surroundings(earlier, surroundings)
    rows = [row for row in earlier.get("rows", []) if row["pixels"] != list(pixels)]
    results: dict[str, Any] = {"kind": "end to end", **surroundings, "rows": rows}
    shapes = [(batch, 224, 224) for batch in arguments.batch_sizes]
    groups = compared_groups(arguments.models, arguments.engines, arguments.precisions, shapes, peers=False)
    with tempfile.TemporaryDirectory(prefix="hardnet-benchmark-") as folder:
        paths = write_jpegs(Path(folder), arguments.images, arguments.pixels)
        for case, decoding in product(chain(*groups), arguments.decode):
            _say(f"{case} {decoding}")
            try:
                row = measure_folder(case, paths, arguments.device, decoding)
                results["rows"].append(row | {"pixels": list(pixels)})
            except (ImportError, NotImplementedError) as error:
                _say(f"left_out: {case}: {error}")
            if arguments.json is not None:
                write_json(arguments.json, results)
    print(tables.end_to_end_table(results))
    return 0


def _tables(arguments: argparse.Namespace) -> int:
    for path, text in tables.stale(tables.PAGES, tables.RESULTS).items():
        _say(f"{path.name} written")
        path.write_text(text, encoding="utf-8")
    return 0


def _say(text: str) -> None:
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
