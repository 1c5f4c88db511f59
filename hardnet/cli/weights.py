"""The verb ``weights``: list, download, verify and find pretrained weights."""

import argparse
from pathlib import Path

from ..factory import create_model
from ..utils.errors import WeightsError
from ..utils.text import table
from ..weights.catalog import CATALOG, DEFAULT, get_weights, list_models
from ..weights.download import cache_dir, fetch, find_cached
from ..weights.load import load_weights
from .arguments import SOME_FAILED, Verbs, say
from .output import show


def add_verb(verbs: Verbs) -> None:
    """Add the verb and its actions."""
    parser = verbs.add_parser("weights", help="list, download, verify and find pretrained weights")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="list all weights, their errors, and whether they are cached")
    listing.add_argument("model", nargs="?", choices=list_models())
    listing.add_argument("--sources", action="store_true", help="list the addresses of the files and their digests")
    listing.set_defaults(run=_weights_list)

    for name, run, what in (
        ("download", _weights_download, "download to the cache, verify, and print the path"),
        ("path", _weights_path, "print the path of the verified file; status 1 if it is not cached"),
    ):
        action = actions.add_parser(name, help=what)
        action.add_argument("model", choices=list_models())
        action.add_argument("tag", nargs="?", default=DEFAULT, help="default: %(default)s")
        action.set_defaults(run=run)

    verify = actions.add_parser("verify", help="check the digests of the given files, or of the cache")
    text = "a file, or the folder of a run or of a saved model; default: the cache"
    verify.add_argument("files", nargs="*", metavar="SOURCE", type=Path, help=text)
    verify.set_defaults(run=_weights_verify)


def _weights_list(arguments: argparse.Namespace) -> int:
    records = [record for record in CATALOG.values() if arguments.model in (None, record.model)]
    if arguments.sources:
        sources = [(record, source) for record in records for source in record.sources]
        lines = [(record.model, record.tag, source.url, str(source.digest)) for record, source in sources]
        show(table(("model", "tag", "address", "digest"), lines))
        return 0
    rows = []
    for record in records:
        errors = f"{record.top1_error:.2f} / {record.top5_error:.2f}"
        rows.append((record.model, record.tag, errors, record.reported_by, "yes" if find_cached(record) else "no"))
    show(table(("model", "tag", "top-1 / top-5 error", "reported by", "cached"), rows))
    return 0


def _weights_download(arguments: argparse.Namespace) -> int:
    show(fetch(get_weights(arguments.model, arguments.tag)).path)
    return 0


def _weights_path(arguments: argparse.Namespace) -> int:
    record = get_weights(arguments.model, arguments.tag)
    file = find_cached(record)
    if file is None:
        say(f"{record} is not in the cache: hardnet weights download {record.model} {record.tag}")
        return SOME_FAILED
    show(file.path)
    return 0


def _weights_verify(arguments: argparse.Namespace) -> int:
    files = [cache_dir() / record.cache_filename(source) for record in CATALOG.values() for source in record.sources]
    paths = arguments.files or [path for path in files if path.exists()]
    failed = 0
    for path in paths:
        try:
            loaded = load_weights(path)
            if loaded.digest is not None:
                text = f"{loaded.record}, {loaded.digest}{' (weak)' if loaded.digest.weak else ''}"
            elif not arguments.files:
                raise WeightsError(f"{path}: is damaged: it does not have the digest in its name")
            else:
                create_model(loaded.config.name, weights=loaded)  # which raises if they do not fit
                names = "with" if loaded.categories else "without"
                classes = f"{loaded.num_classes} classes {names} names"
                text = f"{loaded.config.name}, {classes}; not a file of the catalogue"
            show(f"{path}: {text}")
        except WeightsError as error:
            show(error)
            failed += 1
    say(f"{len(paths)} files or folders checked, {failed} damaged" if paths else "the cache has no weights to check")
    return SOME_FAILED if failed else 0
