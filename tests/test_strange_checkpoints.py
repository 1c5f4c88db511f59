"""Checkpoints from strangers: no code is run, time and memory are bounded, and no model is half-loaded."""

from __future__ import annotations

import io
import pickle
import random
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import Future

import pytest
import torch
from strange_checkpoints import CALLS, TINY, call, legacy, load, refuse, saved, selftest, watched, zipped
from torch import Tensor

from hardnet import HarDNet, WeightsError
from hardnet.weights.pickles import MAX_NESTING

HANG = 300
"""Seconds: nothing here takes as many, on any machine."""


@pytest.fixture(scope="module")
def model() -> HarDNet:
    torch.manual_seed(0)
    return HarDNet(TINY, num_classes=2)


@pytest.fixture(scope="module")
def state(model: HarDNet) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def _warm(model: HarDNet) -> None:
    """Import and build beforehand what is imported and built on first use."""
    for content, origin in ((b"", "x.pth"), (zipped(b"}."), "x.pth"), (b"", "x.safetensors"), (legacy(b"}."), "x.pth")):
        refuse(model, content, origin=origin)
    refuse(model, saved({"other": torch.zeros(1)}))


def test_the_watch_would_see_code_run() -> None:
    assert any(event.startswith("os.system") for event in selftest())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize(("module", "name", "arguments"), CALLS, ids=lambda part: part if isinstance(part, str) else "")
def test_a_pickle_that_would_run_code_runs_none(
    model: HarDNet, module: str, name: str, arguments: tuple[object, ...]
) -> None:
    for pickled in call(module, name, arguments):
        for content in (pickled, legacy(pickled), zipped(pickled)):
            with watched() as happened:
                refuse(model, content)
            assert happened == []


@pytest.mark.parametrize("opcodes", [b"\x85", b"N\x86", b"NN\x87", b"\x85q\x00", b"\x85\x94"])
def test_tuples_nested_without_end_are_refused(model: HarDNet, opcodes: bytes) -> None:
    """Hashing such a tuple would end the process: Python follows it on the stack, unchecked."""
    pickled = b"\x80\x02})" + opcodes * 200_000 + b"Ns."
    for content in (legacy(pickled), zipped(pickled)):
        refuse(model, content, match=f"tuples nested more than {MAX_NESTING} deep|cannot be read")
    refuse(model, zipped(b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."), match=f"nested more than {MAX_NESTING} deep")


def test_many_flat_tuples_are_none_of_that(model: HarDNet, state: dict[str, Tensor]) -> None:
    for new in (True, False):
        load(model, saved({"state_dict": state, "other": [(n, (n,)) for n in range(6000)]}, new))


def test_a_compressed_archive_may_not_outgrow_memory(model: HarDNet, state: dict[str, Tensor]) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", b"}.")
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(10):
                member.write(bytes(60_000_000))
    assert len(bomb.getvalue()) < 6_000_000
    refuse(model, bomb.getvalue(), match=r"bytes that unpack to 6000000")
    plain = zipfile.ZipFile(io.BytesIO(saved(state)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    load(model, packed.getvalue())  # compressed, but of a usual size


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(model: HarDNet) -> None:
    buffer = io.BytesIO(zipped(b"}."))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data.pkl", b"}.")
    refuse(model, buffer.getvalue(), match="two records of one name")


def test_a_tensor_expanded_from_few_values_takes_no_memory(model: HarDNet, state: dict[str, Tensor]) -> None:
    content = saved({**state, "base.0.norm.bias": torch.zeros(1).expand(10**11)})
    tracemalloc.start()
    refuse(model, content, match=r"base\.0\.norm\.bias \(\(100000000000,\), expanded from fewer values\)")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000_000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.zeros(2, device="meta"), "without values"),
        (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.zeros(2, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "quint8"),
    ],
)
def test_tensors_of_other_kinds_are_refused(
    model: HarDNet, state: dict[str, Tensor], make: Callable[[], Tensor], kind: str
) -> None:
    refuse(model, saved({**state, "base.0.norm.bias": make()}), match=kind)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("base.0.norm.bias"), "1 missing keys"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unknown keys"),
        (lambda s: s.update({"base.0.norm.bias": torch.zeros(3)}), "1 other shapes"),
        (lambda s: s.update({"base.0.norm.bias": torch.zeros(())}), "1 other shapes"),
        (lambda s: s.update({"base.0.norm.bias": torch.zeros(2, dtype=torch.int8)}), "1 other types"),
        (lambda s: s.update({"base.0.norm.num_batches_tracked": torch.tensor(1.0)}), "1 other types"),
        (lambda s: s.update({"base.0.norm.bias": torch.tensor([0, float("nan")])}), "NaN or infinite"),
        (lambda s: s.update({"base.0.norm.running_var": torch.tensor([0, float("inf")])}), "NaN or infinite"),
        (lambda s: s.update({"x" * 100_000: torch.zeros(1)}), "1 unknown keys"),
        (lambda s: s.update({"\udcff": torch.zeros(1)}), r"1 unknown keys \(\\xff\)"),
        (lambda s: s.update({f"{n}": torch.zeros(1) for n in range(10_000)}), "no model here has so many"),
        (lambda s: s.update({"base.0.norm.bias": None}), "has the entries"),
        (lambda s: s.clear(), "is empty"),
    ],
)
def test_state_dicts_that_do_not_fit(
    model: HarDNet, state: dict[str, Tensor], change: Callable[[dict[str, object]], object], match: str
) -> None:
    changed: dict[str, object] = dict(state)
    change(changed)
    refuse(model, saved(changed, new=False), match=match)


