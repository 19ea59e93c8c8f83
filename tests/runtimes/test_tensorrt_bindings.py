"""The names and signatures of TensorRT that the runtime and its double use, compared with the real Python bindings.

Nothing is built or run: the libraries behind the bindings are stubs.
"""

from __future__ import annotations

import ast
import enum
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.runtimes import tensorrt_builder, tensorrt_layers, tensorrt_rtx_runtime, tensorrt_runtime
from tests.conftest import ROOT
from tests.runtimes import tensorrt_double, tensorrt_rtx_double
from tests.runtimes.tensorrt_bindings import Bindings, MissingPartError, accepts, read_bindings
from tests.runtimes.tensorrt_double import TensorRtDouble
from tests.runtimes.tensorrt_rtx_double import HELPERS, TensorRtRtxDouble
from tests.runtimes.tensorrt_uses import MODULE, Program, problems

# JetPack 6.2 has the oldest one; the newer ones have no EXPLICIT_BATCH and no precision flags.
RTX = "tensorrt-rtx-cu12-bindings==1.7.1.116"
VERSIONS = ("tensorrt-cu12-bindings==10.3.0", "tensorrt-cu13-bindings==11.4.0.106", RTX)
only_rtx = pytest.mark.parametrize("bindings", [RTX], indirect=True)


def source(*modules: ModuleType) -> str:
    return "\n".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules)


SOURCE = source(tensorrt_layers, tensorrt_builder, tensorrt_runtime)
# What an expression in the source is an instance of. The tests fail on one that comes from TensorRT and is not here.
CLASSES = {
    "tensorrt": MODULE,
    "self._tensorrt": MODULE,
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "inspector": "EngineInspector",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "image": "ITensor",
    "profile": "IOptimizationProfile",
}
SOURCE_OF_RTX = source(tensorrt_runtime, tensorrt_rtx_runtime)
CLASSES_OF_RTX = {
    **{name: CLASSES[name] for name in CLASSES if Program(ast.parse(SOURCE_OF_RTX), {}).has(name)},
    **{"config": "IBuilderConfig", "settings": "IRuntimeConfig", "self._kernels": "IRuntimeCache"},
}


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    try:
        return read_bindings(request.param, tmp_path_factory.mktemp("bindings"))
    except MissingPartError as error:
        pytest.skip(f"TensorRT's bindings not compared: {error}")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("PATH", "", "no C compiler"),
        ("PIP_INDEX_URL", "http://127.0.0.1:9/simple", "the package registry cannot be reached"),
        ("PIP_NO_INDEX", "1", "the package registry has no wheel of tensorrt-cu12-bindings==10.3.0"),
    ],
)
def test_the_missing_part_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, reason: str
) -> None:
    # The machine's own settings of pip and proxy have no say here.
    for name, setting in (("PIP_CONFIG_FILE", os.devnull), ("no_proxy", "127.0.0.1"), (variable, value)):
        monkeypatch.setenv(name, setting)
    with pytest.raises(MissingPartError, match=reason):
        read_bindings(VERSIONS[0], tmp_path)


def test_all_that_the_runtime_uses_exists_with_these_signatures(bindings: Bindings) -> None:
    assert problems(SOURCE, CLASSES, bindings) == []


@only_rtx
def test_all_that_the_runtime_of_rtx_uses_exists_with_these_signatures(bindings: Bindings) -> None:
    assert problems(SOURCE_OF_RTX, CLASSES_OF_RTX, bindings) == []


@pytest.mark.parametrize(
    ("own", "changed", "problem"),
    [
        ("execute_async_v3(", "execute_v4(", "IExecutionContext.execute_v4 does not exist"),
        ("BuilderFlag.TF32", "BuilderFlag.FP12", "BuilderFlag.FP12 does not exist"),
        ("tensorrt.OnnxParser(network, log)", "tensorrt.OnnxParser(network)", "which takes (network, logger)"),
        ("opt=usual", "preferred=usual", "which takes (input, min, opt, max)"),
        ("get_input(0)", "get_input()", "which takes (index)"),
        ("engine.num_io_tensors", "engine.get_tensor_name", "get_tensor_name is a method and not called"),
        ("not parser.num_errors:", "not parser.num_errors():", "num_errors cannot be called"),
        ("config.profiling_verbosity =", "config.num_optimization_profiles =", "cannot be set"),
        ("(network, config)", "(*[network, config])", "spell out the arguments"),
        ("image = network", "layer = network.get_layer(0); layer.no_such; image = network", "layer has no class"),
        ("error.desc()", "parser.get_error(1).desc()", "parser.get_error(1) has no class"),
        ("profile = builder.create_opt", "profile = builder.create_builder_config(); _ = builder.create_opt", "IBuil"),
        ("log(self, severity: Any, msg: str)", "log(self, msg: str)", "log(msg) overrides (severity, msg)"),
        ("def _computes(layer: dict[str, Any])", "def _computes(layer: Any)", "layer has no class"),
        ("self._path = path", "self._old, _ = self._obtain_engine(); self._old.no_such", "self._old has no class"),
        ("self._path = path", "[item.no_such for item in [self._engine]]", "item has no class"),
    ],
)
def test_a_wrong_use_is_found(bindings: Bindings, own: str, changed: str, problem: str) -> None:
    assert own in SOURCE
    found = problems(SOURCE.replace(own, changed), CLASSES, bindings)
    assert any(problem in sentence for sentence in found), found


@pytest.mark.parametrize("expression", CLASSES)
def test_no_entry_of_the_table_can_be_left_out(bindings: Bindings, expression: str) -> None:
    rest = {name: kind for name, kind in CLASSES.items() if name != expression}
    assert any(f"{expression} has no class" in sentence for sentence in problems(SOURCE, rest, bindings))


