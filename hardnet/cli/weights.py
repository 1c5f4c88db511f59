"""The verb ``weights``: list, download, verify and find pretrained weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..factory import from_pretrained
from ..utils.errors import WeightsError
from ..utils.text import table
from ..weights.catalog import CATALOG, DEFAULT_TAG, get_weights, identify, list_models, list_weights
from ..weights.files import unpack_archive
from .arguments import SOME_FAILED, Verbs, say


def add_verb(verbs: Verbs) -> None:
    """Add the verb and its actions."""
    parser = verbs.add_parser("weights", help="list, download, verify and find pretrained weights")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="list all weights, their errors, and whether they are cached")
    listing.add_argument("model", nargs="?", choices=list_models())
    listing.set_defaults(run=_weights_list)

    for name, run, what in (
        ("download", _weights_download, "download to the cache, verify, and print the path"),
        ("path", _weights_path, "print the path of the verified file; status 1 if it is not cached"),
    ):
        action = actions.add_parser(name, help=what)
        action.add_argument("model", choices=list_models())
        action.add_argument("tag", nargs="?", default=DEFAULT_TAG, help="default: %(default)s")
        action.set_defaults(run=run)

    verify = actions.add_parser("verify", help="check the digests of the given files, or of the cache")
    verify.add_argument(
        "files", nargs="*", metavar="FILE", help="a file, or a folder of save_pretrained; default: the cache"
    )
    verify.set_defaults(run=_weights_verify)


def _weights_list(arguments: argparse.Namespace) -> int:
    from ..weights.download import find_cached

    names = [arguments.model] if arguments.model else list_models()
    rows = []
    for record in (get_weights(name, tag) for name in names for tag in list_weights(name)):
        errors = f"{record.top1_error:.2f} / {record.top5_error:.2f}"
        rows.append((record.model, record.tag, errors, record.reported_by, "yes" if find_cached(record) else "no"))
    print(table(("model", "tag", "top-1 / top-5 error", "reported by", "cached"), rows))
    return 0


def _weights_download(arguments: argparse.Namespace) -> int:
    from ..weights.download import fetch

    print(fetch(get_weights(arguments.model, arguments.tag)).path)
    return 0


def _weights_path(arguments: argparse.Namespace) -> int:
    from ..weights.download import find_cached

    record = get_weights(arguments.model, arguments.tag)
    found = find_cached(record)
    if found is None:
        say(f"{record} is not in the cache: hardnet weights download {record.model} {record.tag}")
        return SOME_FAILED
    print(found.path)
    return 0


def _weights_verify(arguments: argparse.Namespace) -> int:
    status = 0
    for path in [Path(file) for file in arguments.files] or _cached_files():
        try:
            found = _identity(path)
        except OSError as error:
            found, status = f"cannot be read: {error.strerror}", SOME_FAILED
        except WeightsError as error:
            found, status = str(error), SOME_FAILED
        print(f"{path}: {found}")
    return status


def _identity(path: Path) -> str:
    """Return which weights are in a file or folder.

    Raises:
        OSError: it cannot be read.
        WeightsError: it is damaged or unknown.
    """
    from ..utils.files import open_regular

    if path.is_dir():
        model = from_pretrained(path)
        names = "with" if model.weights_record and model.weights_record.categories else "without"
        return f"{model.config.name}, {model.num_classes} classes {names} names"
    with open_regular(path) as file:
        content = file.read()
    known = identify(unpack_archive(content) if path.suffix == ".zip" else content, CATALOG.values())
    if known is None:
        raise WeightsError("damaged, or not a file of the catalogue")
    record, source = known
    return f"{record}, {source.digest}{' (weak)' if source.digest.weak else ''}"


def _cached_files() -> list[Path]:
    from ..weights.download import cache_dir

    files = [cache_dir() / record.cache_filename(source) for record in CATALOG.values() for source in record.sources]
    return [path for path in files if path.exists()]
