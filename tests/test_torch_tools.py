"""The networks under torch's tools: TorchScript, fx, compile, pickle, gradient checkpointing."""

import copy
import io
import pickle

import pytest
import torch
from conftest import MODELS, SAMPLES, golden_state, small_model
from torch import fx, nn
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from hardnet import create_model


@pytest.mark.parametrize("which", ["script", "trace"])
@pytest.mark.parametrize("name", SAMPLES)
def test_torchscript(name: str, which: str, recwarn: pytest.WarningsRecorder) -> None:
    model = small_model(name)
    x = torch.rand(2, 3, 64, 64)
    scripted = torch.jit.script(model) if which == "script" else torch.jit.trace(model, x, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    other = torch.rand(1, 3, 96, 65)
    with torch.jit.optimized_execution(False):
        torch.testing.assert_close(torch.jit.load(buffer)(other), model(other))
    assert not [warning for warning in recwarn if issubclass(warning.category, torch.jit.TracerWarning)]


@pytest.mark.parametrize("part", [*MODELS, "pyramid", "block", "torchvision's extractor"])
def test_graphs_of_fx_compute_the_same_and_can_be_scripted(part: str) -> None:
    module: nn.Module = small_model(part if part in MODELS else "hardnet39ds")
    x = torch.rand(1, 3, 65, 96)
    if part == "pyramid":
        module = create_model("hardnet39ds", features_only=True).eval()
    elif part == "block":
        module, x = module.base[3], torch.rand(1, 48, 8, 8)
    if "extractor" in part:
        graph = create_feature_extractor(module, ["base.4"])
    else:
        graph = fx.symbolic_trace(module)
        torch.testing.assert_close(graph(x), module(x), rtol=0, atol=0)
    assert {node.op for node in graph.graph.nodes} == {"placeholder", "call_module", "call_function", "output"}
    with torch.jit.optimized_execution(False):
        torch.testing.assert_close(torch.jit.script(graph)(x), graph(x))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compile(backend: str, device: str) -> None:
    torch.compiler.reset()
    model = small_model("hardnet68").to(device)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for size in (64, 96):
        x = torch.rand(2, 3, size, size, device=device)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLES)
def test_deepcopy_and_pickle(name: str) -> None:
    model = small_model(name)
    x = torch.rand(1, 3, 64, 64)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 (our own bytes)
        assert torch.equal(twin(x), model(x))
        assert twin.config == model.config
        assert next(twin.parameters()).data_ptr() != next(model.parameters()).data_ptr()


@pytest.mark.parametrize("name", MODELS)
def test_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert all(value.is_meta for value in model.state_dict().values())
    state = golden_state(name)
    model.load_state_dict(state, strict=True, assign=True)
    assert torch.equal(model.state_dict()["base.0.conv.weight"], state["base.0.conv.weight"])


@pytest.mark.parametrize("name", ["hardnet39ds", "hardnet68"])
def test_gradient_checkpointing_gives_the_same_for_less_memory(name: str, device: str) -> None:
    x, target = torch.rand(2, 3, 64, 64, device=device), torch.tensor([1, 3], device=device)
    results, saved = [], []
    for enable in (False, True):
        model = small_model(name).to(device).train()
        model.set_grad_checkpointing(enable)
        sizes: list[int] = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            loss = functional.cross_entropy(model(x), target)
            saved.append(sum(sizes))
        loss.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        results.append((loss, gradients, dict(model.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert saved[1] < 0.5 * saved[0]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_gradient_checkpointing(backend: str) -> None:
    torch.compiler.reset()
    model = create_model("hardnet39ds", num_classes=3, drop_rate=0.0).double()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for run in (model, torch.compile(other, backend=backend)):
        run(x).square().sum().backward()
    for (key, got), want in zip(other.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-8, atol=1e-8, msg=key)
    torch.testing.assert_close(dict(other.named_buffers()), dict(model.named_buffers()))