def test_network_is_strongly_typed_and_its_batch_explicit_where_that_is_a_choice(bindings: Bindings) -> None:
    flags = bindings.members["NetworkDefinitionCreationFlag"]
    expected = ["STRONGLY_TYPED", "EXPLICIT_BATCH"] if bindings.version.startswith("10.") else ["STRONGLY_TYPED"]
    assert [flag for flag in tensorrt_builder._NETWORK_FLAGS if flag in flags] == expected


def test_no_builder_flag_sets_a_precision() -> None:
    uses = Program(ast.parse(SOURCE), CLASSES).uses()
    assert {use.member for use in uses if use.owner == "BuilderFlag"} == {"TF32"}


def test_libraries_that_return_nothing_are_told_in_one_sentence(bindings: Bindings, tmp_path: Path) -> None:
    program = (
        f"import sys, {bindings.module}; sys.modules['tensorrt'] = {bindings.module}\n"
        "from pathlib import Path; from types import SimpleNamespace\n"
        "from pipeline.runtimes import RuntimeUnavailableError, tensorrt_runtime\n"
        "tensorrt_runtime.device_problem = lambda: None\n"
        "tensorrt_runtime.CudaDriver = lambda: SimpleNamespace(driver_version='560.35.03')\n"
        "try: tensorrt_runtime.TensorRtRuntime(Path(sys.argv[1]), precision='fp32')\n"
        "except RuntimeUnavailableError as error: print(error)\n"
    )
    assert _run(program, bindings, tmp_path) == (
        f"TensorRT {bindings.version} does not start here (it gave no reason); "
        "install the one made for driver 560.35.03.\n"
    )


def test_log_keeps_the_errors_of_the_real_logger(bindings: Bindings, tmp_path: Path) -> None:
    program = (
        f"import {bindings.module} as module; from pipeline.runtimes import tensorrt_builder\n"
        "log, levels = tensorrt_builder.make_log(module), module.ILogger\n"
        "log.log(levels.ERROR, 'node 7'); log.log(levels.WARNING, 'slow'); print(log.last_error())\n"
    )
    assert _run(program, bindings, tmp_path) == "node 7\n"


def test_double_offers_nothing_that_tensorrt_has_not(bindings: Bindings) -> None:
    assert drift(TensorRtDouble(bindings.version), doubled(tensorrt_double), bindings) == []


@only_rtx
def test_double_of_rtx_offers_nothing_that_it_has_not(bindings: Bindings) -> None:
    assert drift(TensorRtRtxDouble(bindings.version), doubled(tensorrt_rtx_double), bindings) == []


def test_a_double_that_drifts_is_found(bindings: Bindings) -> None:
    class ICudaEngine:
        def __init__(self, module: TensorRtDouble) -> None:
            self.num_bindings = 2

        def get_tensor_name(self, position: int) -> str:
            return ""

        def get_tensor_shape(self) -> tuple[int, ...]:
            return ()

        def get_binding_name(self, index: int) -> str:
            return ""

        num_io_tensors = property(lambda self: 2)

        def name(self) -> str:
            return ""

    module = TensorRtDouble(bindings.version)
    module.build_cuda_engine = None
    module.DataType = enum.IntEnum("DataType", "FLOAT HALF", start=1)
    assert drift(module, [ICudaEngine], bindings) == [
        "build_cuda_engine",
        "DataType.FLOAT",
        "DataType.HALF",
        "ICudaEngine.get_binding_name",
        "ICudaEngine.get_tensor_name",
        "ICudaEngine.get_tensor_shape",
        "ICudaEngine.name",
        "ICudaEngine.num_bindings",
    ]


def doubled(module: ModuleType) -> list[type]:
    """The classes of a file that stand for those of TensorRT."""
    found = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return [kind for kind in found if kind is not tensorrt_double.Driver and not issubclass(kind, TensorRtDouble)]


def drift(module: TensorRtDouble, classes: list[type], bindings: Bindings) -> list[str]:
    """Parts of the double that the bindings lack, or have with other values or parameters."""
    offered = {name: value for name, value in vars(module).items() if not name.startswith("_") and name not in HELPERS}
    found = [name for name in offered if name not in bindings.members[MODULE]]
    for name, members in offered.items():
        if isinstance(members, enum.EnumType):
            real = bindings.members[name]
            found += [
                f"{name}.{member.name}" for member in members if real.get(member.name, {}).get("number") != member.value
            ]
    for kind in classes:
        real = bindings.members[kind.__name__]
        stored = re.findall(r"self\.([a-z]\w*)(?:: .*)? = ", inspect.getsource(kind))
        for name in sorted({name for name in vars(kind) if not name.startswith("_")} | set(stored)):
            if name not in real or not _same(vars(kind).get(name), real[name], bindings, kind.__name__, name):
                found.append(f"{kind.__name__}.{name}")
    return found


def _same(member: object, real: dict[str, Any], bindings: Bindings, owner: str, name: str) -> bool:
    if not inspect.isfunction(member):
        return real["kind"] == "property" or real.get("number") == member
    if real["kind"] != "method":
        return False
    own = list(inspect.signature(member).parameters)[1:]
    return any(
        own == list(signature.parameters)[: len(own)] and accepts(signature, *own)
        for signature in bindings.signatures(owner, name)
    )


def _run(program: str, bindings: Bindings, folder: Path) -> str:
    model = folder / "student.onnx"
    model.write_bytes(b"onnx")
    paths = os.pathsep.join((bindings.environment["PYTHONPATH"], str(ROOT)))
    environment = bindings.environment | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", program, str(model)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
