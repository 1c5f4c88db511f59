"""The command ``python -m benchmarks``: measure, and write tables and pictures from the committed results."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.end_to_end import measure_folder
from benchmarks.photographs import find_photographs, write_jpegs
from benchmarks.results import as_results, surroundings_of, write_json
from benchmarks.rounds import Outcome, Protocol, measure
from benchmarks.rows import OURS, plan
from benchmarks.sweep import sweep_one
from hardnet.engines import ENGINES, PRECISIONS
from hardnet.models.config import CONFIGS
from hardnet.models.network import MIN_INPUT_SIZE
from hardnet.utils.devices import usable_device
from hardnet.utils.validation import image_size, positive

USUAL = {"speed": list(ENGINES), "sweep": list(ENGINES), "end-to-end": ["eager", "torch"]}
"""The engines that are measured by default."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 1 if a row failed or a table is stale, 2 for wrong arguments."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (ImportError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    usual = Protocol()

    speed = verbs.add_parser("speed", help="time models, engines and other networks in interleaved rounds")
    speed.set_defaults(run=_speed)
    speed.add_argument(
        "--shapes", nargs="+", type=_shape, default=[(1, 224, 224)], metavar="NxH[xW]", help="default: 1x224"
    )
    speed.add_argument("--rounds", type=positive, default=usual.rounds, help="default: %(default)s")
    speed.add_argument("--turn-seconds", type=float, default=usual.turn_seconds, help="default: %(default)s")
    speed.add_argument("--no-peers", action="store_true", help="measure our models only")

    shapes = verbs.add_parser("sweep", help="compare all engines with eager mode on many input shapes")
    shapes.set_defaults(run=_sweep)

    folder = verbs.add_parser("end-to-end", help="time the classifier on a folder of JPEG files")
    folder.set_defaults(run=_end_to_end)
    folder.add_argument("--images", type=positive, default=2000, help="JPEG files (default: %(default)s)")

    for verb, name in ((speed, "speed"), (folder, "end-to-end"), (shapes, "sweep")):
        add = verb.add_argument
        precisions = list(PRECISIONS) if verb is shapes else ["fp32"]
        add("models", nargs="*", metavar="MODEL", help="default: all four")
        add("--engines", nargs="+", choices=ENGINES, default=USUAL[name], help=f"default: {' '.join(USUAL[name])}")
        add("--precisions", nargs="+", choices=PRECISIONS, default=precisions, help=f"default: {' '.join(precisions)}")
        add("--photographs", type=Path, metavar="FOLDER", help="for calibration and JPEG files (default: images/)")
        add("--json", type=Path, metavar="FILE", help="write the figures here; rows of an earlier run are kept")
        if verb is folder:
            add("--batch-sizes", nargs="+", type=positive, default=[32], metavar="N", help="default: 32")
        if verb is not shapes:
            add("--threads", type=positive, help="CPU threads (default: each engine's own)")
        add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")

    gpu = verbs.add_parser("gpu", help="measure on CUDA, write results/cuda.json and print its tables")
    gpu.set_defaults(run=_gpu)
    gpu.add_argument("--dry-run", action="store_true", help="one small model on the CPU, to try the command")

    write = verbs.add_parser("tables", help="write the tables of the documents from the committed results")
    write.set_defaults(run=_tables)
    write.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a table is stale")
    verbs.add_parser("pictures", help="draw the pictures of the documents").set_defaults(run=_pictures)
    return parser


def _shape(text: str) -> tuple[int, int, int]:
    count, _, size = text.partition("x")
    return (positive(count), *image_size(size))


def _check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Refuse wrong arguments before anything is measured, and describe the machine."""
    usable_device(arguments.device)
    for name in arguments.models:
        if name not in CONFIGS:
            raise ValueError(f"there is no model {name!r}; known: {', '.join(CONFIGS)}")
    find_photographs(arguments.photographs)
    surroundings = surroundings_of(arguments.device)
    if (surroundings["machine"]["load_before"] or 0) > 0.5:
        _say(f"the load average is {surroundings['machine']['load_before']}: other programs disturb the measurement")
    return surroundings


def _speed(arguments: argparse.Namespace) -> int:
    if min(min(shape[1:]) for shape in arguments.shapes) < MIN_INPUT_SIZE:
        raise ValueError(f"--shapes must have at least {MIN_INPUT_SIZE} pixels")
    names = ("rounds", "turn_seconds", "threads", "device", "photographs")
    protocol = Protocol(**{name: getattr(arguments, name) for name in names})
    surroundings = _check(arguments)
    models, peers = arguments.models or list(CONFIGS), not arguments.no_peers
    groups: list[list[Outcome]] = []
    before = _earlier(arguments.json)
    results: dict[str, Any] = {}
    for rows in plan(models, arguments.engines, arguments.precisions, arguments.shapes, peers):
        groups.append(measure(rows, protocol, _say))
        results = as_results(groups, protocol, surroundings, before)
        if arguments.json is not None:  # after every group
            write_json(arguments.json, results)
    print(tables.for_terminal(results))
    return 1 if results["failed"] else 0


def _gpu(arguments: argparse.Namespace) -> int:
    shapes = ["1x64"] if arguments.dry_run else ["1x224", "16x224", "1x1024", "16x1024"]
    where = "hardnet39ds --no-peers --rounds 1 --turn-seconds 0.01" if arguments.dry_run else "--device cuda"
    with tempfile.TemporaryDirectory() as name:
        path = (Path(name) if arguments.dry_run else tables.RESULTS) / "cuda.json"
        command = f"speed {where} --engines eager torch --precisions fp32 fp16 bf16 --json {path} --shapes"
        status = main([*command.split(), *shapes])
        results = _earlier(path)
    for shape in shapes if results else ():
        print("\n" + tables.speed_table(results, *shape.split("x")))
    return status


def _sweep(arguments: argparse.Namespace) -> int:
    results: dict[str, Any] = {"kind": "sweep", **_check(arguments), "rows": _earlier(arguments.json).get("rows", [])}
    wanted = product(arguments.engines, arguments.precisions, arguments.models or list(CONFIGS))
    for engine, precision, model in wanted:
        row = sweep_one(model, engine, precision, arguments.photographs)
        _say(str(row))
        if "left_out" in row:
            continue
        names = ("model", "engine", "precision")
        results["rows"] = [old for old in results["rows"] if any(old[name] != row[name] for name in names)] + [row]
        if arguments.json is not None:
            write_json(arguments.json, results)
    print(tables.sweep_table(results))
    return 1 if any(row["crashes"] or row["outside_tolerance"] for row in results["rows"]) else 0


def _earlier(path: Path | None) -> dict[str, Any]:
    """Return the content of the file to add to."""
    content: dict[str, Any] = {}
    if path is not None and path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    return content


def _end_to_end(arguments: argparse.Namespace) -> int:
    options = {name: getattr(arguments, name) for name in ("threads", "device", "photographs")}
    protocol = {name: getattr(arguments, name) for name in ("images", "threads", "device")}
    results: dict[str, Any] = {"kind": "end to end", **_check(arguments), "protocol": protocol}
    results |= {"rows": [], "left_out": []}
    with tempfile.TemporaryDirectory(prefix="hardnet-benchmark-") as name:
        paths = write_jpegs(Path(name), arguments.images, find_photographs(arguments.photographs))
        models = arguments.models or list(CONFIGS)
        shapes = [(batch, 224, 224) for batch in arguments.batch_sizes]
        groups = plan(models, arguments.engines, arguments.precisions, shapes, False)
        for row in (row for group in groups for row in group if row.source == OURS):
            _say(str(row))
            try:
                results["rows"].append(measure_folder(row, paths, **options))
            except (ImportError, NotImplementedError) as error:
                results["left_out"].append({"row": str(row), "reason": str(error)})
            if arguments.json is not None:
                write_json(arguments.json, results)
    print(tables.for_terminal(results))
    return 0


def _tables(arguments: argparse.Namespace) -> int:
    found = tables.stale(tables.DOCUMENTS, tables.RESULTS)
    for path, text in found.items():
        _say(f"{path.name} is stale" if arguments.check else f"{path.name} written")
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    return 1 if arguments.check and found else 0


def _pictures(arguments: argparse.Namespace) -> int:
    from benchmarks.pictures import FOLDER, PICTURES, save

    for name, draw in PICTURES.items():
        save(draw, FOLDER / name)
    return 0


def _say(text: str) -> None:
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
