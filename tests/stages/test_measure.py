"""Devices of targets/ from `make target` to the index, on this machine as the device; and what a user gets wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.config import TEACHER, load_params
from pipeline.data.store import read_split
from pipeline.errors import DataError, EnergyKDError, LineageError, ParamsError
from pipeline.evaluation import measure as measuring
from pipeline.evaluation.measure import MeasurementRequest, bundle_content, make_plan, spread_over
from pipeline.evaluation.runnable import runnable_files
from pipeline.lineage import Places, Run
from pipeline.portable.documents import MeasuredRow
from pipeline.portable.files import sha256_file
from pipeline.remote import Address, BundleContent, RemoteError
from pipeline.runtimes import load
from pipeline.store.json_files import read_json
from pipeline.store.paths import CARD, DATA
from pipeline.targets import find_target, load_target
from stages.measure import measure_device
from stages.show import show
from stages.target import examples, target
from tests.conftest import STUDENT
from tests.e2e.repository import set_params
from tests.report.conftest import measurement
from tests.stages.conftest import run_program_here as run

QUICK = {
    "benchmark.runtimes": ["onnxruntime"],
    "benchmark.threads": 1,
    "benchmark.rounds": 2,
    "benchmark.images": 40,
    "benchmark.timing_images": 8,
    "benchmark.warmup_seconds": 0.0,
    "benchmark.warmup_count": 1,
    "benchmark.min_seconds": 0.01,
    "benchmark.min_count": 40,
    "benchmark.max_seconds": 1.0,
    "benchmark.cold_rounds": 0,
    "benchmark.memory_pass": False,
    "benchmark.sustained_minutes": 0,
    "benchmark.throughput": [],
    "timeout_minutes": 2,
}


PLACES = Places().network(STUDENT)
EXPORTED = PLACES.export / "student_fp32.onnx"


def whole_run() -> Run:
    """The run in this folder."""
    return Run(students=[STUDENT])


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but what a run that was broken off leaves for the next one."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if ".checkpoints" not in path.parts
    }


def sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def here(exported: Path) -> Path:
    """A device that is this machine, with a measurement of a second."""
    target("here", "local", "raspberry_pi")
    set_params(exported, QUICK, "targets/here/device.yaml")
    return exported / "targets/here"


def test_a_new_device_is_measured_shown_and_in_the_index(here: Path) -> None:
    run("measure", "here")
    result = read_json(here / "result.json")
    assert [(row["name"], row["runtime"]) for row in result["rows"]] == [
        ("student_fp32.onnx", "onnxruntime"),
        ("teacher_fp32.onnx", "onnxruntime"),
    ]
    manifest = {file.name: file.sha256 for file in whole_run().files}
    for row in result["rows"]:
        assert row["error"] is None
        assert row["latency_p50_ms"] > 0
        assert row["sha256"] == manifest[row["name"]]
        assert "path" not in row
    assert result["settings"]["images"] == 40
    assert "wait_minutes" not in result["settings"]
    with np.load(here / "samples.npz", allow_pickle=False) as samples:
        assert set(samples.files) == {
            f"{name}-onnxruntime/round{i}" for name in manifest if "onnx" in name for i in (0, 1)
        }
    assert read_json(Path("targets/results.json")) == {}
    assert not list(Path(".checkpoints/devices").glob("here*"))

    show("here")
    budget = find_target("here").budget.model_dump()
    entry = {"result_sha256": sha256_file(here / "result.json"), "budget": budget}
    assert read_json(Path("targets/results.json")) == {"here": entry}

    set_params(here, {"budget.max_latency_p50_ms": 3.5}, "device.yaml")
    show("here")
    assert read_json(Path("targets/results.json"))["here"]["budget"]["max_latency_p50_ms"] == 3.5


def test_a_result_with_the_samples_of_another_measurement_is_not_shown(here: Path) -> None:
    (here / "samples.npz").write_bytes(b"of another")
    measurement("board", {}, {}, [], STUDENT).write(here / "result.json")
    with pytest.raises(
        LineageError, match=r"result\.json was made from samples 24baa7a731ce, but .* in use is \w{12}; run `dvc"
    ):
        show("here")
    (here / "result.json").write_text('{"format": 3}')
    with pytest.raises(DataError, match=r"\w+ is missing"):
        show("here")


def wanted(**changes: object) -> MeasurementRequest:
    """A measurement of all files on this machine."""
    values = {
        "files": runnable_files(whole_run().networks, ["onnxruntime"], "k"),
        "settings": load_params().benchmark,
        "key": "d.yaml",
        "address": Address(),
        "folder": Path("measured"),
        "result": Path("result.json"),
        "samples": Path("samples.npz"),
        "timeout_seconds": 60,
        "process_seconds": 60,
    }
    return MeasurementRequest(**values | changes)


def content(images: int) -> BundleContent:
    run = whole_run()
    return bundle_content(run, make_plan(wanted()), run.networks, images)


@pytest.mark.parametrize("name", [STUDENT, TEACHER])
def test_the_answers_sent_along_are_those_of_the_file_of_each_network_on_the_same_images(
    exported: Path, name: str
) -> None:
    sent = content(40)
    [inputs], expected = sent.inputs.values(), sent.expected[name]  # networks of one normalisation share the images
    assert inputs.shape == (40, 3, 8, 8)
    answers = load("onnxruntime", whole_run().network(name).places.export / f"{name}_fp32.onnx", precision="fp32")
    answers = answers.run(inputs)
    np.testing.assert_allclose(answers.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(answers.energy, expected.energy, atol=1e-3)
    total = len(read_split(DATA, "test").labels)
    index = spread_over(total, 40)
    np.testing.assert_array_equal(expected.labels, np.asarray(read_split(DATA, "test").labels)[index])
    assert sent.card["labels"] == [str(digit) for digit in range(10)]
    assert sent.card["lineage"] == whole_run().measured_from(whole_run().networks).model_dump()


def test_images_are_spread_over_the_whole_split_each_once() -> None:
    np.testing.assert_array_equal(spread_over(10, 4), [0, 2, 5, 7])
    np.testing.assert_array_equal(spread_over(3, 8), [0, 1, 2])
    index = spread_over(100_000, 99_999)
    assert len(set(index.tolist())) == 99_999
    assert index[-1] < 100_000


def test_scores_of_another_teacher_are_refused(exported: Path) -> None:
    path = exported / PLACES.weights / CARD
    card = json.loads(path.read_text())
    card["lineage"]["teacher"] = "f" * 64
    path.write_text(json.dumps(card))
    with pytest.raises(LineageError, match=r"network was made from teacher f{12}, but"):
        content(8)


def test_the_rows_of_a_device_get_names_roles_and_hashes_from_the_manifests_of_their_networks(
    exported: Path, monkeypatch
) -> None:
    asked, run = wanted(), whole_run()

    def run_bundle(bundle: Path, address: Address, folder: Path, **_: object) -> SimpleNamespace:
        (folder / "samples.npz").write_bytes(b"")
        rows = [MeasuredRow(file.name, file.runtime, "fp32", 1, "cpu") for file in asked.files]
        return SimpleNamespace(**vars(measurement("board", {"cpu": "c"}, {}, rows, STUDENT)))

    monkeypatch.setattr(measuring, "run_bundle", run_bundle)
    measured = measuring.measure(run, asked, lambda done, total, what: None)
    assert [(row.name, row.role, row.sha256) for row in measured.rows] == [
        (file.name, file.role, file.sha256) for file in run.files if file.format == "onnx"
    ]
    assert measured.lineage == run.measured_from(run.networks)


def test_a_file_of_a_fixed_batch_is_refused_with_another(exported: Path) -> None:
    files = [replace(file, file=file.file.model_copy(update={"batch": 4})) for file in wanted().files]
    with pytest.raises(ParamsError, match=r"^d\.yaml: export\.batch is 4, but benchmark\.batch_size is 1; make them"):
        make_plan(wanted(files=files))
    matching = load_params().benchmark.model_copy(update={"batch_size": 4, "throughput": [(8, 1)]})
    with pytest.raises(ParamsError, match=r"^d\.yaml: export\.batch is 4, but benchmark\.throughput asks for batch 8"):
        make_plan(wanted(files=files, settings=matching))


def test_how_long_to_wait_for_the_device_is_no_part_of_the_measurement(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, float] = {}

    def run_bundle(*_: object, wait_seconds: float, **__: object) -> None:
        asked["wait_seconds"] = wait_seconds
        raise RemoteError("enough")

    monkeypatch.setattr(measuring, "run_bundle", run_bundle)
    settings = load_params().benchmark
    longer = wanted(settings=settings.model_copy(update={"wait_minutes": 90}))
    assert make_plan(longer) == make_plan(wanted(settings=settings))
    with pytest.raises(RemoteError, match="enough"):
        measuring.measure(whole_run(), longer, lambda done, total, what: None)
    assert asked == {"wait_seconds": 5400}


@pytest.mark.parametrize("like", examples())
def test_every_example_is_valid_says_that_it_is_unmeasured_and_makes_a_device(exported: Path, like: str) -> None:
    path = Path("targets/examples") / f"{like}.yaml"
    assert "UNMEASURED" in path.read_text()
    target("board", "user@board.local", like)
    made = load_target(Path("targets/board/device.yaml"))
    assert (made.address.transport, made.address.host) == ("ssh", "user@board.local")
    assert made.model_copy(update={"address": None}) == load_target(path).model_copy(update={"address": None})
    assert "UNMEASURED" not in Path("targets/board/device.yaml").read_text()
    stages = YAML(typ="safe").load(Path("targets/board/dvc.yaml"))["stages"]
    assert stages["measure"]["cmd"] == "python -m stages.measure board"
    assert "DEVICE" not in Path("targets/board/dvc.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "host", "like", "words"),
    [
        ("a b", "pi", "jetson", "device name 'a b' may hold only letters"),
        ("../x", "pi", "jetson", "device name '../x' may hold only letters"),
        ("", "pi", "jetson", "device name '' may hold only letters"),
        ("pi5", "-oProxyCommand=reboot", "jetson", "host '-oProxyCommand=reboot' is no host name"),
        ("pi5", "pi; reboot", "jetson", "host 'pi; reboot' is no host name"),
        ("pi5", "$(reboot)", "jetson", "host '$(reboot)' is no host name"),
        ("pi5", "pi # x", "jetson", "host 'pi # x' is no host name"),
        ("pi5", "", "jetson", "host '' is no host name"),
        ("pi5", "pi", "toaster", "has no example 'toaster'; choose from jetson, raspberry_pi, x86_openvino"),
        ("examples", "pi", "jetson", "targets/examples exists already"),
    ],
)
def test_a_device_that_cannot_be_is_one_sentence_and_no_folder(
    exported: Path, name: str, host: str, like: str, words: str
) -> None:
    before = files_of(exported)
    with pytest.raises(EnergyKDError) as caught:
        target(name, host, like)
    assert words in sentence(caught)
    assert files_of(exported) == before


def test_a_device_is_never_overwritten(here: Path) -> None:
    before = files_of(here)
    with pytest.raises(ParamsError, match="targets/here exists already; choose another name"):
        target("here", "user@host", "jetson")
    assert files_of(here) == before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"benchmark.round": 3}, "targets/here/device.yaml: benchmark.round is not a known key; did you mean rounds?"),
        ({"benchmark.rounds": 1}, "targets/here/device.yaml: benchmark.rounds is 1"),
        ({"benchmark.timing_images": 41}, "timing_images is above images"),
        ({"benchmark.throughput": [[1, 1], [1, 1]]}, "throughput names a pair of batch and threads twice"),
        ({"address.transport": "ssh"}, "targets/here/device.yaml: address: transport ssh needs host"),
        ({"address.host": "pi"}, "address: transport local is this machine; make host, port and ssh_config null"),
        ({"address.transport": "ssh", "address.host": "-l root"}, "address: host '-l root' is no host name"),
        ({"address.folder": "a/../../b"}, "address: folder 'a/../../b' of this machine is no plain path"),
        (
            {"address.transport": "ssh", "address.host": "pi", "address.python": "python3; reboot"},
            "address: python 'python3; reboot' of pi is no plain path",
        ),
        ({"address.transport": "ssh", "address.host": "pi", "address.port": 70000}, "address: port 70000 of pi"),
        ({"address.transport": "ssh", "address.host": "pi", "address.ssh_config": "none"}, "ssh_config none of pi"),
        ({"timeout_minutes": 0}, "timeout_minutes is 0"),
        ({"files": ["student_int8.onnx"]}, "targets/here/device.yaml: files asks for student_int8.onnx; choose from"),
        ({"benchmark.runtimes": ["openvino"]}, "benchmark.runtimes asks for openvino, but no selected file is for it"),
        ({"budget.max_size": 3}, "budget.max_size is not a known key; did you mean max_size_mb?"),
    ],
)
def test_wrong_settings_are_one_sentence_and_nothing_is_written(here: Path, values: dict, words: str) -> None:
    set_params(here, values, "device.yaml")
    before = files_of(here)
    with pytest.raises(ParamsError) as caught:
        measure_device("here")
    assert words in sentence(caught)
    assert files_of(here) == before


def test_a_device_that_does_not_exist_names_those_that_do_and_how_to_make_it(here: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        measure_device("pi5")
    assert sentence(caught) == (
        "targets/pi5/device.yaml does not exist, there are here; write it with `make target NAME=pi5 HOST=user@host`"
    )


def test_a_file_that_is_not_the_exported_one_is_not_sent(here: Path) -> None:
    EXPORTED.write_bytes(EXPORTED.read_bytes()[:-1])
    with pytest.raises(LineageError, match=r"student_fp32\.onnx has hash"):
        measure_device("here")


def test_what_was_not_measured_cannot_be_shown(here: Path) -> None:
    with pytest.raises(
        DataError, match=r"targets/here/result\.json does not exist; run `dvc repro targets/here/dvc\.yaml`"
    ):
        show("here")
    assert read_json(Path("targets/results.json")) == {}


def test_an_earlier_result_stays_whole_where_a_later_measurement_fails(here: Path) -> None:
    (here / "result.json").write_text("{}")
    set_params(here, {"address.python": "/nowhere/python3"}, "device.yaml")
    before = files_of(here)
    error = run("measure", "here", expected=2)
    assert error.splitlines()[-1].startswith("error: this machine has no program /nowhere/python3")
    assert files_of(here) == before


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client here")
def test_a_device_that_cannot_be_reached_is_one_sentence_and_exit_code_2(here: Path) -> None:
    (here.parent.parent / "config").write_text("Host gone\n  HostName 127.0.0.1\n  Port 1\n")
    values = {"transport": "ssh", "host": "gone", "ssh_config": "config", "connect_timeout_seconds": 2}
    set_params(here, {f"address.{key}": value for key, value in values.items()}, "device.yaml")
    before = files_of(here)
    error = run("measure", "here", expected=2)
    assert error.splitlines()[-1].startswith("error: gone cannot be reached (")
    assert "Traceback" not in error
    assert files_of(here) == before


def test_a_name_with_shell_characters_does_nothing_but_say_so(exported: Path) -> None:
    before = files_of(exported)
    error = run("measure", "$(touch owned)", expected=2)
    assert error.startswith("error: device name '$(touch owned)' may hold only letters")
    assert files_of(exported) == before
    assert not Path("owned").exists()