def other_frameworks() -> dict[str, bytes]:
    import numpy as np

    arrays, onnx = io.BytesIO(), b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(200)
    np.savez(arrays, weight=np.zeros((2, 2)))
    return {
        "Keras": b"\x89HDF\r\n\x1a\n" + bytes(500),
        "TensorFlow": b"\x00\x00\x00\x00\x00\x00\x00\x00\x00W\xfb\x80\x8b$uG\xdb"[::-1],
        "ONNX": onnx,
        "NumPy": arrays.getvalue(),
        "GGUF": b"GGUF\x03\x00\x00\x00" + bytes(100),
        "scikit-learn": pickle.dumps({"coef": [1.0, 2.0]}, 4),
        "safetensors as .pth": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
        "gzip": b"\x1f\x8b\x08" + bytes(50),
        "an image": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "text": b"lr: 0.1\nepochs: 3\n",
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("framework", other_frameworks())
def test_files_of_other_frameworks(model: HarDNet, framework: str) -> None:
    refuse(model, other_frameworks()[framework])
    if "safetensors" not in framework:
        refuse(model, other_frameworks()[framework], origin="x.safetensors")


def test_a_script_module_is_refused(model: HarDNet) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    refuse(model, buffer.getvalue(), match="cannot be read")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to eight bytes changed, some cut out or doubled, or the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        position, what = rng.randrange(len(changed)), rng.randrange(10)
        if what < 7:
            changed[position] = rng.randrange(256)
        elif what == 7:
            del changed[position : position + rng.randint(1, 16)]
        elif what == 8:
            changed[position:position] = changed[position : position + rng.randint(1, 16)]
        else:
            del changed[position + 1 :]
    return bytes(changed)


def mutate(model: HarDNet, state: dict[str, Tensor], times: int) -> int:
    """Load so many damaged files; return how many were refused. What is not refused is whole and finite."""
    from safetensors.torch import save

    pickled = zipfile.ZipFile(io.BytesIO(saved(state))).read("archive/data.pkl")
    rng, refused = random.Random(3), 0  # noqa: S311  test data
    before = {key: value.clone() for key, value in state.items()}
    for number in range(times):
        kind = number % 4
        if kind == 3:
            content, origin = mutated(save(state), rng), "x.safetensors"
        elif kind == 2:  # the checksums are right, so that the pickle is read
            content, origin = zipped(mutated(pickled, rng)), "x.pth"
        else:
            content, origin = mutated(saved(state, new=kind == 0), rng), "x.pth"
        with watched() as happened:
            try:
                load(model, content, origin)
            except WeightsError:
                refused += 1
                assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert happened == []
        assert all(value.isfinite().all() for value in model.state_dict().values())
        model.load_state_dict(before)
    return refused


def in_time(work: Callable[[], int]) -> int:
    future: Future[int] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout=HANG)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize("times", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files(model: HarDNet, state: dict[str, Tensor], times: int) -> None:
    refused = in_time(lambda: mutate(model, state, times))
    assert refused > times // 2
