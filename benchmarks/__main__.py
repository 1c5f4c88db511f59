"""The verb ``benchmark``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rounds import Outcome, Protocol, measure
from benchmarks.rows import OURS, PEER_ENGINES, Row, plan
from hardnet.cli.arguments import image_size
from hardnet.models.config import CONFIGS

if TYPE_CHECKING:
    from typing import TypeAlias

    Verbs: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

SOME_FAILED = 1
ENGINES = ("eager", "torch", "inductor", "onnxruntime", "openvino")
"""What is measured unless told otherwise."""
END_TO_END_ENGINES = ("eager", "torch")


def add_benchmark(verbs: Verbs) -> None:
    """Add the verb with its arguments."""
    usual = Protocol()
    parser = verbs.add_parser(
        "benchmark",
        help="time models, engines, precisions, batch sizes and resolutions against each other",
        description="Time the models on this machine, beside other networks, in interleaved rounds. Batch sizes and "
        "resolutions make groups that are measured one after the other.",
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="default: all four")
    add("--engines", nargs="+", metavar="ENGINE", help=f"default: {' '.join(ENGINES)}")
    add("--precisions", nargs="+", default=["fp32"], metavar="PRECISION", help="fp32, bf16, fp16, int8 (default: fp32)")
    add("--batch-sizes", nargs="+", type=int, metavar="N", help="default: 1; end to end: 32")
    add("--sizes", nargs="+", type=image_size, default=[(224, 224)], metavar="H[xW]", help="in pixels (default: 224)")
    add("--threads", type=int, metavar="N", help="CPU threads of every row (default: each engine's own)")
    add("--device", default=usual.device, help="cpu, cuda, cuda:1, ... (default: cpu)")
    add("--rounds", type=int, default=usual.rounds, metavar="N", help="turns of every row (default: %(default)s)")
    add("--turn-seconds", type=float, default=usual.turn_seconds, metavar="S", help="default: %(default)s")
    add("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure other networks too")
    add("--peer-engines", nargs="+", choices=PEER_ENGINES, default=["eager"], help="compile: torch.compile, frozen")
    add("--photographs", "--calibration", type=Path, metavar="FOLDER", dest="photographs", help=_PHOTOGRAPHS)
    add("--json", type=Path, metavar="FILE", help="also write the figures and every single time here")
    add("--plot", type=Path, metavar="FILE", help="draw reported error against measured latency")
    add("--end-to-end", action="store_true", help="time the classifier on a folder of JPEG files instead")
    add("--images", type=int, default=2000, metavar="N", help="end to end: JPEG files (default: 2000)")
    parser.set_defaults(run=run)


_PHOTOGRAPHS = "to calibrate int8 on, and to cut the JPEG files from (default: images/ of the checkout)"


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark; the exit status is 1 where a row failed.

    Raises:
        ValueError: an argument is out of range, or there is nothing to measure.
    """
    _check(arguments)
    return _end_to_end(arguments) if arguments.end_to_end else _speed(arguments)


def _check(arguments: argparse.Namespace) -> None:
    from benchmarks.photographs import find_photographs
    from hardnet.engines import ENGINES as KNOWN
    from hardnet.engines import PRECISIONS
    from hardnet.models.network import MIN_INPUT_SIZE
    from hardnet.utils.devices import usable_device
    from hardnet.utils.text import check_count

    usable_device(arguments.device)
    for what, given, known in (
        ("engine", arguments.engines or (), KNOWN),
        ("precision", arguments.precisions, PRECISIONS),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"there is no {what} {name!r}; known: {', '.join(known)}")
    for name in arguments.models:
        if name not in CONFIGS:
            raise ValueError(f"there is no model {name!r}; known: {', '.join(CONFIGS)}")
    for number in arguments.batch_sizes or ():
        check_count("--batch-sizes", number, least=1)
    check_count("--images", arguments.images, least=1)
    if min(min(size) for size in arguments.sizes) < MIN_INPUT_SIZE:
        raise ValueError(f"--sizes must be at least {MIN_INPUT_SIZE} pixels")
    if arguments.end_to_end or "int8" in arguments.precisions:
        find_photographs(arguments.photographs)
    if arguments.plot is not None and not arguments.end_to_end:
        from benchmarks.plot import require_matplotlib

        require_matplotlib()  # now, not after the long run


def _speed(arguments: argparse.Namespace) -> int:
    from benchmarks import tables
    from benchmarks.plot import draw
    from benchmarks.results import as_results, surroundings_of, write_json

    protocol = Protocol(
        rounds=arguments.rounds,
        turn_seconds=arguments.turn_seconds,
        threads=arguments.threads,
        device=arguments.device,
        photographs=arguments.photographs,
    )
    surroundings = surroundings_of(arguments.device)
    _warn_of_load(surroundings["machine"])
    groups: list[list[Outcome]] = []
    results: dict[str, Any] = {}
    for rows in _plan(arguments):
        groups.append(measure(rows, protocol, _say))
        results = as_results(groups, protocol, surroundings)
        if arguments.json is not None:  # after every group: what was measured stays, whatever comes
            write_json(arguments.json, results)
    print(tables.for_terminal(results))
    if arguments.plot is not None:
        draw(results, arguments.plot)
    return SOME_FAILED if results["failed"] else 0


def _plan(arguments: argparse.Namespace) -> list[list[Row]]:
    return plan(
        arguments.models or list(CONFIGS),
        arguments.engines or ENGINES,
        arguments.precisions,
        arguments.batch_sizes or [1],
        arguments.sizes,
        arguments.peer_engines if arguments.peers else (),
    )


def _end_to_end(arguments: argparse.Namespace) -> int:
    from benchmarks.end_to_end import for_terminal, measure_folder
    from benchmarks.photographs import find_photographs, write_jpegs
    from benchmarks.results import surroundings_of, write_json

    surroundings = surroundings_of(arguments.device)
    _warn_of_load(surroundings["machine"])
    results: dict[str, Any] = {
        "kind": "end to end",
        **surroundings,
        "protocol": {"images": arguments.images, "threads": arguments.threads, "device": arguments.device},
        "rows": [],
        "left_out": [],
    }
    with tempfile.TemporaryDirectory(prefix="hardnet-benchmark-") as name:
        _say(f"writing {arguments.images} JPEG files")
        paths = write_jpegs(Path(name), arguments.images, find_photographs(arguments.photographs))
        for row in _end_to_end_rows(arguments):
            _say(f"{row}")
            try:
                figures = measure_folder(
                    row, paths, threads=arguments.threads, device=arguments.device, photographs=arguments.photographs
                )
            except (ImportError, NotImplementedError) as error:
                results["left_out"].append({"row": str(row), "reason": str(error)})
                continue
            results["rows"].append(figures)
            if arguments.json is not None:
                write_json(arguments.json, results)
    print(for_terminal(results))
    return 0


def _end_to_end_rows(arguments: argparse.Namespace) -> list[Row]:
    return [
        Row(OURS, model, engine, precision, batch, 224, 224)
        for model in arguments.models or list(CONFIGS)
        for engine in arguments.engines or END_TO_END_ENGINES
        for precision in (("fp32",) if engine == "eager" else arguments.precisions)
        for batch in arguments.batch_sizes or [32]
    ]


def _warn_of_load(machine: dict[str, Any]) -> None:
    load = machine["load_before"]
    if load is not None and load > 0.5:
        _say(f"the load average is {load}: other programs are running, and the figures will show it")


def _say(text: str) -> None:
    print(f"hardnet: {text}", file=sys.stderr, flush=True)
